"""Image files -> equally large images, augmented, by NVIDIA DALI; the reference is ``data.image_files``.

| step | DALI on the CPU against the reference, of 255 |
|---|---|
| decode, PNG | equal |
| decode, JPEG | equal, where Pillow has libjpeg-turbo; else up to 2 |
| resize | up to 1; in the outermost pixels up to 20, for DALI repeats the border where PyTorch has nothing beyond it |
| jitter | up to 1 |
| crop | equal |

Only 8-bit RGB and grey files go to DALI. Batches with others (palette, alpha, CMYK, EXIF rotation), or with a file that
it does not read, are decoded by the reference. Clips are read in ``data.dali_clips``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from serl_fast.data.image_files import ImageFile, content_of, decode_images, is_plain, name_of
from serl_fast.errors import MissingExtraError, require
from serl_fast.kernels.color_jitter import LUMA

Backend = Literal["auto", "dali", "torch"]

ImageDecoder = Callable[..., Tensor]
"""(files, factors=None, offsets=None) -> uint8 [N, *size, 3], as :func:`decode_images` without ``size``."""

Decoder = TypeVar("Decoder")


class DaliImages:
    """:func:`decode_images` by DALI, within the tolerances that the module states.

    Args:
        size: (height, width) px of the result.
        largest_batch: files of one call at most.
        padding: of the crop, px on each side.
        threads: of DALI.
        device_id: number of the CUDA device that decodes (JPEG in its own hardware, where it has that) and computes;
            None for the CPU. Results lie in the host's memory. Not yet run on a CUDA device.

    Raises:
        MissingExtraError: DALI is not installed.
    """

    def __init__(
        self,
        size: tuple[int, int],
        largest_batch: int,
        *,
        padding: int = 0,
        threads: int = 1,
        device_id: int | None = None,
    ) -> None:
        self.size, self.largest_batch, self.padding = size, largest_batch, padding
        self._threads, self._device_id = threads, device_id
        self._pipeline = self._build()

    def _build(self) -> Any:
        dali = require("nvidia.dali", "dali")
        fn, types = require("nvidia.dali.fn", "dali"), dali.types
        # Without a device nothing of CUDA is loaded. One batch in flight: a call gives what belongs to it.
        pipeline = dali.Pipeline(self.largest_batch, self._threads, self._device_id, prefetch_queue_depth=1)
        with pipeline:
            files = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
            device = "cpu" if self._device_id is None else "mixed"
            x = fn.decoders.image(files, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True)
            x = fn.resize(x, size=list(self.size), interp_type=types.INTERP_LINEAR, antialias=True)
            x = _jittered(dali, fn, types, x)
            maps = fn.external_source(name="maps", dtype=types.FLOAT, ndim=2)
            # Coordinates outside of the image are clamped to its border, as long as no fill value is given.
            x = fn.warp_affine(x, matrix=maps, inverse_map=True, interp_type=types.INTERP_NN)
            pipeline.set_outputs(x)
        pipeline.build()
        return pipeline

    def __call__(
        self, files: Sequence[ImageFile], factors: Tensor | None = None, offsets: Tensor | None = None
    ) -> Tensor:
        """As :func:`decode_images`, whatever DALI itself reads of it.

        Raises:
            DatasetError: a file is no such image.
            ValueError: there are more than ``largest_batch``, or factors or offsets have another shape.
        """
        count = len(files)
        if not 0 < count <= self.largest_batch:
            raise ValueError(f"there are {count} files; this pipeline takes 1 to {self.largest_batch}")
        for name, given, width in (("factors", factors, 3), ("offsets", offsets, 2)):
            if given is not None and given.shape != (count, width):
                raise ValueError(f"{name} have shape {tuple(given.shape)}; {count} files take ({count}, {width})")
        contents = [content_of(file) for file in files]
        if all(is_plain(content, name_of(files[index], index)) for index, content in enumerate(contents)):
            try:
                return self._run(contents, factors, offsets)
            except RuntimeError as error:
                if "decoders" not in str(error):
                    raise
                # A file that DALI does not read: the reference does, or says what is wrong with it.
                self._pipeline = self._build()  # after an error a pipeline is of no more use
        return decode_images(files, self.size, factors, offsets, padding=self.padding)

    def _run(self, files: Sequence[bytes], factors: Tensor | None, offsets: Tensor | None) -> Tensor:
        count = len(files)
        jitter = np.ones((count, 3), np.float32) if factors is None else factors.numpy().astype(np.float32)
        maps = np.zeros((count, 2, 3), np.float32)  # out[i, j] = in[i + y - padding, j + x - padding]
        maps[:, 0, 0] = maps[:, 1, 1] = 1.0
        if offsets is not None:
            maps[:, :, 2] = offsets.numpy()[:, ::-1] - self.padding
        luma = np.array(LUMA, np.float32)
        saturation = jitter[:, 2, None, None]  # s I + (1 - s) [luma, luma, luma]
        matrices = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * luma
        self._pipeline.feed_input("files", [np.frombuffer(content, np.uint8) for content in files])
        self._pipeline.feed_input("brightness", np.ascontiguousarray(jitter[:, 0]))
        self._pipeline.feed_input("contrast", np.ascontiguousarray(jitter[:, 1]))
        self._pipeline.feed_input("matrices", matrices.astype(np.float32))
        self._pipeline.feed_input("maps", maps)
        (output,) = self._pipeline.run()
        images: Any = (output if self._device_id is None else output.as_cpu()).as_array()
        return torch.from_numpy(images.copy())


def _jittered(dali: Any, fn: Any, types: Any, images: Any) -> Any:
    """:func:`serl_fast.kernels.color_jitter.color_jitter` as DALI's operators; factors of 1 change nothing."""
    brightness = fn.external_source(name="brightness", dtype=types.FLOAT, ndim=0)
    contrast = fn.external_source(name="contrast", dtype=types.FLOAT, ndim=0)
    matrices = fn.external_source(name="matrices", dtype=types.FLOAT, ndim=2)
    clamp = dali.math.clamp
    x = clamp(fn.cast(images, dtype=types.FLOAT) * brightness, 0.0, 255.0)
    grey = fn.coord_transform(x, M=list(LUMA))  # [H, W, 1]
    mean = fn.reductions.mean(grey)
    x = clamp(x * contrast + (1.0 - contrast) * mean, 0.0, 255.0)
    x = clamp(fn.coord_transform(x, M=matrices), 0.0, 255.0)
    return fn.reinterpret(fn.cast(x, dtype=types.UINT8), layout="HWC")


