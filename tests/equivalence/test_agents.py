"""Every agent's step is one graph and equals the eager one; 16-bit precisions stay near float32.

What is one graph, and computes the same, is decided before the compiler proper sees it: every agent is traced and its
graph run operation by operation, which takes seconds and must agree to the bit. The compiler takes a minute for an
agent and is asked for some; for the others with ``-m slow`` or, the offline algorithms, ``-m nightly``.
"""

import pytest
import torch

from serl_fast.engine import runner as engine_module
from tests import tracing
from tests.equivalence.agents import CASES, distance, train

COMPILED = ("hybrid", "pixels, ResNet-10", "vice")
NIGHTLY = ("iql", "td3bc", "rebrac, pixels", "cql", "calql")

# Distances of networks as in `distance`: relative to how far training moved them. Both executions are float32 and
# differ in the order of sums; Adam turns the rounding of near-zero gradients into steps of up to the learning rate.
EXECUTION_TOLERANCE = 5e-3
# By precision, without cameras (100 updates) and with (5 or 10, so that they have moved little). bfloat16 has 8 bits of
# mantissa, float16 11. Measured: at most 0.024, 0.21; 0.011, 0.093.
PRECISION_TOLERANCE = {"bfloat16": (0.05, 0.4), "float16": (0.03, 0.2)}


@pytest.fixture(autouse=True)
def count_from_zero():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def trace_only(monkeypatch):
    """Trace as for the compiler, through autograd and functionalisation, and run the graph as it is."""
    monkeypatch.setattr("serl_fast.engine.compiling.torch.compile", tracing.trace_only)


def assert_one_graph(case):
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == case.graphs
    assert not counters["graph_break"]


@pytest.mark.parametrize("name", list(CASES))
def test_the_step_is_one_graph_and_the_same_to_the_bit(name, trace_only):
    case = CASES[name]
    updates = min(case.updates, 20)
    eager, eager_metrics = train(case, updates=updates)
    traced, traced_metrics = train(case, "compiled", updates=updates)
    assert_one_graph(case)
    assert traced_metrics == eager_metrics
    pairs = zip(traced.agent.networks.parameters(), eager.agent.networks.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def marks_of(name):
    if name in NIGHTLY:
        return [pytest.mark.nightly]
    return [] if name in COMPILED else [pytest.mark.slow]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in CASES])
def test_compiled_equals_eager(name):
    case = CASES[name]
    eager, eager_metrics = train(case)
    compiled, compiled_metrics = train(case, "compiled")
    assert_one_graph(case)
    assert compiled.execution == "compiled"
    assert compiled_metrics == pytest.approx(eager_metrics, rel=1e-3, abs=1e-4)
    assert max(distance(compiled, eager, case).values()) < EXECUTION_TOLERANCE


@pytest.mark.parametrize("precision", list(PRECISION_TOLERANCE))
@pytest.mark.parametrize("name", list(CASES))
def test_half_precision_stays_near_float32(name, precision):
    case = CASES[name]
    exact, _ = train(case)
    rough, metrics = train(case, precision=precision)
    assert metrics.get("engine/skipped_steps", 0) == 0
    found = distance(rough, exact, case)
    assert 0 < max(found.values()) < PRECISION_TOLERANCE[precision][case.cameras], found
    assert all(p.dtype == torch.float32 for p in rough.agent.networks.parameters())
    assert all(t.dtype == torch.float32 for adam in rough.adam.values() for t in adam.tensors())


@pytest.mark.parametrize("precision", list(PRECISION_TOLERANCE))
@pytest.mark.parametrize("name", ["bc, squashed", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_half_precision_compiles_to_the_same(name, precision):
    case = CASES[name]
    exact, _ = train(case)
    rough, _ = train(case, "compiled", precision)
    assert_one_graph(case)
    found = distance(rough, exact, case)
    assert 0 < max(found.values()) < PRECISION_TOLERANCE[precision][False], found


@pytest.mark.parametrize("name", ["hybrid", "vice"])
def test_losses_compiled_one_by_one_equal_eager(name, trace_only, monkeypatch):
    """What an older torch does, which can not trace gradients; VICE's inner gradient must be in its loss's graph."""
    monkeypatch.setattr(engine_module, "can_trace_autograd", lambda: False)
    case = CASES[name]
    updates = min(case.updates, 20)
    eager, _ = train(case, updates=updates)
    with torch._dynamo.config.patch(trace_autograd_ops=False):
        compiled, _ = train(case, "compiled", updates=updates)
    assert max(distance(compiled, eager, case).values()) < EXECUTION_TOLERANCE
