"""From stored bytes to a network's input in one pass: gather, random crop, normalise, cast, layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from serl_fast.kernels.choice import HAS_TRITON, uses_triton
from serl_fast.kernels.random_crop import PADDING, gather_cropped

if TYPE_CHECKING:
    triton: Any
    tl: Any
elif HAS_TRITON:
    import triton
    import triton.language as tl

_BLOCK = 2048
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def crop_normalize(
    images: Tensor | Sequence[Tensor],
    offsets: Tensor | Sequence[Tensor] | None,
    mean: Tensor,
    std: Tensor,
    *,
    rows: Tensor | Sequence[Tensor] | None = None,
    padding: int = PADDING,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Images, cropped at random and normalised, as a convolution takes them; Triton on CUDA, PyTorch elsewhere.

    out[n, c, i, j] = (images[r_n, clip(i + y_n - padding, 0, H - 1), clip(j + x_n - padding, 0, W - 1), c] - mean[c])
    / std[c], computed in float32 and rounded once to ``dtype``; r_n = n without ``rows``. The crop is that of
    :func:`serl_fast.kernels.random_crop.random_crop`. On CUDA a compiler meets one opaque operator, so a compiled
    function stays one graph. No gradient passes.

    Args:
        images: uint8 [B, (T,) H, W, C], or with ``rows`` a store of frames [F, H, W, C]. A sequence of them (cameras;
            observations and next observations) of one H, W, C is encoded in one go, without being concatenated first.
        offsets: integers [B, 2], (y, x) in 0 to 2 * padding, or [B, T, 2] for frames of their own; a sequence, one for
            each of ``images``. None: no crop.
        mean: float32 [C], in units of the stored bytes (255 * ImageNet's, say).
        std: float32 [C], likewise.
        rows: int64 [B] or [B, T], which frames of the store: repeated and in any order; a sequence, one for each of
            ``images``. Not checked against F on CUDA, where looking would wait for the device.
        padding: pixels on each side.
        dtype: float32, bfloat16 or float16.

    Returns:
        ``dtype`` [N, C, H, W] with N = B * T of all images in their order, in channels_last memory: its permutation to
        [N, H, W, C] is contiguous.

    Raises:
        ValueError: shapes do not fit, images are not uint8, or the dtype is not one of the three.
    """
    sources = [images] if isinstance(images, Tensor) else list(images)
    picked = [rows] if isinstance(rows, Tensor) else list(rows or ())
    _check(sources, picked, mean, std, dtype)
    leading = [row.shape for row in picked] if picked else [image.shape[:-3] for image in sources]
    if offsets is None:
        given = [torch.zeros(*shape, 2, dtype=torch.int64, device=sources[0].device) for shape in leading]
        padding = 0
    else:
        given = [offsets] if isinstance(offsets, Tensor) else list(offsets)
        if len(given) != len(sources):
            raise ValueError(f"there are {len(given)} tensors of offsets for {len(sources)} of images")
    corners = [_corners(each, shape) for each, shape in zip(given, leading, strict=True)]
    flat = [image.reshape(-1, *image.shape[-3:]) for image in sources]
    function = crop_normalize_operator if uses_triton(sources[0]) else crop_normalize_reference
    output: Tensor = function(flat, corners, [row.reshape(-1) for row in picked], mean, std, padding, dtype)
    return output.permute(0, 3, 1, 2)


def crop_normalize_reference(
    images: Sequence[Tensor],
    offsets: Sequence[Tensor],
    rows: Sequence[Tensor],
    mean: Tensor,
    std: Tensor,
    padding: int,
    dtype: torch.dtype,
) -> Tensor:
    """:func:`crop_normalize` in plain PyTorch, on flat arguments.

    Args:
        images: uint8 [F, H, W, C] each.
        offsets: integers [N, 2] each.
        rows: int64 [N] each, or empty for N = F and every frame in its place.
        mean: float32 [C].
        std: float32 [C].
        padding: pixels on each side.
        dtype: of the result.

    Returns:
        ``dtype`` [sum of N, H, W, C], contiguous.
    """
    device = images[0].device
    index = rows or [torch.arange(image.shape[0], device=device) for image in images]
    cropped = [gather_cropped(*each, padding) for each in zip(images, index, offsets, strict=True)]
    joint = cropped[0] if len(cropped) == 1 else torch.cat(cropped)
    return ((joint.float() - mean) / std).to(dtype)


def crop_normalize_triton(
    images: Sequence[Tensor],
    offsets: Sequence[Tensor],
    rows: Sequence[Tensor],
    mean: Tensor,
    std: Tensor,
    padding: int,
    dtype: torch.dtype,
) -> Tensor:
    """:func:`crop_normalize_reference` as one Triton kernel for each tensor of images, all into one output.

    Bytes moved for N images: N H W C read, and N H W C of ``dtype`` written (2 N H W C in bfloat16), plus 16 N of
    offsets and 8 N of rows. The reference reads int64 indices and writes, then reads, the crops in bytes, their
    concatenation, and two float32 images: about 30 N H W C. Equal to the reference to the bit in float32. On the CPU
    the kernel runs only in Triton's interpreter (TRITON_INTERPRET=1). Not yet run on a CUDA device.
    """
    height, width, channels = images[0].shape[1:]
    counts = [corners.shape[0] for corners in offsets]
    assert rows or counts == [image.shape[0] for image in images], "frames of a store without rows"
    output = torch.empty(sum(counts), height, width, channels, dtype=dtype, device=images[0].device)
    mean, std = mean.contiguous(), std.contiguous()
    size, start = height * width * channels, 0
    with torch.cuda.device_of(output):  # Triton launches on the current device, whatever its arguments are on
        for k, (image, count) in enumerate(zip(images, counts, strict=True)):
            part = output[start : start + count]
            start += count
            if not count or not size:
                continue
            corners = offsets[k].contiguous()
            index = rows[k].contiguous() if rows else corners  # unused without rows
            _crop_normalize_kernel[(count, triton.cdiv(size, _BLOCK))](
                image.contiguous(),
                index,
                corners,
                mean,
                std,
                part,
                padding,
                image.shape[0],
                HEIGHT=height,
                WIDTH=width,
                CHANNELS=channels,
                GATHER=bool(rows),
                BLOCK=_BLOCK,
            )
    return output