def image_decoder(
    backend: Backend,
    size: tuple[int, int],
    largest_batch: int,
    *,
    padding: int = 0,
    threads: int = 1,
    device_id: int | None = None,
) -> tuple[ImageDecoder, str]:
    """What decodes, and one line that says so.

    Args:
        backend: "dali"; "torch" for the reference; "auto" for DALI where it is installed.
        size: as in :class:`DaliImages`, like all that follows.
        largest_batch: see there.
        padding: see there.
        threads: see there.
        device_id: see there.

    Raises:
        MissingExtraError: DALI was asked for and is not installed.
        ValueError: there is no such backend.
    """

    def dali() -> ImageDecoder:
        return DaliImages(size, largest_batch, padding=padding, threads=threads, device_id=device_id)

    def reference(files: Sequence[ImageFile], factors: Tensor | None = None, offsets: Tensor | None = None) -> Tensor:
        return decode_images(files, size, factors, offsets, padding=padding)

    where = "the CPU" if device_id is None else f"CUDA device {device_id}"
    by_reference = "image files are decoded by Pillow and PyTorch"
    return chosen(backend, dali, f"image files are decoded by DALI on {where}", reference, by_reference)


def chosen(
    backend: Backend, dali: Callable[[], Decoder], by_dali: str, reference: Decoder, by_reference: str
) -> tuple[Decoder, str]:
    """DALI or the reference, and one line that says which.

    Args:
        backend: see :func:`image_decoder`.
        dali: builds what decodes by DALI.
        by_dali: the line for it.
        reference: what decodes without DALI.
        by_reference: the line for it; the reason is added where DALI is missing.

    Raises:
        MissingExtraError: DALI was asked for and is not installed.
        ValueError: there is no such backend.
    """
    if backend not in ("auto", "dali", "torch"):
        raise ValueError(f"image backend {backend!r} is not known; choose auto, dali or torch")
    if backend == "torch":
        return reference, by_reference
    try:
        return dali(), by_dali
    except MissingExtraError as error:
        if backend == "dali":
            raise
        return reference, f"{by_reference}, without DALI: {error}"
