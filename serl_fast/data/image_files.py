"""Image files -> equally large images, augmented: by Pillow and PyTorch, the reference of ``data.dali_images``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serl_fast.data.episodes import DatasetError
from serl_fast.errors import require
from serl_fast.kernels.color_jitter import color_jitter
from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks.resnet10 import resize_images

MAX_PIXELS = 50_000_000
MAX_BYTES = 4 * MAX_PIXELS
EXIF_ORIENTATION = 0x0112

ImageFile = Path | bytes
"""Where a JPEG or PNG file is, or its content."""


def decode_images(
    files: Sequence[ImageFile],
    size: tuple[int, int],
    factors: Tensor | None = None,
    offsets: Tensor | None = None,
    *,
    padding: int = 0,
) -> Tensor:
    """Decode to RGB, resize (bilinear, antialiased), jitter colours and crop at random, in this order.

    Args:
        files: N JPEG or PNG files, at least one.
        size: (height, width) px of the result.
        factors: float [N, 3] of brightness, contrast and saturation, see
            :func:`serl_fast.kernels.color_jitter.color_jitter`; None for no jitter.
        offsets: integers [N, 2], (y, x) in 0 to 2 * padding, see :func:`serl_fast.kernels.random_crop.random_crop`;
            None for no crop.
        padding: of the crop, px on each side.

    Returns:
        uint8 [N, *size, 3].

    Raises:
        DatasetError: a file is no such image; the message says which and why.
        ValueError: factors or offsets have another shape.
    """
    decoded = (_decode(content_of(file), name_of(file, index)) for index, file in enumerate(files))
    # Each is resized before the next one is decoded: photographs are much larger than what is kept of them.
    images = torch.cat([resized(torch.from_numpy(image)[None], size) for image in decoded])
    if factors is not None:
        images = color_jitter(images, factors)
    return images if offsets is None else random_crop(images, offsets, padding)


def content_of(file: ImageFile) -> bytes:
    """The bytes of a file.

    Raises:
        DatasetError: it can not be read, or is larger than image files are.
    """
    if isinstance(file, bytes):
        return file
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{file}: {file.stat().st_size:,} bytes; accepted: image files of up to {MAX_BYTES:,}")
        return file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{file}: no readable image ({type(error).__name__}: {error})") from None


def name_of(file: ImageFile, index: int) -> str:
    """What messages call a file."""
    return f"image {index}" if isinstance(file, bytes) else str(file)


def is_plain(content: bytes, name: str) -> bool:
    """Whether a file is 8-bit RGB or grey and shown as it stands: no palette, no transparency, no rotation.

    Raises:
        DatasetError: it is no JPEG or PNG file, or claims too much.
    """
    with _open(content, name) as image:
        if image.mode not in ("RGB", "L") or "transparency" in image.info:
            return False
        if image.format == "PNG":  # there its position is free, and to ask Pillow for it would decode the pixels
            return b"eXIf" not in content
        return bool(image.getexif().get(EXIF_ORIENTATION, 1) == 1)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """As a classifier resizes what it is shown: uint8 [N, H, W, 3] -> [N, *size, 3]."""
    if tuple(images.shape[1:3]) == tuple(size):
        return images
    x = resize_images(images, size).round().clamp(0, 255)
    return x.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def _open(content: bytes, name: str) -> Any:
    """A Pillow image whose header is checked and whose pixels are not yet decoded."""
    library = require("PIL.Image", "data")
    try:
        image = library.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    except (OSError, ValueError, SyntaxError, library.DecompressionBombError) as error:
        raise DatasetError(f"{name}: no readable image ({type(error).__name__}: {error})") from None
    if image.width * image.height > MAX_PIXELS:
        raise DatasetError(f"{name}: {image.width} x {image.height} px; accepted: up to {MAX_PIXELS:,} pixels")
    if image.mode.startswith(("I", "F")):
        raise DatasetError(f"{name}: more than 8 bits per channel (mode {image.mode}); accepted: 8 bits")
    return image


def _decode(content: bytes, name: str) -> np.ndarray:
    """One image, uint8 [H, W, 3], turned as a viewer shows it."""
    library = require("PIL.Image", "data")
    with _open(content, name) as image:
        try:
            turned = require("PIL.ImageOps", "data").exif_transpose(image)
            return np.array(turned.convert("RGB"))
        except (OSError, ValueError, SyntaxError, library.DecompressionBombError) as error:
            raise DatasetError(f"{name}: no readable image ({type(error).__name__}: {error})") from None
