"""Dropout as masks that are drawn outside of the networks and multiplied inside."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DROPOUT_RATE = 0.1


def dropout_mask(uniform: Tensor, rate: float = DROPOUT_RATE) -> Tensor:
    """The mask that belongs to uniform noise: 0 with probability ``rate``, else 1 / (1 - rate).

    Args:
        uniform: drawn from [0, 1), any shape.
        rate: probability of dropping, 0 <= rate < 1.

    Returns:
        float32 of the same shape.
    """
    return (uniform >= rate).float() / (1.0 - rate)


def draw_dropout_mask(
    shape: Sequence[int], rate: float, generator: torch.Generator, device: torch.device | str
) -> Tensor:
    """A random :func:`dropout_mask`: each entry dropped by itself, with a probability within 2^-17 of ``rate``.

    Sixteen random bits decide on an entry, where ``torch.rand`` would draw 32: the masks of two cameras are half a
    million entries, which a CPU draws one after the other.

    Args:
        shape: of the mask.
        rate: probability of dropping, 0 <= rate < 1.
        generator: of ``device``.
        device: where the mask is made.

    Returns:
        float32 of ``shape``: 0, or 1 / (1 - rate).
    """
    size = math.prod(shape)
    words = torch.empty(-(-size // 4), dtype=torch.int64, device=device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:size].view(*shape)
    dropped = min(round(rate * 2**16), 2**16 - 1) - 2**15  # bits below are
    # bits >= dropped by arithmetic that float32 does exactly: comparison and choice take a CPU four times as long.
    return bits.float().sub_(dropped - 1).clamp_(0.0, 1.0).mul_(1.0 / (1.0 - rate))
