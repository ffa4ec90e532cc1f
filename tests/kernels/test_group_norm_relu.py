"""GroupNorm, residual and ReLU in one kernel: against PyTorch in float32 and float64, and as CUDA would run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from serl_fast.kernels import group_norm_relu as module
from serl_fast.kernels.group_norm_relu import (
    group_norm_relu,
    group_norm_relu_operator,
    group_norm_relu_reference,
)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, residual, weight, bias."""
    generator = torch.Generator().manual_seed(0)
    x = (1 + 2 * torch.randn(shape, generator=generator)).to(dtype).contiguous(memory_format=torch.channels_last)
    residual = torch.randn(shape, generator=generator).to(dtype)
    return x, residual, 1 + torch.randn(shape[1], generator=generator), torch.randn(shape[1], generator=generator)


def definition(x: Tensor, weight: Tensor, bias: Tensor, groups: int, residual: Tensor | None, relu: bool) -> Tensor:
    """The formula of the docstring, in float64."""
    grouped = x.double().unflatten(1, (groups, -1)).flatten(2)
    mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, correction=0, keepdim=True)
    y = ((grouped - mean) / (variance + 1e-5).sqrt()).view(x.shape)
    y = y * weight.double().view(1, -1, 1, 1) + bias.double().view(1, -1, 1, 1)
    y = y if residual is None else y + residual.double()
    return y.clamp(min=0) if relu else y


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("groups", [1, 4, 12])
def test_the_formula(relu: bool, with_residual: bool, groups: int) -> None:
    x, residual, weight, bias = draw(2, 12, 7, 5)
    given = residual if with_residual else None
    output = group_norm_relu(x, weight, bias, groups, 1e-5, given, relu=relu)
    torch.testing.assert_close(output.double(), definition(x, weight, bias, groups, given, relu), atol=1e-5, rtol=1e-5)


def test_it_has_a_gradient_outside_of_the_kernel() -> None:
    x, residual, weight, bias = (t.requires_grad_() for t in draw(2, 8, 3, 3))
    group_norm_relu(x, weight, bias, 4, 1e-5, residual).sum().backward()
    assert all(t.grad is not None for t in (x, residual, weight, bias))


def test_errors() -> None:
    x, residual, weight, bias = draw(2, 8, 3, 3)
    with pytest.raises(ValueError, match=r"x has shape \(8, 3, 3\)"):
        group_norm_relu(x[0], weight, bias, 4, 1e-5)
    with pytest.raises(ValueError, match="multiple of groups = 3"):
        group_norm_relu(x, weight, bias, 3, 1e-5)
    with pytest.raises(ValueError, match=r"weight \(7,\)"):
        group_norm_relu(x, weight[:7], bias, 4, 1e-5)
    with pytest.raises(ValueError, match=r"residual has shape \(1, 8, 3, 3\)"):
        group_norm_relu(x, weight, bias, 4, 1e-5, residual[:1])


def test_the_operator_keeps_its_word() -> None:
    x, residual, weight, bias = draw(2, 8, 3, 3)
    torch.library.opcheck(group_norm_relu_operator, (x, weight, bias, 4, 1e-5, residual, True))
    torch.library.opcheck(group_norm_relu_operator, (x.bfloat16(), weight, bias, 4, 1e-5, None, False))


def test_one_operator_in_the_graph_for_cuda(fake_cuda: Any) -> None:
    x, weight, bias = fake_cuda.empty(4, 8, 5, 6), fake_cuda.empty(8), fake_cuda.empty(8)

    def normalise(x: Tensor) -> Tensor:
        return group_norm_relu(x, weight, bias, 4, 1e-5, residual=x)

    with torch.no_grad():
        code, output = fake_cuda.trace(normalise, x)
    assert code.count("serl_fast.group_norm_relu.default") == 1
    assert output.is_contiguous(memory_format=torch.channels_last)
    code, _ = fake_cuda.trace(normalise, x)  # a gradient is wanted
    assert "serl_fast" not in code


