"""The rewrites of compiled code compute what they replace."""

from __future__ import annotations

import pytest
import torch

from serl_fast.engine import cpu_passes
from serl_fast.engine.cpu_passes import PLAIN, WITH_BIAS, CpuPasses, _linear, relative_times
from serl_fast.engine.hoisting import stored
from serl_fast.engine.pieces import bmm_in_pieces, pieces_of

aten = torch.ops.aten
has_onednn = pytest.mark.skipif(_linear() is None, reason="this torch has no oneDNN")
WAYS = ["mkl", "mkl_in_pieces", pytest.param("onednn", marks=has_onednn)]


def choose(monkeypatch, way):
    """This way for every product, and pieces of four rows."""
    monkeypatch.setattr(cpu_passes, "_soonest", lambda left, right: way)
    monkeypatch.setattr(cpu_passes, "_pieces", lambda left: max(left.shape[-2] // 4, 1))


def operations_of(way):
    return {"mkl": set(PLAIN), "mkl_in_pieces": {bmm_in_pieces}, "onednn": {_linear()}}[way]


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
    assert aten.tanh.default not in passes.operations
    assert ((found - exact).abs() <= 4e-7 * exact.abs()).all()
    assert found.abs().max() <= 1
    assert function(torch.full_like(x, torch.nan)).isnan().all()


@pytest.mark.parametrize("way", WAYS)
def test_layers_and_their_gradients_stay_the_same(monkeypatch, way):
    choose(monkeypatch, way)
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
    assert not {aten.tanh.default, *WITH_BIAS} & set(passes.operations)
    for other in ("mkl", "mkl_in_pieces", "onednn"):
        assert bool(operations_of(other) & set(passes.operations)) == (other == way)


def test_scaled_products_and_other_dtypes_are_left_alone():
    def function(bias, a, b, x):
        return torch.addmm(bias, a, b, beta=0.5), torch.tanh(x)

    a, x = torch.randn(4, 4), torch.randn(4, dtype=torch.float64)
    rewritten, passes = compiled(function)
    for found, expected in zip(rewritten(a, a, a, x), function(a, a, a, x), strict=True):
        torch.testing.assert_close(found, expected)
    assert {torch.ops.aten.addmm.default, torch.ops.aten.tanh.default} <= set(passes.operations)


@pytest.mark.parametrize("way", WAYS)
def test_a_bias_of_any_form_is_added_as_it_is(monkeypatch, way):
    choose(monkeypatch, way)
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


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_a_number_stays_so_in_products(monkeypatch, way):
    choose(monkeypatch, way)

    def function(x, weight):
        return x @ weight

    x, weight = torch.randn(16, 12), torch.randn(12, 9)
    x[3, 4], x[5, 6] = torch.nan, torch.inf
    rewritten, _ = compiled(function)
    torch.testing.assert_close(rewritten(x, weight), function(x, weight), equal_nan=True, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 16), (4, 3, 16)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("attribute", ["none", "relu"])
@has_onednn
def test_others_may_call_the_same_operation(shape, with_bias, attribute):
    x, weight, bias = torch.randn(*shape), torch.randn(8, 16), torch.randn(8) if with_bias else None
    operation = _linear()
    CpuPasses()  # changes how Inductor lowers it

    def layer(x):
        return operation(x, weight, bias, attribute, [], "")

    assert torch.allclose(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("left", [((3, 256, 12), (3072, 12, 1)), ((3, 256, 12), (0, 1, 256)), ((256, 12), (12, 1))])
@pytest.mark.parametrize("threads", [1, 4])
def test_the_ways_are_timed_on_the_layouts_of_the_product(monkeypatch, left, threads):
    shape = (3, 12, 8) if len(left[0]) == 3 else (12, 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    relative_times.cache_clear()
    before = torch.get_rng_state()
    times = relative_times(left, (shape, (96, 8, 1)[-len(shape) :]), threads)
    absent = {"mkl_in_pieces": threads == 1, "onednn": _linear() is None}
    assert set(times) == {"mkl"} | {way for way in absent if not absent[way]}
    assert times["mkl"] == 1
    assert all(0 < value < 1000 for value in times.values())
    assert torch.equal(torch.get_rng_state(), before)
    relative_times.cache_clear()


@pytest.mark.parametrize(
    ("times", "way"),
    [
        ({"mkl": 1.0, "onednn": 2.0}, "mkl"),
        ({"mkl": 1.0, "onednn": 0.9}, "onednn"),
        ({"mkl": 1.0, "mkl_in_pieces": 1.1, "onednn": 2.0}, "mkl_in_pieces"),  # as good as the same
        ({"mkl": 1.0, "mkl_in_pieces": 1.3, "onednn": 2.0}, "mkl"),
        ({"mkl": 1.0, "mkl_in_pieces": 0.7, "onednn": 0.6}, "onednn"),
    ],
)
@has_onednn
def test_a_product_is_computed_in_the_way_that_took_least_time(monkeypatch, times, way):
    monkeypatch.setattr(cpu_passes, "relative_times", lambda *layouts: times)
    monkeypatch.setattr(cpu_passes, "_pieces", lambda left: 4)
    function, passes = compiled(lambda x, weight: torch.relu(x @ weight))
    x, weight = torch.randn(16, 12), torch.randn(12, 9)
    torch.testing.assert_close(function(x, weight), torch.relu(x @ weight), rtol=2e-5, atol=1e-6)
    assert operations_of(way) & set(passes.operations)


@pytest.mark.parametrize(
    ("rows", "threads", "pieces"),
    [(256, 1, 1), (256, 2, 2), (256, 4, 4), (256, 3, 2), (1024, 3, 8), (256, 16, 4), (64, 8, 1), (39, 4, 1), (1, 4, 1)],
)
def test_pieces_are_equal_and_give_all_threads_the_same(rows, threads, pieces):
    assert pieces_of(rows, threads) == pieces


@pytest.mark.parametrize("called_from_cpp", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_products_in_pieces_are_the_same_products(called_from_cpp, count):
    """Of factors that are dense, transposed, one for all, parts of others, and neither dense nor transposed."""
    generator = torch.Generator().manual_seed(0)
    dense, wide, one, weight = (
        torch.randn(*shape, generator=generator)
        for shape in ((count, 32, 12), (count, 12, 64), (32, 12), (count, 12, 9))
    )
    lefts = (dense, wide.mT[:, 32:], one.expand(count, -1, -1), wide.mT[:, ::2])

    def products(weight, *lefts):
        hidden = [bmm_in_pieces(left, weight * 2, 4).relu_() for left in lefts]
        return *hidden, bmm_in_pieces(hidden[0].mT.repeat(1, 2, 1)[:, :12], hidden[1] + 1, 3)

    hidden = [torch.relu(left @ (weight * 2)) for left in lefts]
    expected = (*hidden, hidden[0].mT.repeat(1, 2, 1)[:, :12] @ (hidden[1] + 1))
    CpuPasses()  # tells Inductor how it lowers them
    function = torch.compile(products, fullgraph=True, dynamic=False, options={"cpp_wrapper": called_from_cpp})
    for of in (products, function):
        for found, correct in zip(of(weight, *lefts), expected, strict=True):
            torch.testing.assert_close(found, correct, rtol=2e-5, atol=2e-5)


def test_stacks_of_small_matrices_become_loops():
    generator = torch.Generator().manual_seed(0)
    x, weight, scale = (
        torch.randn(*shape, generator=generator) for shape in ((5, 4, 4, 72), (4, 4, 72, 8), (5, 72 * 8))
    )
    weight.requires_grad_()

    def embeddings(x, weight):
        rows = x.flatten(0, 2).t().contiguous().unflatten(1, (5, 16))
        stack = weight.flatten(0, 1).permute(1, 0, 2).contiguous()
        return torch.bmm(rows, stack).transpose(0, 1).flatten(1)

    def value_and_gradient(x, weight):
        value = embeddings(x, weight)
        (gradient,) = torch.autograd.grad((value * scale).sum(), (weight,))
        return value.detach(), gradient

    function, passes = compiled(value_and_gradient)
    for found, expected in zip(function(x, weight), value_and_gradient(x, weight), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-5)
    assert aten.bmm.default not in passes.operations
    expected = torch.einsum("bhwc,hwcf->bcf", x, weight).flatten(1)
    torch.testing.assert_close(function(x, weight)[0], expected.detach(), rtol=2e-5, atol=1e-5)


def test_what_a_large_tensor_is_computed_with_is_computed_before_its_loop():
    def step(x, count, rows):
        correction = (-torch.expm1(count * -0.1)).sqrt()
        shrunk = torch._foreach_div([x, x + 1], correction)
        return shrunk[0] / torch.rsqrt(rows + 1e-6).unsqueeze(-1), shrunk[1], correction + 1

    x, count, rows = torch.randn(128, 256), torch.tensor(3.0), torch.rand(128)
    function, passes = compiled(step)
    for found, expected in zip(function(x, count, rows), step(x, count, rows), strict=True):
        torch.testing.assert_close(found, expected)
    assert passes.operations.count(stored) == 2  # the correction, once for all that use it, and the rows'
    small, passes = compiled(step)
    small(x[:1, :1], count, rows[:1])
    assert stored not in passes.operations


def test_what_is_stored_is_a_copy_outside_of_compiled_code_too():
    x = torch.randn(3)
    kept = stored(x)
    assert torch.equal(kept, x)
    assert kept.data_ptr() != x.data_ptr()
