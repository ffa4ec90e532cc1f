"""Random crop: pad by repeating the edge, crop back to the original size at a given offset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from serl_fast.kernels.choice import HAS_TRITON, uses_triton

if TYPE_CHECKING:
    triton: Any
    tl: Any
elif HAS_TRITON:
    import triton
    import triton.language as tl

PADDING = 4
_BLOCK = 2048


def random_crop(images: Tensor, offsets: Tensor, padding: int = PADDING) -> Tensor:
    """Shift each image by its offset, repeating the edge; Triton on CUDA, plain PyTorch elsewhere.

    out[b, i, j] = images[b, clip(i + y_b - padding, 0, H - 1), clip(j + x_b - padding, 0, W - 1)]

    On CUDA a compiler meets one opaque operator, so a compiled function stays one graph.

    Args:
        images: uint8 [B, H, W, C] or [B, T, H, W, C].
        offsets: integers [B, 2], (y, x) in 0 to 2 * padding; ``padding`` leaves the image as it is. The same
            offsets for all cameras and frames of a sample, or [B, T, 2] for frames of their own.
        padding: pixels on each side.

    Returns:
        uint8, shaped like ``images``.

    Raises:
        ValueError: the shapes do not fit.

    Source: DrQ (Yarats et al. 2021); ``serl_launcher/vision/data_augmentations.py``.
    """
    frames, corners = flatten(images, offsets)
    crop = random_crop_operator if uses_triton(images) else random_crop_reference
    cropped: Tensor = crop(frames, corners, padding)
    return cropped.view(images.shape)


def random_crop_reference(images: Tensor, offsets: Tensor, padding: int = PADDING) -> Tensor:
    """:func:`random_crop` in plain PyTorch: one gather with clamped indices, no data-dependent shape."""
    frames, corners = flatten(images, offsets)
    index = torch.arange(frames.shape[0], device=images.device)
    return gather_cropped(frames, index, corners, padding).view(images.shape)


def gather_cropped(frames: Tensor, index: Tensor, corners: Tensor, padding: int) -> Tensor:
    """The crops of ``frames[index]`` in plain PyTorch.

    Args:
        frames: uint8 [F, H, W, C].
        index: int64 [N].
        corners: integers [N, 2].
        padding: pixels on each side.

    Returns:
        uint8 [N, H, W, C].
    """
    height, width = frames.shape[1:3]
    shift = corners.to(torch.int64) - padding  # [N, 2]
    rows = (torch.arange(height, device=frames.device) + shift[:, :1]).clamp(0, height - 1)  # [N, H]
    columns = (torch.arange(width, device=frames.device) + shift[:, 1:]).clamp(0, width - 1)  # [N, W]
    return frames[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_crop_triton(images: Tensor, offsets: Tensor, padding: int = PADDING) -> Tensor:
    """:func:`random_crop` as one Triton kernel.

    Bytes moved: N H W C read, N H W C written and 2 N offsets read, N = B * T; nothing padded is ever stored.
    The reference also reads int64 indices. On the CPU the kernel runs only in Triton's interpreter
    (TRITON_INTERPRET=1).
    """
    frames, corners = flatten(images.contiguous(), offsets.contiguous())
    corners = corners.contiguous()
    count, height, width, channels = frames.shape
    output = torch.empty_like(frames, memory_format=torch.contiguous_format)
    size = height * width * channels
    if count and size:
        grid = (count, triton.cdiv(size, _BLOCK))
        with torch.cuda.device_of(frames):  # Triton launches on the current device, whatever its arguments are on
            _crop_kernel[grid](frames, corners, output, height, width, channels, padding, size, BLOCK=_BLOCK)
    return output.view(images.shape)


# An operator, not a call of the kernel: compilers keep its place and need not look inside. Where no other
# implementation is registered, the reference runs.
random_crop_operator = torch.library.custom_op(
    "serl_fast::random_crop",
    random_crop_reference,
    mutates_args=(),
    schema="(Tensor images, Tensor offsets, int padding) -> Tensor",
)
random_crop_operator.register_fake(
    lambda images, offsets, padding: torch.empty_like(images, memory_format=torch.contiguous_format)
)
if HAS_TRITON:
    random_crop_operator.register_kernel("cuda", random_crop_triton)


def flatten(images: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Images as [N, H, W, C] and offsets as [N, 2], N = B * T; see :func:`random_crop`."""
    if images.dim() not in (4, 5):
        raise ValueError(f"images have shape {tuple(images.shape)}; random_crop takes [B, H, W, C] or [B, T, H, W, C]")
    leading = images.shape[:-3]
    if len(leading) == 2 and offsets.dim() == 2:
        offsets = offsets.unsqueeze(1).expand(-1, leading[1], -1)
    if offsets.shape != (*leading, 2):
        raise ValueError(
            f"offsets have shape {tuple(offsets.shape)}; images {tuple(images.shape)} take ({images.shape[0]}, 2)"
        )
    return images.reshape(-1, *images.shape[-3:]), offsets.reshape(-1, 2)


if HAS_TRITON:

    @triton.jit  # type: ignore[untyped-decorator]
    def _crop_kernel(images, offsets, output, height, width, channels, padding, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        # One program writes BLOCK consecutive bytes of one image, so writes are coalesced; reads are, up to
        # the shift.
        image = tl.program_id(0).to(tl.int64)
        element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = element < size
        row_bytes = width * channels
        row = element // row_bytes
        column = (element % row_bytes) // channels
        channel = element % channels
        y = tl.load(offsets + 2 * image).to(tl.int32) - padding
        x = tl.load(offsets + 2 * image + 1).to(tl.int32) - padding
        source_row = tl.minimum(tl.maximum(row + y, 0), height - 1)
        source_column = tl.minimum(tl.maximum(column + x, 0), width - 1)
        source = source_row * row_bytes + source_column * channels + channel
        value = tl.load(images + image * size + source, mask=inside)
        tl.store(output + image * size + element, value, mask=inside)
