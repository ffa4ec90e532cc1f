"""Images -> logits: the reward classifier, binary or of several classes, and VICE's discriminator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serl_fast.networks.encoder import make_encoder
from serl_fast.networks.mlp import MLP, at_least_float32
from serl_fast.networks.resnet10 import resize_images, truncated_normal_

FIXED_SIZE_TRUNKS = ("small", "impala_small")


class RewardClassifier(nn.Module):
    """Dense(activation(LayerNorm(dropout(Dense(camera features))))): does the picture show success?

    One logit, sigmoid(logit) the probability of success, or, with ``classes`` > 1, one logit for each class.
    The state is not observed. Weights are LeCun-normal, biases zero.

    Args:
        image_keys: cameras, in the order in which their features are concatenated.
        classes: 1 for success or failure; N > 1 for N classes.
        hidden: width of the hidden layer.
        activation: a name of :func:`serl_fast.networks.mlp.activation`.
        encoder: kind of image encoder, see :func:`serl_fast.networks.encoder.make_encoder`; "custom" where ``trunk``
            is given.
        trunk: an image trunk of your own in place of ``encoder``.
        image_size: (height, width) of the trunk's input, pixels.
        bottleneck: width of each camera's features.
        pooling: see ``make_encoder``.
        frames: stacked frames T per camera.
        threshold: the probability from which :meth:`predict_success` says success.
        success_class: with several classes, the one that means success; None where :meth:`predict_success` is told.

    Attributes:
        settings: the plain values that build it again: ``RewardClassifier(**settings)``.

    Raises:
        ValueError: no camera, no class, a threshold outside (0, 1), or a ``success_class`` that there is not.

    Source: ``serl_launcher/networks/reward_classifier.py`` of HIL-SERL.
    """

    def __init__(
        self,
        image_keys: Sequence[str],
        *,
        classes: int = 1,
        hidden: int = 256,
        activation: str = "relu",
        encoder: str = "resnet-pretrained",
        trunk: nn.Module | None = None,
        image_size: tuple[int, int] = (128, 128),
        bottleneck: int | None = 256,
        pooling: str | None = None,
        frames: int = 1,
        threshold: float = 0.5,
        success_class: int | None = None,
    ) -> None:
        super().__init__()
        if not image_keys:
            raise ValueError("image_keys is empty; a reward classifier looks at one camera at least")
        if classes < 1:
            raise ValueError(f"classes is {classes}; choose 1 (success or failure), or the number of classes")
        if success_class is not None and (classes == 1 or not 0 <= success_class < classes):
            raise ValueError(f"success_class is {success_class}; this classifier has {classes} class(es)")
        self.image_keys, self.classes, self.success_class = tuple(image_keys), classes, success_class
        self.settings: dict[str, Any] = {
            "image_keys": list(image_keys),
            "classes": classes,
            "hidden": hidden,
            "activation": activation,
            "encoder": encoder if trunk is None else "custom",
            "image_size": tuple(image_size),
            "bottleneck": bottleneck,
            "pooling": pooling,
            "frames": frames,
            "success_class": success_class,
        }
        self.threshold = threshold
        self.encoder = make_encoder(
            image_keys,
            0,
            encoder=encoder,
            trunk=trunk,
            image_size=image_size,
            bottleneck=bottleneck,
            pooling=pooling,
            frames=frames,
        )
        self.hidden = MLP(self.encoder.feature_size, (hidden,), activation=activation)
        self.head = nn.Linear(hidden, classes)
        for layer in (self.hidden.layers[0], self.head):
            assert isinstance(layer, nn.Linear)
            truncated_normal_(layer.weight, fan_in=layer.in_features)
        nn.init.zeros_(self.head.bias)

    @property
    def threshold(self) -> float:
        """The probability from which :meth:`predict_success` says success; may be set, in (0, 1)."""
        return float(self.settings["threshold"])

    @threshold.setter
    def threshold(self, value: float) -> None:
        _check_threshold(value)
        self.settings["threshold"] = value

    def forward(
        self, observations: dict[str, Tensor], dropout: Tensor | None = None, hidden_dropout: Tensor | None = None
    ) -> Tensor:
        """Logits.

        Args:
            observations: for each camera uint8 images [B, (T,) H, W, 3] or trunk features float [B, (T,) h, w, C].
            dropout: mask of the camera embeddings, see :meth:`serl_fast.networks.encoder.Encoder.forward`.
            hidden_dropout: multiplicative mask of the hidden layer, already scaled, float [B, hidden].

        Returns:
            float [B, classes].
        """
        features = self.encoder(observations, dropout)
        logits: Tensor = self.head(self.hidden(features, None if hidden_dropout is None else (hidden_dropout,)))
        return at_least_float32(logits)

    @torch.no_grad()
    def probabilities(self, observations: Mapping[str, Tensor | np.ndarray]) -> Tensor:
        """Probability of success, float [B], or of every class, float [B, classes], without dropout.

        Args:
            observations: for each camera uint8 images [B, (T,) H, W, 3], arrays or tensors on any device, which are
                resized to ``image_size`` where the trunk takes no other; other entries are ignored.
        """
        device = self.head.weight.device
        images = {key: torch.as_tensor(self._camera(observations, key), device=device) for key in self.image_keys}
        logits = self({key: self._sized(image) for key, image in images.items()}).float()
        return torch.sigmoid(logits.squeeze(-1)) if self.classes == 1 else torch.softmax(logits, dim=-1)

    def predict_success(
        self,
        observation: Mapping[str, Tensor | np.ndarray],
        threshold: float | None = None,
        success_class: int | None = None,
    ) -> tuple[float, bool]:
        """Whether one observation shows success. Waits for the device.

        Args:
            observation: for each camera ONE uint8 image [H, W, 3], with or without axes of 1 before it (batch,
                time); with stacked frames [T, H, W, 3].
            threshold: in place of the classifier's own, in (0, 1).
            success_class: in place of the classifier's own.

        Returns:
            The probability of success, and whether it reaches the threshold.

        Raises:
            ValueError: several observations, a missing camera, an image that is not uint8 RGB, or no
                ``success_class`` among several classes.
        """
        if threshold is not None:
            _check_threshold(threshold)
        success_class = self.success_class if success_class is None else success_class
        if (success_class is None) != (self.classes == 1):
            raise ValueError(f"success_class is {success_class}; this classifier has {self.classes} class(es)")
        single = {key: self._single(self._camera(observation, key), key) for key in self.image_keys}
        chosen = self.probabilities(single)[0]
        probability = float(chosen if success_class is None else chosen[success_class])
        return probability, probability >= (self.threshold if threshold is None else threshold)

    def _camera(self, observations: Mapping[str, Tensor | np.ndarray], key: str) -> Tensor | np.ndarray:
        if key not in observations:
            raise ValueError(f"observation {key!r} is missing; the observation holds {sorted(observations)}")
        image = observations[key]
        # PyTorch takes no negative strides, and warns of arrays that can not be written.
        return image if isinstance(image, Tensor) else np.require(image, requirements=["C", "W"])

    def _sized(self, images: Tensor) -> Tensor:
        """Images in the size of a trunk that takes no other; a ResNet resizes by itself."""
        size = tuple(self.settings["image_size"])
        fixed = self.settings["encoder"] in FIXED_SIZE_TRUNKS
        if not fixed or images.dtype != torch.uint8 or tuple(images.shape[-3:-1]) == size:
            return images
        resized = resize_images(images.flatten(0, -4), size).round().clamp(0, 255).to(torch.uint8)
        return resized.permute(0, 2, 3, 1).reshape(*images.shape[:-3], *size, 3)

    def _single(self, image: Tensor | np.ndarray, key: str) -> Tensor | np.ndarray:
        """The image of one observation as [1, T, H, W, 3]."""
        frames = self.encoder.frames
        if image.dtype not in (np.uint8, torch.uint8) or (image.ndim >= 3 and image.shape[-1] != 3):
            raise ValueError(
                f"camera {key!r} is {image.dtype} {tuple(image.shape)}; predict_success takes uint8 [H, W, 3], RGB, "
                "0 to 255 (CHW: move the channels to the end; float in 0 to 1: multiply by 255)"
            )
        if image.ndim < 3 or int(np.prod(image.shape[:-3])) != frames:
            expected = "[H, W, 3]" if frames == 1 else f"[{frames}, H, W, 3]"
            raise ValueError(
                f"camera {key!r} has shape {tuple(image.shape)}; predict_success takes one observation, {expected} "
                "with or without a batch axis of 1 (for a batch there is `probabilities`)"
            )
        return image.reshape(1, frames, *image.shape[-3:])


class Discriminator(RewardClassifier):
    """VICE's discriminator: a :class:`RewardClassifier` with features of 512 per camera and leaky ReLU.

    Source: ``create_vice`` in ``serl_launcher/agents/continuous/vice.py`` of SERL.
    """

    def __init__(
        self,
        image_keys: Sequence[str],
        *,
        activation: str = "leaky_relu",
        bottleneck: int | None = 512,
        **settings: Any,
    ) -> None:
        super().__init__(image_keys, activation=activation, bottleneck=bottleneck, **settings)
        nn.init.xavier_uniform_(self.hidden.layers[0].weight)  # type: ignore[arg-type]  # as SERL's MLP


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; it must be between 0 and 1")
