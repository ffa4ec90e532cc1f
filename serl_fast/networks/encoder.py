"""Observations -> one feature vector: a head per camera on the shared trunk and a proprioception branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from serl_fast.networks.mlp import LAYER_NORM_EPSILON, linear
from serl_fast.networks.resnet10 import truncated_normal_

DROPOUT_RATE = 0.1


def dropout_mask(uniform: Tensor, rate: float = DROPOUT_RATE) -> Tensor:
    """The multiplicative dropout mask that belongs to uniform noise: 0 with probability ``rate``, else 1 / (1
    - rate).

    Args:
        uniform: drawn from [0, 1), any shape.
        rate: probability of dropping, 0 <= rate < 1.

    Returns:
        float32 of the same shape.
    """
    return (uniform >= rate).float() / (1.0 - rate)


class StateNormalizer(nn.Module):
    """(state - mean) / std, the identity until statistics are set.

    A deviation from HIL-SERL, which feeds the state as it comes (metres beside newtons): with the statistics
    of the demonstrations every coordinate has the same scale. The statistics are buffers: saved, never
    trained or averaged.

    Args:
        size: width P of the state.
        std_floor: smallest standard deviation, in the state's own units. A coordinate that moves less than
            this (1 mm, 1 mrad, 1 mN) is noise or a constant, which a smaller divisor would blow up.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, std_floor: float = 1e-3) -> None:
        super().__init__()
        self.std_floor = std_floor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def set_statistics(self, states: Tensor) -> None:
        """Take mean and standard deviation of ``states``, float [N, P], N >= 2.

        Raises:
            ValueError: another width, fewer than two rows, or a value that is not finite.
        """
        if states.dim() != 2 or states.shape[1] != self.mean.shape[0] or states.shape[0] < 2:
            raise ValueError(
                f"states have shape {tuple(states.shape)}; statistics take [N, {self.mean.shape[0]}] with N >= 2"
            )
        states = states.double()
        mean, std = states.mean(0), states.std(0, correction=0).clamp(min=self.std_floor)
        if not bool(torch.isfinite(mean + std).all()):
            raise ValueError("states hold values that are not finite; statistics take finite states")
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, state: Tensor) -> Tensor:
        """Normalise float [..., P]."""
        return (state - self.mean) / self.std


class SpatialLearnedEmbeddings(nn.Module):
    """Learned weighted sums of a feature map over its positions, F for each channel.

    out[b, c * F + f] = sum_hw x[b, h, w, c] * kernel[h, w, c, f]

    Args:
        feature_shape: (h, w, C) of the feature map.
        embeddings: F.

    Source: ``serl_launcher/vision/resnet_v1.py``; LeCun-normal weights with fan-in h * w * C.
    """

    def __init__(self, feature_shape: tuple[int, int, int], embeddings: int = 8) -> None:
        super().__init__()
        height, width, channels = feature_shape
        self.kernel = nn.Parameter(torch.empty(height, width, channels, embeddings))
        truncated_normal_(self.kernel, fan_in=height * width * channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, h, w, C] to [B, C * F], channel-major."""
        # Each channel is a product of [B, h*w] with [h*w, F]: one batched product over the channels.
        x = features.flatten(1, 2).permute(2, 0, 1)  # [C, B, h*w]
        kernel = self.kernel.flatten(0, 1).permute(1, 0, 2)  # [C, h*w, F]
        return torch.bmm(x, kernel.to(x.dtype)).transpose(0, 1).flatten(1)


class CameraHead(nn.Module):
    """tanh(LayerNorm(Dense(dropout(SpatialLearnedEmbeddings(features))))), the trained part for one camera.

    Args:
        feature_shape: (h, w, C) of the trunk's feature map.
        embeddings: embeddings F per channel.
        bottleneck: output width.

    Source: ``PreTrainedResNetEncoder`` in ``serl_launcher/vision/resnet_v1.py``.
    """

    def __init__(self, feature_shape: tuple[int, int, int], embeddings: int = 8, bottleneck: int = 256) -> None:
        super().__init__()
        self.embeddings = SpatialLearnedEmbeddings(feature_shape, embeddings)
        self.width = feature_shape[2] * embeddings
        self.dense = nn.Linear(self.width, bottleneck)
        truncated_normal_(self.dense.weight, fan_in=self.width)
        nn.init.zeros_(self.dense.bias)
        self.norm = nn.LayerNorm(bottleneck, eps=LAYER_NORM_EPSILON)

    def forward(self, features: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Encode feature maps.

        Args:
            features: float [B, h, w, C].
            dropout: multiplicative mask on the embeddings [B, C * F], already scaled (:func:`dropout_mask`);
                absent for none.

        Returns:
            float [B, bottleneck], in (-1, 1).
        """
        x = self.embeddings(features)
        if dropout is not None:
            x = x * dropout
        return torch.tanh(self.norm(self.dense(x)))


