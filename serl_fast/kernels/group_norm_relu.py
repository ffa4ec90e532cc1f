"""GroupNorm, an optional residual and ReLU in one kernel, for channels-last activations; inference only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from serl_fast.kernels.choice import HAS_TRITON, uses_triton

if TYPE_CHECKING:
    triton: Any
    tl: Any
elif HAS_TRITON:
    import triton
    import triton.language as tl

LARGEST_HELD = 16384
"""Values of one group that a program holds in registers (32 float32 in each of 512 threads); a larger group is read
a second time."""
_PIECE = 8192


def group_norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    residual: Tensor | None = None,
    *,
    relu: bool = True,
) -> Tensor:
    """relu(GroupNorm(x) + residual); Triton on CUDA where no gradient is recorded, plain PyTorch elsewhere.

    y = weight_c (x - mean_g) / sqrt(var_g + eps) + bias_c, mean and (biased) variance of a sample's group of C / groups
    consecutive channels over all positions, in float32 whatever the inputs' type.

    Args:
        x: float32, bfloat16 or float16 [N, C, H, W].
        weight: float [C].
        bias: float [C].
        groups: a divisor of C.
        eps: added to the variance.
        residual: shaped like ``x``, added before the ReLU.
        relu: whether there is one.

    Returns:
        [N, C, H, W] of the type of ``x``. Triton's is channels_last.

    Raises:
        ValueError: the shapes do not fit.

    Source: Wu & He 2018, equations 1 and 2.
    """
    if x.dim() != 4 or groups < 1 or x.shape[1] % groups or weight.shape != bias.shape or weight.shape != x.shape[1:2]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}; group_norm_relu "
            f"takes [N, C, H, W], [C] and [C] with C a multiple of groups = {groups}"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}; it must be that of x, {tuple(x.shape)}")
    fused = uses_triton(x) and not torch.is_grad_enabled()
    function = group_norm_relu_operator if fused else group_norm_relu_reference
    output: Tensor = function(x, weight, bias, groups, eps, residual, relu)
    return output


def group_norm_relu_reference(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, residual: Tensor | None, relu: bool
) -> Tensor:
    """:func:`group_norm_relu` in plain PyTorch; in float32, rounded once at the end."""
    y = F.group_norm(x.float(), groups, weight.float(), bias.float(), eps)
    if residual is not None:
        y = residual.float() + y
    return (F.relu(y) if relu else y).to(x.dtype)


def group_norm_relu_triton(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, residual: Tensor | None, relu: bool
) -> Tensor:
    """:func:`group_norm_relu` as one Triton kernel, one program for each group of each sample.

    Bytes moved: x (and the residual) read once, the output written once: 4 N C H W in bfloat16, 6 N C H W with a
    residual. A group of more than :data:`LARGEST_HELD` values is read twice, in pieces; the second time it comes from
    the L2 cache as long as the groups that run at once fit there (ResNet-10's first norm: 128 KiB a group in
    bfloat16). What is not channels_last is copied first. On the CPU the kernel runs only in Triton's interpreter
    (TRITON_INTERPRET=1). Not yet run on a CUDA device.
    """
    count, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    output = torch.empty_like(x, memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    group_width = channels // groups
    columns = triton.next_power_of_2(group_width)
    rows = triton.next_power_of_2(height * width)
    held = rows * columns <= LARGEST_HELD
    if not held:
        rows = max(_PIECE // columns, 1)
    if x.numel():
        with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments are on
            _group_norm_kernel[(count * groups,)](
                x,
                x if residual is None else residual,
                weight.contiguous(),
                bias.contiguous(),
                output,
                eps,
                POSITIONS=height * width,
                GROUPS=groups,
                WIDTH=group_width,
                ROWS=rows,
                COLUMNS=columns,
                HELD=held,
                RESIDUAL=residual is not None,
                RELU=relu,
                num_warps=min(max(rows * columns // 1024, 4), 16),
            )
    return output


# An operator, not a call of the kernel: compilers keep its place and need not look inside. Where no other
# implementation is registered, the reference runs.
group_norm_relu_operator = torch.library.custom_op(
    "serl_fast::group_norm_relu",
    lambda *arguments: group_norm_relu_reference(*arguments).contiguous(memory_format=torch.channels_last),
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, int groups, float eps, Tensor? residual, bool relu) -> Tensor",
)
group_norm_relu_operator.register_fake(
    lambda x, weight, bias, groups, eps, residual, relu: torch.empty_like(x, memory_format=torch.channels_last)
)
if HAS_TRITON:
    group_norm_relu_operator.register_kernel("cuda", group_norm_relu_triton)


if HAS_TRITON:

    @triton.jit  # type: ignore[untyped-decorator]
    def _group_norm_kernel(  # type: ignore[no-untyped-def]
        x,
        residual,
        weight,
        bias,
        output,
        eps,
        POSITIONS: tl.constexpr,
        GROUPS: tl.constexpr,
        WIDTH: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        HELD: tl.constexpr,
        RESIDUAL: tl.constexpr,
        RELU: tl.constexpr,
    ):
        # A group is WIDTH consecutive channels at each of the positions, which are GROUPS * WIDTH values apart. int32
        # counts the values of a sample; those of the whole tensor may be more.
        sample = (tl.program_id(0) // GROUPS).to(tl.int64)
        x += sample * POSITIONS * (GROUPS * WIDTH)
        residual += sample * POSITIONS * (GROUPS * WIDTH)
        output += sample * POSITIONS * (GROUPS * WIDTH)
        channel = (tl.program_id(0) % GROUPS) * WIDTH + tl.arange(0, COLUMNS)[None, :]
        in_group = tl.arange(0, COLUMNS)[None, :] < WIDTH
        scale = tl.load(weight + channel, mask=in_group, other=0).to(tl.float32)
        shift = tl.load(bias + channel, mask=in_group, other=0).to(tl.float32)
        position = tl.arange(0, ROWS)[:, None]
        if HELD:
            inside = (position < POSITIONS) & in_group
            place = position * (GROUPS * WIDTH) + channel
            value = tl.load(x + place, mask=inside, other=0).to(tl.float32)
            mean = tl.sum(tl.sum(value, axis=1), axis=0) / (POSITIONS * WIDTH)
            value = tl.where(inside, value - mean, 0.0)
            variance = tl.sum(tl.sum(value * value, axis=1), axis=0) / (POSITIONS * WIDTH)
            value = value * (1.0 / tl.sqrt(variance + eps)) * scale + shift
            if RESIDUAL:
                value += tl.load(residual + place, mask=inside, other=0).to(tl.float32)
            if RELU:
                value = tl.maximum(value, 0.0)
            tl.store(output + place, value.to(output.dtype.element_ty), mask=inside)
        else:
            # Statistics piece by piece, joined as Chan, Golub & LeVeque (1983) join them: no difference of large sums.
            mean = 0.0
            squares = 0.0
            seen = 0.0
            for first in range(0, POSITIONS, ROWS):
                inside = (first + position < POSITIONS) & in_group
                place = (first + position) * (GROUPS * WIDTH) + channel
                value = tl.load(x + place, mask=inside, other=0).to(tl.float32)
                new = tl.sum(tl.sum(inside.to(tl.float32), axis=1), axis=0)
                piece_mean = tl.sum(tl.sum(value, axis=1), axis=0) / new
                centred = tl.where(inside, value - piece_mean, 0.0)
                delta = piece_mean - mean
                squares += tl.sum(tl.sum(centred * centred, axis=1), axis=0) + delta * delta * seen * new / (seen + new)
                mean += delta * new / (seen + new)
                seen += new
            factor = 1.0 / tl.sqrt(squares / seen + eps)
            for first in range(0, POSITIONS, ROWS):
                inside = (first + position < POSITIONS) & in_group
                place = (first + position) * (GROUPS * WIDTH) + channel
                value = (tl.load(x + place, mask=inside, other=0).to(tl.float32) - mean) * factor * scale + shift
                if RESIDUAL:
                    value += tl.load(residual + place, mask=inside, other=0).to(tl.float32)
                if RELU:
                    value = tl.maximum(value, 0.0)
                tl.store(output + place, value.to(output.dtype.element_ty), mask=inside)
