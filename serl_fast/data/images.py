"""Camera images on their way from a file: decoded without trusting it, and resized."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.errors import require

Images = npt.NDArray[np.uint8]


def resize(images: Images, size: tuple[int, int] | None) -> Images:
    """Images of another size.

    One axis after the other, each rounded: averaged over what a new pixel covers, or interpolated linearly if the image
    grows on one of them.

    Args:
        images: uint8 [N, H, W, C].
        size: (height, width) px; None or their own returns ``images`` itself.

    Returns:
        uint8 [N, height, width, C].
    """
    if size is None or images.shape[1:3] == tuple(size):
        return images
    library = require("PIL.Image", "data")
    height, width = size
    grows = height > images.shape[1] or width > images.shape[2]
    method = library.Resampling.BILINEAR if grows else library.Resampling.BOX
    resized = np.empty((len(images), height, width, images.shape[3]), np.uint8)
    for image, out in zip(images, resized, strict=True):
        if images.shape[3] == 3:
            out[:] = library.fromarray(image).resize((width, height), method)
        else:  # channel by channel: four of them are not always colours with an alpha, by which they would be weighted
            for channel in range(images.shape[3]):
                out[..., channel] = library.fromarray(np.ascontiguousarray(image[..., channel])).resize(
                    (width, height), method
                )
    return resized


def decode(files: Sequence[Any], shape: tuple[int, ...]) -> Images:
    """Decode JPEG or PNG images that must all have the shape that the data set claims.

    The size is read from an image's header before memory is taken for its pixels.

    Args:
        files: contents of N image files, bytes or uint8 [L].
        shape: (H, W, C) or (H, W), px; C is 1, 3 or 4.

    Returns:
        uint8 [N, *shape].

    Raises:
        ValueError: one is no such image; the message says which and why.
    """
    library = require("PIL.Image", "data")
    mode = {(): "L", (1,): "L", (3,): "RGB", (4,): "RGBA"}.get(tuple(shape[2:]))
    if mode is None:
        raise ValueError(f"images of shape {shape} can not be stored as JPEG or PNG; accepted: 1, 3 or 4 channels")
    decoded = np.empty((0, *shape), np.uint8)
    for index, content in enumerate(files):
        try:
            with library.open(io.BytesIO(bytes(content)), formats=("JPEG", "PNG")) as image:
                if (image.height, image.width) != tuple(shape[:2]):
                    raise ValueError(f"is {image.height} x {image.width} px; expected {shape[0]} x {shape[1]}")
                if not index:
                    decoded = np.empty((len(files), *shape), np.uint8)
                decoded[index] = np.asarray(image.convert(mode)).reshape(shape)
        except (OSError, ValueError, SyntaxError, library.DecompressionBombError) as error:
            raise ValueError(f"image {index} {'can not be decoded: ' * isinstance(error, OSError)}{error}") from None
    return decoded
