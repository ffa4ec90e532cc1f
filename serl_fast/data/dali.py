"""Random crops on the host by NVIDIA DALI, the second backend of augmentation.

The first is ``serl_fast.kernels.random_crop`` inside the update step. DALI's pipeline is a program of its own that runs
on the host before the step, so it takes the place of the crop where batches come from the host: they are cropped
here, and the agent is built with ``crop_padding=0``. See docs/guides/augmentation.md for which to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serl_fast.core import Batch
from serl_fast.data.batches import BatchReader, BatchSource
from serl_fast.errors import require
from serl_fast.kernels.random_crop import PADDING


class DaliCrop:
    """Crops, and optionally normalises, batches of images in DALI's threads on the CPU.

    The crop is that of :func:`serl_fast.kernels.random_crop.random_crop`, to the byte. Normalised values,
    (crop - mean) / std, are within 3e-6 of the reference's for ImageNet's statistics: DALI multiplies by 1 / std.

    Args:
        largest_batch: images of one call at most, frames counted one by one.
        padding: pixels on each side.
        mean: float [C], in units of the stored bytes; given with ``std``, images are normalised.
        std: float [C], likewise.
        threads: of DALI.

    Raises:
        MissingExtraError: DALI is not installed.
        ValueError: only one of ``mean`` and ``std`` is given.
    """

    def __init__(
        self,
        largest_batch: int,
        padding: int = PADDING,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        threads: int = 1,
    ) -> None:
        if (mean is None) != (std is None):
            raise ValueError(f"mean is {mean} and std is {std}; give both to normalise, or neither")
        self.largest_batch, self.padding = largest_batch, padding
        self.dtype = torch.uint8 if mean is None else torch.float32
        dali = require("nvidia.dali", "dali")
        fn, types = require("nvidia.dali.fn", "dali"), dali.types
        # No device: nothing of CUDA is loaded. One batch in flight: the result of a call is that of its arguments.
        self._pipeline = dali.Pipeline(largest_batch, threads, None, prefetch_queue_depth=1)
        with self._pipeline:
            images = fn.external_source(name="images", dtype=types.UINT8, ndim=3, layout="HWC")
            maps = fn.external_source(name="maps", dtype=types.FLOAT, ndim=2)
            # Coordinates outside of the image are clamped to its border, as long as no fill value is given.
            output = fn.warp_affine(images, matrix=maps, inverse_map=True, interp_type=types.INTERP_NN)
            if mean is not None and std is not None:
                output = fn.crop_mirror_normalize(
                    output, dtype=types.FLOAT, output_layout="HWC", mean=list(mean), std=list(std)
                )
            self._pipeline.set_outputs(output)
        self._pipeline.build()

    def __call__(self, images: Tensor, offsets: Tensor) -> Tensor:
        """Crop a batch.

        Args:
            images: uint8 [B, (T,) H, W, C] on the CPU.
            offsets: integers [B, 2], (y, x) in 0 to 2 * padding.

        Returns:
            uint8, or float32 where it is normalised, shaped like ``images``.

        Raises:
            ValueError: shapes do not fit, images are not uint8 on the CPU, or there are more than ``largest_batch``.
        """
        frames = images.reshape(-1, *images.shape[-3:])
        if images.dtype != torch.uint8 or images.dim() not in (4, 5) or images.device.type != "cpu":
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)} on {images.device}; DALI takes torch.uint8 "
                "[B, H, W, C] or [B, T, H, W, C] on the CPU"
            )
        if offsets.shape != (images.shape[0], 2):
            raise ValueError(f"offsets have shape {tuple(offsets.shape)}; these images take ({images.shape[0]}, 2)")
        count = frames.shape[0]
        if count > self.largest_batch:
            raise ValueError(f"there are {count} images; this pipeline was built for {self.largest_batch} at most")
        if not count:
            return images.to(self.dtype)
        # out[i, j] = in[i + y - padding, j + x - padding], as an affine map of places: [[1, 0, x'], [0, 1, y']].
        maps = np.zeros((images.shape[0], 2, 3), np.float32)
        maps[:, 0, 0] = maps[:, 1, 1] = 1.0
        maps[:, :, 2] = offsets.numpy()[:, ::-1] - self.padding
        self._pipeline.feed_input("images", frames.contiguous().numpy())
        self._pipeline.feed_input("maps", np.repeat(maps, count // images.shape[0], axis=0))
        (output,) = self._pipeline.run()
        cropped: Any = output.as_array()
        return torch.from_numpy(cropped).view(images.shape)


def crop_batch(crop: DaliCrop, batch: Batch, image_keys: Sequence[str], generator: torch.Generator) -> Batch:
    """A batch with the images of every camera cropped at random, as an agent's own preparation crops them.

    All cameras of a sample share their offsets; observations and next observations have their own.

    Args:
        crop: its padding is that of the augmentation.
        batch: on the CPU; it stays as it is.
        image_keys: cameras.
        generator: of the offsets, on the CPU.

    Returns:
        The batch for an agent that does not crop (``crop_padding=0``).
    """
    batch = dict(batch)
    for name in ("observations", "next_observations"):
        observations = batch[name]
        shape = (observations[image_keys[0]].shape[0], 2)
        offsets = torch.randint(2 * crop.padding + 1, shape, generator=generator)
        batch[name] = observations | {key: crop(observations[key], offsets) for key in image_keys}
    return batch


class DaliReader:
    """Batches drawn in line and cropped on the host, then copied to where they are needed; see ``data.readers.Reader``.

    For an agent that does not crop (``crop_padding=0``). Nothing overlaps: the step waits for draw, crop and copy.

    Args:
        batch_size: rows of one update.
        image_keys: cameras.
        device: where batches are needed.
        seed: of the offsets.
        frames: stacked frames per camera.
        padding: of the crop, pixels on each side.
        threads: of DALI.
        updates: that a call of the engine takes at most.

    Raises:
        MissingExtraError: DALI is not installed.
    """

    source = None

    def __init__(
        self,
        batch_size: int,
        image_keys: Sequence[str],
        device: torch.device | str = "cpu",
        *,
        seed: int = 0,
        frames: int = 1,
        padding: int = PADDING,
        threads: int = 1,
        updates: int = 1,
    ) -> None:
        self.device, self.image_keys = torch.device(device), tuple(image_keys)
        self.crop = DaliCrop(updates * batch_size * frames, padding, threads=threads)
        self.generator = torch.Generator().manual_seed(seed)
        self._reader = BatchReader(batch_size)

    def read(self, source: BatchSource, updates: int = 1) -> Batch:
        """The next batches of ``source``, cropped; what is not an image is valid until the next call."""
        return self._moved(crop_batch(self.crop, self._reader.read(source, updates), self.image_keys, self.generator))

    def blank(self, source: BatchSource, updates: int = 1) -> Batch:
        """A batch of zeros like those of ``source``."""
        return self._moved(self._reader.blank(source, updates))

    def close(self) -> None:
        """Nothing to give back."""

    def _moved(self, batch: Batch) -> Batch:
        return {
            name: self._moved(value) if isinstance(value, dict) else value.to(self.device)
            for name, value in batch.items()
        }