# An operator, not a call of the kernel: compilers keep its place and need not look inside. Where no other
# implementation is registered, the reference runs.
crop_normalize_operator = torch.library.custom_op(
    "serl_fast::crop_normalize",
    crop_normalize_reference,
    mutates_args=(),
    schema="(Tensor[] images, Tensor[] offsets, Tensor[] rows, Tensor mean, Tensor std, int padding,"
    " ScalarType dtype) -> Tensor",
)


def _empty_output(
    images: Sequence[Tensor],
    offsets: Sequence[Tensor],
    rows: Sequence[Tensor],
    mean: Tensor,
    std: Tensor,
    padding: int,
    dtype: torch.dtype,
) -> Tensor:
    """Shape and type of the output, for a compiler."""
    count = sum(corners.shape[0] for corners in offsets)
    return images[0].new_empty((count, *images[0].shape[1:]), dtype=dtype)


crop_normalize_operator.register_fake(_empty_output)
if HAS_TRITON:
    crop_normalize_operator.register_kernel("cuda", crop_normalize_triton)


def _check(images: Sequence[Tensor], rows: Sequence[Tensor], mean: Tensor, std: Tensor, dtype: torch.dtype) -> None:
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype}; crop_normalize makes {', '.join(map(str, _DTYPES))}")
    if not images:
        raise ValueError("there are no images; crop_normalize takes at least one tensor of them")
    if rows and len(rows) != len(images):
        raise ValueError(f"there are {len(rows)} tensors of rows for {len(images)} of images")
    dims = (4,) if rows else (4, 5)
    for image in images:
        if image.dtype != torch.uint8 or image.dim() not in dims or image.shape[-3:] != images[0].shape[-3:]:
            accepted = "[F, H, W, C] with rows" if rows else "[B, H, W, C] or [B, T, H, W, C]"
            raise ValueError(
                f"images are {image.dtype} {tuple(image.shape)}; crop_normalize takes torch.uint8 {accepted}, all of "
                f"one height, width and channels, here {tuple(images[0].shape[-3:])}"
            )
    for row in rows:
        if row.dtype != torch.int64 or row.dim() not in (1, 2):
            raise ValueError(f"rows are {row.dtype} {tuple(row.shape)}; they must be torch.int64 [B] or [B, T]")
    for name, value in (("mean", mean), ("std", std)):
        if value.dtype != torch.float32 or value.shape != images[0].shape[-1:]:
            raise ValueError(
                f"{name} is {value.dtype} {tuple(value.shape)}; it must be torch.float32 [{images[0].shape[-1]}]"
            )


def _corners(offsets: Tensor, leading: Sequence[int]) -> Tensor:
    """Offsets of images [*leading, H, W, C] as [N, 2], repeated for the frames of a sample that share theirs."""
    if len(leading) == 2 and offsets.dim() == 2:
        offsets = offsets.unsqueeze(1).expand(-1, leading[1], -1)
    if offsets.shape != (*leading, 2):
        raise ValueError(f"offsets have shape {tuple(offsets.shape)}; images {tuple(leading)} take ({leading[0]}, 2)")
    return offsets.reshape(-1, 2)


if HAS_TRITON:

    @triton.jit  # type: ignore[untyped-decorator]
    def _crop_normalize_kernel(  # type: ignore[no-untyped-def]
        images,
        rows,
        offsets,
        mean,
        std,
        output,
        padding,
        frames,
        HEIGHT: tl.constexpr,
        WIDTH: tl.constexpr,
        CHANNELS: tl.constexpr,
        GATHER: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        # One program writes BLOCK consecutive values of one image. Its shape is known when compiled, so that finding
        # row, column and channel costs multiplications.
        image = tl.program_id(0).to(tl.int64)
        element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = element < HEIGHT * WIDTH * CHANNELS
        row = element // (WIDTH * CHANNELS)
        column = (element // CHANNELS) % WIDTH
        channel = element % CHANNELS
        y = tl.load(offsets + 2 * image).to(tl.int32) - padding
        x = tl.load(offsets + 2 * image + 1).to(tl.int32) - padding
        row = tl.minimum(tl.maximum(row + y, 0), HEIGHT - 1)
        column = tl.minimum(tl.maximum(column + x, 0), WIDTH - 1)
        frame = image
        if GATHER:
            frame = tl.load(rows + image)  # int64: a store of frames has more bytes than int32 counts
            frame = tl.where(frame < 0, frame + frames, frame)  # as PyTorch counts from the end
        images += frame * (HEIGHT * WIDTH * CHANNELS)
        output += image * (HEIGHT * WIDTH * CHANNELS)
        value = tl.load(images + (row * WIDTH + column) * CHANNELS + channel, mask=inside, other=0).to(tl.float32)
        value -= tl.load(mean + channel)
        value = tl.div_rn(value, tl.load(std + channel))  # as PyTorch divides; "/" would be approximate
        tl.store(output + element, value.to(output.dtype.element_ty), mask=inside)
