"""Features of a few random crops of every frame, made once, so that updates need not encode images.

With a frozen trunk an update's cost is the trunk's: two passes over a batch of images of which each was encoded many
times before, under another crop. Here K crops of a frame are drawn and encoded when it arrives, and updates draw one
of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serl_fast.kernels.random_crop import random_crop
from serl_fast.replay import ReplayStore
from serl_fast.replay.fields import Field
from serl_fast.replay.schema import Schema

Array = npt.NDArray[Any]
Observation = Mapping[str, Array]
Precision = Literal["float16", "float32"]
Encode = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""uint8 images [N, H, W, 3] by camera -> float32 features [N, h, w, C] by camera."""

IMAGES_AT_ONCE = 64  # in one pass of the trunk, all cameras and crops together
TRANSITIONS_AT_ONCE = 256  # appended together while a store is encoded


class CropEncoder:
    """Encodes K different random crops of every frame, all cameras of a frame at the same offsets.

    Args:
        encode: the frozen trunk.
        image_shapes: (H, W, 3) by camera.
        crops: K, 1 to (2 * padding + 1)^2; with all of them an update draws from what it would crop itself.
        padding: pixels of edge padding of the crop.
        precision: in which features are kept. float16 has 11 significant bits and ends at 65504: what it adds is a
            relative error of at most 2^-11 (5e-4) of each feature, an eighth of bfloat16's.
        device: where ``encode`` takes its images.
        seed: of the crops.

    Raises:
        ValueError: ``crops`` or ``precision`` is out of range.
    """

    def __init__(
        self,
        encode: Encode,
        image_shapes: Mapping[str, tuple[int, ...]],
        crops: int,
        *,
        padding: int = 4,
        precision: Precision = "float16",
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        most = (2 * padding + 1) ** 2
        if not 1 <= crops <= most:
            raise ValueError(f"crops is {crops}; with a padding of {padding} there are 1 to {most} different ones")
        if precision not in ("float16", "float32"):
            raise ValueError(f"precision is {precision!r}; choose 'float16' or 'float32'")
        self.encode, self.crops, self.padding, self.precision = encode, crops, padding, precision
        self.device = torch.device(device)
        self.image_keys = tuple(image_shapes)
        self._random = np.random.default_rng(seed)
        blank = {key: np.zeros(shape, np.uint8) for key, shape in image_shapes.items()}
        self.shapes = {key: stored.shape[1:] for key, stored in self([blank]).items()}  # as they are stored
        self._known: list[tuple[Observation, dict[str, Array]]] = []

    def __call__(self, frames: Sequence[Observation]) -> dict[str, Array]:
        """Features by camera as they are stored: float32 [N, K, h, w, C], or the bytes of float16, uint8 [.., 2 C].

        Raises:
            ValueError: a feature is beyond float16's range.
        """
        step = max(1, IMAGES_AT_ONCE // (self.crops * len(self.image_keys)))
        parts = [self._encode(frames[start : start + step]) for start in range(0, len(frames), step)]
        return {key: np.concatenate([part[key] for part in parts]) for key in self.image_keys}

    def once(self, frame: Observation) -> dict[str, Array]:
        """Features of one frame, [K, h, w, C]; the last two are remembered: two stores may get the same frame."""
        for known, features in self._known:
            if all(np.array_equal(known[key], frame[key]) for key in self.image_keys):
                return features
        found = {key: features[0] for key, features in self([frame]).items()}
        # Copies: an environment may write its next frame into the same array.
        self._known = [*self._known[-1:], ({key: frame[key].copy() for key in self.image_keys}, found)]
        return found

    @property
    def frame_bytes(self) -> int:
        """Bytes of the features of one frame, all cameras."""
        itemsize = 1 if self.precision == "float16" else 4
        return sum(int(np.prod(shape)) * itemsize for shape in self.shapes.values())

    def _encode(self, frames: Sequence[Observation]) -> dict[str, Array]:
        offsets = torch.from_numpy(self.draw_offsets(len(frames))).to(self.device)
        images = {}
        for key in self.image_keys:
            stacked = torch.from_numpy(np.stack([frame[key] for frame in frames])).to(self.device)
            repeated = stacked.repeat_interleave(self.crops, dim=0)  # [N K, H, W, 3]
            images[key] = random_crop(repeated, offsets.flatten(0, 1), self.padding) if self.padding else repeated
        encoded = self.encode(images)
        return {key: self._stored(encoded[key].unflatten(0, (-1, self.crops))) for key in self.image_keys}

    def draw_offsets(self, frames: int) -> npt.NDArray[np.int64]:
        """Offsets of crops, int64 [N, K, 2], those of one frame all different."""
        side = 2 * self.padding + 1
        cells = np.tile(np.arange(side * side), (frames, 1))
        drawn = self._random.permuted(cells, axis=1)[:, : self.crops]
        return np.stack(np.divmod(drawn, side), axis=-1)

    def _stored(self, features: Tensor) -> Array:
        if self.precision == "float32":
            return features.float().cpu().numpy()
        half = features.half()
        if not bool(torch.isfinite(half).all()):
            worst = float(features.abs().max())
            raise ValueError(
                f"the trunk's features reach {worst:g}, float16 ends at 65504; keep them in float32 "
                "(--feature_cache_precision float32)"
            )
        stored: Array = half.cpu().numpy().view(np.uint8)
        return stored


class FeatureCache:
    """A store of transitions with images, and beside it one with features that updates draw from.

    The first stays what is saved and resumed: features are made again from it. Both get every transition, so they hold
    the same ones in the same order.

    Args:
        store: with images; what it holds already is encoded by :meth:`fill`.
        encoder: makes the features; caches may share one.

    Attributes:
        features: the other store: observations hold ``[K, h, w, C]`` features (see :class:`CropEncoder`) in place of
            each camera's image, the rest is the same.
    """

    def __init__(self, store: ReplayStore, encoder: CropEncoder) -> None:
        self.store, self.encoder = store, encoder
        self.features = ReplayStore(_schema(store.schema, encoder), store.capacity, seed=store.seed)
        self.features.draws = store.draws
        self._newest: dict[str, Array] = {}  # features of the newest transition's next observations

    def append(self, transition: Mapping[str, Any], continues: bool = False) -> None:
        """Store one transition; only frames that are new are encoded.

        Args:
            transition: as for ``ReplayStore.append``.
            continues: whether it follows the transition appended before it.

        Raises:
            TypeError, ValueError: as for ``ReplayStore.append``; nothing was stored.
        """
        self.store.append(transition, continues)
        start = self._newest if continues else self.encoder.once(transition["observations"])
        self._newest = self.encoder.once(transition["next_observations"])
        replaced = {
            "observations": {**transition["observations"], **start},
            "next_observations": {**transition["next_observations"], **self._newest},
        }
        self.features.append({**transition, **replaced}, continues)

    def fill(self) -> Iterator[int]:
        """Encode what the store holds and the features lack (nothing may have been appended to them).

        Yields:
            How many transitions were encoded since the last time.
        """
        assert not len(self.features)
        for episode in self.store.episodes():
            for start in range(0, len(episode), TRANSITIONS_AT_ONCE):
                rows = np.arange(episode.start + start, min(episode.start + start + TRANSITIONS_AT_ONCE, episode.stop))
                self._encode_rows(self.store.sampler(fields=_columns(self.store.schema)).batch_of(rows), start > 0)
                yield len(rows)

    def _encode_rows(self, columns: dict[str, Any], continues: bool) -> None:
        """Append successive transitions of one episode, [N, ...]."""
        count = len(columns["rewards"])
        keys = self.encoder.image_keys
        frames = [{key: columns["next_observations"][key][row] for key in keys} for row in range(count)]
        if not continues:
            first = {key: columns["observations"][key][0] for key in keys}
            encoded = self.encoder([first, *frames])
        else:
            following = self.encoder(frames)
            encoded = {key: np.concatenate([self._newest[key][None], following[key]]) for key in keys}
        self._newest = {key: features[-1] for key, features in encoded.items()}
        columns["observations"] = {**columns["observations"], **{key: encoded[key][:-1] for key in keys}}
        columns["next_observations"] = {**columns["next_observations"], **{key: encoded[key][1:] for key in keys}}
        self.features.extend(columns, np.array([continues] + [True] * (count - 1)))


def describe(encoder: CropEncoder, stores: Sequence[ReplayStore]) -> str:
    """One line on what the cache keeps and how large it gets."""
    full = encoder.frame_bytes * sum(store.capacity for store in stores)
    return (
        f"feature cache: {_count(encoder.crops, 'crop')} of {_count(len(encoder.image_keys), 'camera')} in "
        f"{encoder.precision}, {encoder.frame_bytes / 1024:.0f} KiB a transition beside its images, "
        f"{full / 2**30:.1f} GiB when the stores are full"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _schema(schema: Schema, encoder: CropEncoder) -> Schema:
    """The schema with features in place of images."""
    dtype = "uint8" if encoder.precision == "float16" else "float32"

    def replaced(field: Field) -> Field:
        shape = encoder.shapes.get(field.name.removeprefix("observations/"))
        return field if shape is None else dataclasses.replace(field, dtype=dtype, shape=shape, stack=1)

    return Schema([replaced(field) for field in schema.observations], schema.steps)


def _columns(schema: Schema) -> list[str]:
    return [field.name for field in schema.inputs]
