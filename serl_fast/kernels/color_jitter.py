"""Colour jitter: brightness, contrast and saturation of every image multiplied by factors of its own."""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value (ITU-R BT.601)."""


def color_jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, then contrast, then saturation.

    With clip to [0, 255], grey(x) = 0.299 R + 0.587 G + 0.114 B, and its mean over the image:

        x <- clip(b x)
        x <- clip(c x + (1 - c) mean(grey(x)))
        x <- clip(s x + (1 - s) grey(x))

    and at the end x is rounded; a compiled pass may round a value near a half the other way. Factors of 1 leave the
    image as it is.

    Args:
        images: uint8 [B, H, W, 3] or [B, T, H, W, 3], RGB.
        factors: float [B, 3]: b, c and s, not negative; those of a sample hold for all its frames.

    Returns:
        uint8, shaped like ``images``.

    Raises:
        ValueError: the shapes do not fit.

    Source: torchvision's ``ColorJitter`` on float images, in this fixed order and without hue.
    """
    if images.dim() not in (4, 5) or images.shape[-1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; color_jitter takes [B, (T,) H, W, 3]")
    if factors.shape != (images.shape[0], 3):
        raise ValueError(
            f"factors have shape {tuple(factors.shape)}; images {tuple(images.shape)} take ({images.shape[0]}, 3)"
        )
    ones = (1,) * (images.dim() - 1)
    brightness, contrast, saturation = (factor.reshape(-1, *ones) for factor in factors.unbind(1))  # [B, 1, ...]
    x = (brightness * images.float()).clamp(0, 255)
    mean = _grey(x).mean((-3, -2), keepdim=True)
    x = (contrast * x + (1 - contrast) * mean).clamp(0, 255)
    x = (saturation * x + (1 - saturation) * _grey(x)).clamp(0, 255)
    return x.round().to(torch.uint8)


def _grey(x: Tensor) -> Tensor:
    """[..., 3] -> [..., 1]."""
    red, green, blue = x.unbind(-1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(-1)