INTERPRETED = """
from torch.nn import functional as F
from serl_fast.kernels import group_norm_relu as module
from serl_fast.kernels.group_norm_relu import group_norm_relu_reference, group_norm_relu_triton


def exact(x, weight, bias, groups, residual, relu):
    y = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
    y = y if residual is None else y + residual.double()
    return F.relu(y) if relu else y


# Held in registers; in several pieces, the last of them not full; widths that are no powers of two; one position.
shapes = [((2, 64, 8, 8), 4), ((1, 6, 5, 5), 2), ((2, 12, 33, 7), 4), ((1, 8, 1, 1), 4), ((1, 3, 9, 2), 3)]
shapes += [((1, 64, 64, 64), 4), ((1, 24, 40, 39), 1), ((2, 20, 50, 41), 2)]
assert {c // g * h * w > module.LARGEST_HELD for (_, c, h, w), g in shapes} == {False, True}
for shape, groups in shapes:
    weight, bias = 1 + normal(shape[1]), normal(shape[1])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = (1 + 2 * normal(*shape)).to(dtype).contiguous(memory_format=torch.channels_last)
        for residual, relu in ((None, True), (normal(*shape).to(dtype), True), (None, False)):
            case = (shape, dtype, relu, residual is None)
            output = group_norm_relu_triton(x, weight, bias, groups, 1e-5, residual, relu)
            assert output.is_contiguous(memory_format=torch.channels_last) and output.dtype == dtype
            assert_close(output, exact(x, weight, bias, groups, residual, relu), case, atol=1e-5)
            reference = group_norm_relu_reference(x, weight, bias, groups, 1e-5, residual, relu)
            assert_close(output, reference, case, atol=1e-5)
one, zero = torch.ones(64), torch.zeros(64)
x = normal(2, 64, 40, 40).contiguous(memory_format=torch.channels_last)[:, :, ::2, ::3]  # no layout at all
output = group_norm_relu_triton(x, one, zero, 4, 1e-5, x, True)
assert_close(output, exact(x, one, zero, 4, x, True), "strides", atol=1e-5)
assert group_norm_relu_triton(x[:0], one, zero, 4, 1e-5, None, True).shape == (0, 64, 20, 14)
# A mean that is large beside the spread, where a difference of sums (PyTorch's own on the CPU) is 4 off.
for side in (16, 40):
    x = (1000 + normal(1, 64, side, side)).contiguous(memory_format=torch.channels_last)
    output = group_norm_relu_triton(x, one, zero, 4, 1e-5, None, False)
    assert_close(output, exact(x, one, zero, 4, None, False), side, atol=1e-3)
"""


def test_triton_kernel_in_the_interpreter(interpret: Callable[[str], None]) -> None:
    interpret(INTERPRETED)


@pytest.mark.parametrize("kind", ["*fp32", "*bf16"])
@pytest.mark.parametrize(("rows", "columns", "held"), [(1024, 16, True), (16, 128, True), (512, 16, False)])
def test_machine_code(compile_for_hopper: Callable[..., str], kind: str, rows: int, columns: int, held: bool) -> None:
    arguments = dict.fromkeys(("x", "residual", "output"), kind) | dict.fromkeys(("weight", "bias"), "*fp32")
    arguments["eps"] = "fp32"
    constants = {"POSITIONS": 1024 if held else 4096, "GROUPS": 4, "WIDTH": columns, "ROWS": rows, "COLUMNS": columns}
    constants |= {"HELD": held, "RESIDUAL": True, "RELU": True}
    ptx = compile_for_hopper(module._group_norm_kernel, arguments, constants, warps=16 if held else 8)
    assert "ld.global" in ptx


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(8, 64, 64, 64), (8, 64, 32, 32), (8, 512, 4, 4), (2, 12, 33, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_kernel_on_the_device(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual, weight, bias = (t.cuda() for t in draw(*shape, dtype=dtype))
    rtol = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch._dynamo.reset()  # it refuses the ninth compilation of a function
    for given in (None, residual):
        with torch.no_grad():
            output = group_norm_relu(x, weight, bias, 4, 1e-5, given)
            compiled = torch.compile(group_norm_relu, fullgraph=True)(x, weight, bias, 4, 1e-5, given)
        expected = group_norm_relu_reference(x, weight, bias, 4, 1e-5, given, True)
        torch.testing.assert_close(output, expected, rtol=rtol, atol=1e-4)
        assert torch.equal(output, compiled)
