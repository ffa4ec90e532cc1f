"""Observations -> one feature vector: trunk and head for every camera, and a proprioception branch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks.camera_head import CameraHead as CameraHead
from serl_fast.networks.camera_head import SpatialLearnedEmbeddings as SpatialLearnedEmbeddings
from serl_fast.networks.mlp import LAYER_NORM_EPSILON, linear
from serl_fast.networks.resnet10 import ResNet10
from serl_fast.networks.trunks import feature_shape_of, is_frozen, make_trunk


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

    A frozen trunk is shared by all cameras. Its features can be computed once per batch with :meth:`encode_trunk` and
    handed in place of the images; an encoder that only ever sees features (a target network, say) needs no trunk at
    all. Trained trunks, one for each camera, run in every forward pass. With T stacked frames every frame passes trunk
    and head by itself.

    Args:
        image_keys: cameras; may be empty.
        proprioception_size: width P of the (flattened) state; 0 for none.
        latent: width of the proprioception branch; None passes the normalised state on as it is.
        bottleneck: width of each camera's head; None for no dense layer after the pooling.
        embeddings: spatial embeddings per channel.
        pooling: see :class:`CameraHead`.
        trunk: maps uint8 [..., H, W, 3] to ``feature_shape``, shared by all cameras, or a sequence with one for each;
            None where only features come.
        feature_shape: (h, w, C) of the trunk's feature map; absent, what the trunk says or is found to return.
        image_size: (height, width) of the image that finds it, pixels.
        frames: stacked frames T per camera.
        head_layer_norm: whether a camera's head has a LayerNorm.
        head_activation: activation of a camera's head.

    Attributes:
        frozen_trunk: no parameter of the trunk took a gradient when the encoder was built.

    Source: ``EncodingWrapper`` in ``serl_launcher/common/encoding.py``.
    """

    def __init__(
        self,
        image_keys: Sequence[str] = (),
        proprioception_size: int = 0,
        *,
        latent: int | None = 64,
        bottleneck: int | None = 256,
        embeddings: int = 8,
        pooling: str = "spatial_embeddings",
        trunk: nn.Module | Sequence[nn.Module] | None = None,
        feature_shape: tuple[int, int, int] | None = None,
        image_size: tuple[int, int] = (128, 128),
        frames: int = 1,
        head_layer_norm: bool = True,
        head_activation: str = "tanh",
    ) -> None:
        super().__init__()
        if not image_keys and not proprioception_size:
            raise ValueError("an encoder needs image_keys or a proprioception_size; both are empty")
        if len(set(image_keys)) != len(image_keys):
            raise ValueError(f"image_keys {tuple(image_keys)} name a camera twice")
        self.image_keys = tuple(image_keys)
        self.proprioception_size, self.frames = proprioception_size, frames
        self._set_trunks(trunk)
        if feature_shape is None:  # what the trunk says; without one ResNet-10's, for 128 x 128 images
            first = self._trunk(0) if self.image_keys else None
            feature_shape = (4, 4, 512) if first is None else feature_shape_of(first, image_size)
        self.feature_shape = tuple(feature_shape)

        def head() -> CameraHead:
            return CameraHead(
                feature_shape,
                embeddings,
                bottleneck,
                pooling=pooling,
                layer_norm=head_layer_norm,
                activation=head_activation,
            )

        # Lists, because a camera's name ("left/wrist") need not be a valid module name.
        self.heads = nn.ModuleList(head() for _ in self.image_keys)
        self.normalizer = StateNormalizer(proprioception_size) if proprioception_size else None
        branched = proprioception_size > 0 and latent is not None
        self.proprioception = ProprioceptionBranch(proprioception_size, latent or 0) if branched else nn.Identity()
        self.proprioception_width = (latent or 0) if branched else proprioception_size

    def _set_trunks(self, trunk: nn.Module | Sequence[nn.Module] | None) -> None:
        each = () if trunk is None or isinstance(trunk, nn.Module) else tuple(trunk)
        if each and len(each) != len(self.image_keys):
            raise ValueError(f"there are {len(each)} trunks for {len(self.image_keys)} cameras")
        self.trunk = trunk if isinstance(trunk, nn.Module) else None
        self.trunks = nn.ModuleList(each)
        # Kept as it was at first: a target copy takes no gradient, yet its averaged trunk must run on the images.
        self.frozen_trunk = is_frozen(self.trunks) and (self.trunk is None or is_frozen(self.trunk))
        self.train(self.training)

    @property
    def feature_size(self) -> int:
        """Width D of the output."""
        return sum(head.outputs for head in self._heads()) * self.frames + self.proprioception_width

    @property
    def dropout_shape(self) -> tuple[int, int]:
        """Shape of one sample's dropout mask: (K * T, width of the pooled features)."""
        return len(self.image_keys) * self.frames, max((head.width for head in self._heads()), default=0)

    def train(self, mode: bool = True) -> Encoder:
        """As ever, but a frozen trunk stays in evaluation mode: its batch norms are frozen too."""
        super().train(mode)
        if self.frozen_trunk:
            for trunk in (self.trunk, *self.trunks):
                if trunk is not None:
                    trunk.eval()
        return self

    def target_copy(self) -> Encoder:
        """An encoder with the same weights that takes no gradient; without the trunk where that is frozen.

        A copy of a trained trunk is its own, so that the target can be averaged.
        """
        # What the memo maps to None is left out of the copy.
        memo: dict[int, Any] = {id(self.trunk): None} if self.frozen_trunk else {}
        target = copy.deepcopy(self, memo)
        if self.frozen_trunk:
            target.trunks = nn.ModuleList()
        return target.requires_grad_(False)

    def encode_trunk(self, observations: dict[str, Tensor]) -> dict[str, Tensor]:
        """Replace every camera's images by the features of a frozen trunk, [B, (T,) H, W, 3] -> [B, (T,) h, w, C].

        Features and other entries stay as they are; with trained trunks everything does.

        Raises:
            ValueError: there are images but this encoder was built without a trunk, or their shape does not suit it.
        """
        return self._encode_trunk(observations) if self.frozen_trunk else observations

    def encode_crops(
        self, observations: Sequence[dict[str, Tensor]], offsets: Sequence[Tensor], padding: int
    ) -> list[dict[str, Tensor]]:
        """:meth:`encode_trunk` of several observations, their images cropped at random before; one pass for all.

        Args:
            observations: of one agent, those of a transition and the next ones say.
            offsets: of the crop, integers [B, 2] for each of ``observations``, shared by its cameras.
            padding: of the crop, pixels on each side; see :func:`serl_fast.kernels.random_crop.random_crop`.
        """
        count, trunk = len(observations), self.trunk
        images = [each[key] for key in self.image_keys for each in observations]
        if isinstance(trunk, ResNet10) and self.frozen_trunk and all(trunk.takes_crops(image) for image in images):
            encoded = trunk.encode_crops(images, list(offsets) * len(self.image_keys), padding)
            parts = encoded.split([image.shape[0] for image in images])
            features = {key: parts[k * count : (k + 1) * count] for k, key in enumerate(self.image_keys)}
        else:
            turns = cycle(offsets)
            crops = [random_crop(image, next(turns), padding) for image in images]
            joint = {key: torch.cat(crops[k * count : (k + 1) * count]) for k, key in enumerate(self.image_keys)}
            sizes = [image.shape[0] for image in images[:count]]
            features = {key: x.split(sizes) for key, x in self.encode_trunk(joint).items()}
        return [{**each, **{key: features[key][n] for key in self.image_keys}} for n, each in enumerate(observations)]

    def _encode_trunk(self, observations: dict[str, Tensor]) -> dict[str, Tensor]:
        cameras = [k for k, key in enumerate(self.image_keys) if self._entry(observations, key).dtype == torch.uint8]
        if not cameras:
            return observations
        keys = [self.image_keys[k] for k in cameras]
        images = [observations[key] for key in keys]
        trunks = [self._trunk_for(k, image) for k, image in zip(cameras, images, strict=True)]
        if self.trunk is not None and all(image.shape == images[0].shape for image in images):
            features = self.trunk(torch.stack(images)).unbind(0)  # all cameras as one batch
        else:
            features = tuple(trunk(image) for trunk, image in zip(trunks, images, strict=True))
        return {**observations, **dict(zip(keys, features, strict=True))}

    def forward(
        self, observations: dict[str, Tensor], dropout: Tensor | None = None, *, detach_images: bool = False
    ) -> Tensor:
        """Encode observations.

        Args:
            observations: ``state`` float [B, P] or [B, T, p] with T * p = P, and for each camera uint8 images
                [B, (T,) H, W, 3] or trunk features float [B, (T,) h, w, C].
            dropout: multiplicative mask on the pooled features, float [B, *dropout_shape], already scaled
                (see :func:`serl_fast.networks.dropout.dropout_mask`); cameras in the order of ``image_keys``, then
                frames. Absent for none.
            detach_images: no gradient passes into trained trunks and camera heads (HIL-SERL's actor loss trains only
                the proprioception branch of the shared encoder).

        Returns:
            float [B, D].

        Raises:
            ValueError: an entry is missing or has another shape, or images come without a trunk.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach_images):
            cameras = self._project(self._pool(observations), dropout)
        return _joined(cameras + self._encode_state(observations))

    def with_and_without_dropout(
        self, observations: dict[str, Tensor], dropout: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``forward`` with the mask and without; what lies before the dropout and beside it is evaluated once.

        Args:
            observations: see :meth:`forward`.
            dropout: see :meth:`forward`; where it is absent the two are one tensor.
        """
        pooled, state = self._pool(observations), self._encode_state(observations)
        plain = _joined(self._project(pooled, None) + state)
        return (plain if dropout is None else _joined(self._project(pooled, dropout) + state)), plain

    def _pool(self, observations: dict[str, Tensor]) -> list[Tensor]:
        """The pooled features of every camera, [B * T, width] each."""
        observations = self._encode_trunk(observations)
        cameras = zip(self.image_keys, self._heads(), strict=True)
        return [head.pool(self._frames(key, observations[key]).flatten(0, 1)) for key, head in cameras]

    def _project(self, pooled: list[Tensor], dropout: Tensor | None) -> list[Tensor]:
        """Pooled features of every camera -> [B, T * bottleneck] each."""
        parts: list[Tensor] = []
        for k, (x, head) in enumerate(zip(pooled, self._heads(), strict=True)):
            mask = None
            if dropout is not None:
                mask = dropout[:, k * self.frames : (k + 1) * self.frames].flatten(0, 1)  # [B * T, width]
            parts.append(head.project(x, mask).unflatten(0, (-1, self.frames)).flatten(1))
        return parts

    def _encode_state(self, observations: dict[str, Tensor]) -> list[Tensor]:
        if self.normalizer is None:
            return []
        return [self.proprioception(self.normalizer(self._state(observations)))]

    def _heads(self) -> Iterator[CameraHead]:
        for head in self.heads:
            assert isinstance(head, CameraHead)
            yield head

    def _trunk(self, camera: int) -> nn.Module | None:
        return self.trunks[camera] if len(self.trunks) else self.trunk

    def _entry(self, observations: dict[str, Tensor], key: str) -> Tensor:
        if key not in observations:
            raise ValueError(f"observation {key!r} is missing; the observations hold {sorted(observations)}")
        return observations[key]

    def _trunk_for(self, camera: int, images: Tensor) -> nn.Module:
        key, trunk = self.image_keys[camera], self._trunk(camera)
        if trunk is None:
            raise ValueError(f"observation {key!r} holds images, but this encoder has no trunk: give features")
        accepted = getattr(trunk, "image_shape", None)
        if accepted is not None and tuple(images.shape[-3:]) != accepted:
            raise ValueError(f"images of {key!r} have shape {tuple(images.shape)}; the trunk takes [B, {accepted}]")
        return trunk

    def _frames(self, key: str, features: Tensor) -> Tensor:
        if features.dim() == 4:
            features = features.unsqueeze(1)
        if features.dim() != 5 or features.shape[1:] != (self.frames, *self.feature_shape):
            expected = (self.frames, *self.feature_shape)
            raise ValueError(f"features of {key!r} have shape {tuple(features.shape)}; the head takes [B, {expected}]")
        return features

    def _state(self, observations: dict[str, Tensor]) -> Tensor:
        state = self._entry(observations, "state").flatten(1)
        if state.shape[1] != self.proprioception_size:
            raise ValueError(f"state has {state.shape[1]} values; the encoder takes {self.proprioception_size}")
        return state


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class _Kind(NamedTuple):
    """The head that goes with a trunk."""

    pooling: str = "spatial_embeddings"
    layer_norm: bool = True
    activation: str = "tanh"


