"""The rewrites of compiled code compute what they replace."""

from __future__ import annotations

import pytest
import torch

from serl_fast.engine.cpu_passes import PLAIN, WITH_BIAS, CpuPasses, _linear

SLOW = {torch.ops.aten.tanh.default, *PLAIN, *WITH_BIAS}


class Counting(CpuPasses):
    """Remembers the operations of the rewritten graph."""

    def __call__(self, graph):
        super().__call__(graph)
        self.operations = [node.target for node in graph.nodes]


def compiled(function):
    passes = Counting()
    return torch.compile(
        function, fullgraph=True, dynamic=False, options={"post_grad_custom_post_pass": passes}
    ), passes


@pytest.fixture(autouse=True)
def fresh():
    """Code from a cache would not be rewritten again."""
    torch._dynamo.reset()
    with torch._inductor.config.patch({"fx_graph_cache": False}), torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


def test_tanh_is_within_4e_7_of_the_exact_one_everywhere():
    near_zero = torch.logspace(-30, 0, 4096)
    x = torch.cat(
        [torch.linspace(-12, 12, 65536), near_zero, -near_zero, torch.tensor([0.0, 1e30, torch.inf, -torch.inf])]
    )
    function, passes = compiled(lambda x: torch.tanh(x))
    found, exact = function(x).double(), torch.tanh(x.double())
    assert torch.ops.aten.tanh.default not in passes.operations
    assert ((found - exact).abs() <= 4e-7 * exact.abs()).all()
    assert found.abs().max() <= 1
    assert function(torch.full_like(x, torch.nan)).isnan().all()


def test_layers_and_their_gradients_stay_the_same():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    x, weight, bias, stack, row, head = (
        normal(*shape) for shape in ((16, 12), (10, 12), (10,), (3, 10, 9), (3, 1, 9), (3, 9, 1))
    )
    parameters = [value.requires_grad_() for value in (weight, bias, stack, row, head)]

    def loss_and_gradients(x, *parameters):
        weight, bias, stack, row, head = parameters
        hidden = torch.tanh(torch.addmm(bias, x, weight.T))
        out = torch.baddbmm(row, hidden.expand(3, -1, -1), stack)
        loss = torch.bmm(torch.tanh(out), head).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        return loss.detach(), *gradients

    function, passes = compiled(loss_and_gradients)
    for found, expected in zip(function(x, *parameters), loss_and_gradients(x, *parameters), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
    assert not SLOW & set(passes.operations)
    assert _linear() in passes.operations


def test_scaled_products_and_other_dtypes_are_left_alone():
    def function(bias, a, b, x):
        return torch.addmm(bias, a, b, beta=0.5), torch.tanh(x)

    a, x = torch.randn(4, 4), torch.randn(4, dtype=torch.float64)
    rewritten, passes = compiled(function)
    for found, expected in zip(rewritten(a, a, a, x), function(a, a, a, x), strict=True):
        torch.testing.assert_close(found, expected)
    assert {torch.ops.aten.addmm.default, torch.ops.aten.tanh.default} <= set(passes.operations)


def test_a_bias_of_any_form_is_added_as_it_is():
    x, weight, wide = torch.randn(16, 12), torch.randn(12, 9), torch.randn(9, 2)

    def function(x, weight, wide, one):
        return (
            x @ weight + wide[:, 0],
            torch.addmm(one.expand(9), x, weight),
            x @ weight + one,
            torch.addmm(one, x, weight),
        )

    rewritten, _ = compiled(function)
    one = torch.randn(1)
    for found, expected in zip(rewritten(x, weight, wide, one), function(x, weight, wide, one), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)


def test_what_is_not_a_number_stays_so_in_products():
    def function(x, weight):
        return x @ weight

    x, weight = torch.randn(16, 12), torch.randn(12, 9)
    x[3, 4], x[5, 6] = torch.nan, torch.inf
    rewritten, _ = compiled(function)
    torch.testing.assert_close(rewritten(x, weight), function(x, weight), equal_nan=True, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 16), (4, 3, 16)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("attribute", ["none", "relu"])
@pytest.mark.skipif(_linear() is None, reason="this torch has no oneDNN")
def test_others_may_call_the_same_operation(shape, with_bias, attribute):
    x, weight, bias = torch.randn(*shape), torch.randn(8, 16), torch.randn(8) if with_bias else None
    operation = _linear()
    CpuPasses()  # changes how Inductor lowers it

    def layer(x):
        return operation(x, weight, bias, attribute, [], "")

    assert torch.allclose(torch.compile(layer, fullgraph=True)(x), layer(x))