class ProprioceptionBranch(nn.Module):
    """tanh(LayerNorm(Dense(state))), Xavier-uniform weights.

    Args:
        inputs: width P of the state.
        latent: output width.

    Source: ``serl_launcher/common/encoding.py``.
    """

    def __init__(self, inputs: int, latent: int = 64) -> None:
        super().__init__()
        self.dense = linear(inputs, latent)
        self.norm = nn.LayerNorm(latent, eps=LAYER_NORM_EPSILON)

    def forward(self, state: Tensor) -> Tensor:
        """Map [B, P] to [B, latent], in (-1, 1)."""
        return torch.tanh(self.norm(self.dense(state)))


class Encoder(nn.Module):
    """[camera 0 | camera 1 | ... | proprioception], cameras in the order of ``image_keys``.

    The trunk is shared by all cameras and is not trained. Trunk features can be computed once per batch with
    :meth:`encode_trunk` and handed in place of the images; an encoder that only ever sees features (a target
    network, say) needs no trunk at all. With T stacked frames every frame passes trunk and head by itself.

    Args:
        image_keys: cameras; may be empty.
        proprioception_size: width P of the (flattened) state; 0 for none.
        latent: width of the proprioception branch; None passes the normalised state on as it is.
        bottleneck: width of each camera's head.
        embeddings: spatial embeddings per channel.
        trunk: maps uint8 [..., H, W, 3] to ``feature_shape``; None where only features come.
        feature_shape: (h, w, C) of the trunk's feature map.
        frames: stacked frames T per camera.

    Source: ``EncodingWrapper`` in ``serl_launcher/common/encoding.py``.
    """

    def __init__(
        self,
        image_keys: Sequence[str] = (),
        proprioception_size: int = 0,
        *,
        latent: int | None = 64,
        bottleneck: int = 256,
        embeddings: int = 8,
        trunk: nn.Module | None = None,
        feature_shape: tuple[int, int, int] = (4, 4, 512),
        frames: int = 1,
    ) -> None:
        super().__init__()
        if not image_keys and not proprioception_size:
            raise ValueError("an encoder needs image_keys or a proprioception_size; both are empty")
        if len(set(image_keys)) != len(image_keys):
            raise ValueError(f"image_keys {tuple(image_keys)} name a camera twice")
        self.image_keys = tuple(image_keys)
        self.proprioception_size, self.frames = proprioception_size, frames
        self.bottleneck, self.feature_shape = bottleneck, tuple(feature_shape)
        self.embedding_width = feature_shape[2] * embeddings
        self.trunk = trunk
        # A list, because a camera's name ("left/wrist") need not be a valid module name.
        self.heads = nn.ModuleList(CameraHead(feature_shape, embeddings, bottleneck) for _ in self.image_keys)
        self.normalizer = StateNormalizer(proprioception_size) if proprioception_size else None
        branched = proprioception_size > 0 and latent is not None
        self.proprioception = ProprioceptionBranch(proprioception_size, latent or 0) if branched else nn.Identity()
        self.proprioception_width = (latent or 0) if branched else proprioception_size

    @property
    def feature_size(self) -> int:
        """Width D of the output."""
        return len(self.image_keys) * self.frames * self.bottleneck + self.proprioception_width

    @property
    def dropout_shape(self) -> tuple[int, int]:
        """Shape of one sample's dropout mask: (K * T, C * F)."""
        return len(self.image_keys) * self.frames, self.embedding_width

    def encode_trunk(self, observations: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace every camera's images by trunk features, [B, (T,) H, W, 3] -> [B, (T,) h, w, C].

        All cameras pass the trunk as one batch where their images have the same shape. Features and other
        entries stay as they are.

        Raises:
            ValueError: there are images but this encoder was built without a trunk.
        """
        keys = [key for key in self.image_keys if self._image_part(observations, key).dtype == torch.uint8]
        if not keys:
            return observations
        if self.trunk is None:
            raise ValueError(f"observation {keys[0]!r} holds images, but this encoder has no trunk: give features")
        images = [observations[key] for key in keys]
        if all(image.shape == images[0].shape for image in images):
            features = self.trunk(torch.stack(images)).unbind(0)
        else:
            features = tuple(self.trunk(image) for image in images)
        return {**observations, **dict(zip(keys, features, strict=True))}

    def forward(
        self, observations: dict[str, Tensor], dropout: Tensor | None = None, *, detach_images: bool = False
    ) -> Tensor:
        """Encode observations.

        Args:
            observations: ``state`` float [B, P] or [B, T, p] with T * p = P, and for each camera uint8 images
                [B, (T,) H, W, 3] or trunk features float [B, (T,) h, w, C].
            dropout: multiplicative mask on the spatial embeddings, float [B, K * T, C * F], already scaled
                (see :func:`dropout_mask`); cameras in the order of ``image_keys``, then frames. Absent for
                none.
            detach_images: no gradient passes into the camera heads (HIL-SERL's actor loss trains only the
                proprioception branch of the shared encoder).

        Returns:
            float [B, D].

        Raises:
            ValueError: an entry is missing or has another shape, or images come without a trunk.
        """
        observations = self.encode_trunk(observations)
        parts: list[Tensor] = []
        for k, (key, head) in enumerate(zip(self.image_keys, self.heads, strict=True)):
            features = self._frames(key, observations[key])  # [B, T, h, w, C]
            mask = None
            if dropout is not None:
                mask = dropout[:, k * self.frames : (k + 1) * self.frames].flatten(0, 1)  # [B * T, C * F]
            encoded = head(features.flatten(0, 1), mask).unflatten(0, features.shape[:2]).flatten(1)
            parts.append(encoded.detach() if detach_images else encoded)
        if self.normalizer is not None:
            parts.append(self.proprioception(self.normalizer(self._state(observations))))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _image_part(self, observations: dict[str, Tensor], key: str) -> Tensor:
        if key not in observations:
            raise ValueError(f"observation {key!r} is missing; the observations hold {sorted(observations)}")
        return observations[key]

    def _frames(self, key: str, features: Tensor) -> Tensor:
        if features.dim() == 4:
            features = features.unsqueeze(1)
        if features.dim() != 5 or features.shape[1:] != (self.frames, *self.feature_shape):
            expected = (self.frames, *self.feature_shape)
            raise ValueError(f"features of {key!r} have shape {tuple(features.shape)}; the head takes [B, {expected}]")
        return features

    def _state(self, observations: dict[str, Tensor]) -> Tensor:
        state = self._image_part(observations, "state").flatten(1)
        if state.shape[1] != self.proprioception_size:
            raise ValueError(f"state has {state.shape[1]} values; the encoder takes {self.proprioception_size}")
        return state