_KINDS = {
    "resnet-pretrained": _Kind(),
    "resnet": _Kind(),
    "small": _Kind("average"),
    "impala_small": _Kind("none", layer_norm=False, activation="gelu"),
    "resnet18": _Kind(),
    "mobilenet": _Kind(),
    "custom": _Kind(),
}


def make_encoder(
    image_keys: Sequence[str],
    state_dim: int,
    *,
    encoder: str = "resnet-pretrained",
    trunk: nn.Module | None = None,
    image_size: tuple[int, int] = (128, 128),
    latent: int | None = 64,
    bottleneck: int | None = 256,
    embeddings: int = 8,
    pooling: str | None = None,
    frames: int = 1,
) -> Encoder:
    """Build an encoder by the name of its trunk, or around a trunk of your own.

    | ``encoder`` | trunk | head of each camera |
    |---|---|---|
    | "resnet-pretrained" | ResNet-10, frozen, one for all cameras | spatial embeddings, Dense, LayerNorm, tanh |
    | "resnet" | ResNet-10, trained, one for each camera | the same |
    | "small" | SmallCNN, trained, one for each camera | average, Dense, LayerNorm, tanh |
    | "impala_small" | ImpalaSmall, trained, one for each camera | flatten, Dense, gelu |
    | "resnet18", "mobilenet" | torchvision's, frozen, one for all cameras | as "resnet-pretrained" |
    | "custom" | ``trunk`` | as "resnet-pretrained" |

    Args:
        image_keys: cameras; may be empty, then there is no trunk.
        state_dim: width P of the state; 0 for none.
        encoder: see the table.
        trunk: a module in place of the named trunk, which then only names the head; :mod:`serl_fast.networks.trunks`
            says what it must do. Shared by all cameras when it is frozen, else copied for each.
        image_size: (height, width) of the images, pixels.
        latent: see :class:`Encoder`.
        bottleneck: see :class:`Encoder`; FQL's "impala_small" has 512.
        embeddings: see :class:`Encoder`.
        pooling: see :class:`serl_fast.networks.camera_head.CameraHead`; None for that of the table.
        frames: stacked frames T per camera.

    Raises:
        ValueError: the encoder or pooling is not known, or an argument does not suit :class:`Encoder`.
        MissingExtraError: the trunk needs torchvision, which is not installed.
    """
    if encoder not in _KINDS:
        raise ValueError(f"encoder {encoder!r} is not known; choose one of {', '.join(_KINDS)}")
    kind = _KINDS[encoder]
    return Encoder(
        image_keys,
        state_dim,
        latent=latent,
        bottleneck=bottleneck,
        embeddings=embeddings,
        pooling=pooling or kind.pooling,
        trunk=_make_trunks(len(image_keys), encoder, trunk, image_size) if image_keys else None,
        image_size=image_size,
        frames=frames,
        head_layer_norm=kind.layer_norm,
        head_activation=kind.activation,
    )


def _make_trunks(
    cameras: int, encoder: str, trunk: nn.Module | None, image_size: tuple[int, int]
) -> nn.Module | list[nn.Module]:
    """One frozen trunk for all cameras, or a trained one for each."""
    if trunk is not None:
        return trunk if is_frozen(trunk) else [copy.deepcopy(trunk) for _ in range(cameras)]
    if encoder == "custom":
        raise ValueError("encoder 'custom' stands for a trunk of your own; give it as trunk")
    first = make_trunk(encoder, image_size)
    return first if is_frozen(first) else [first, *(make_trunk(encoder, image_size) for _ in range(cameras - 1))]
