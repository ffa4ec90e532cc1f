"""Every agent's step is one graph and equals the eager one; 16-bit precisions stay near float32."""

import pytest
import torch

from serl_fast.engine import engine as engine_module
from tests.equivalence.agents import CASES, distance, train

# Distances of networks as in `distance`: relative to how far training moved them. Both executions are float32 and
# differ in the order of sums; Adam turns the rounding of near-zero gradients into steps of up to the learning rate.
EXECUTION_TOLERANCE = 5e-3
# By precision, without cameras (100 updates) and with (5 or 10, so that they have moved little). bfloat16 has 8 bits of
# mantissa, float16 11. Measured: at most 0.024, 0.21; 0.011, 0.093.
PRECISION_TOLERANCE = {"bfloat16": (0.05, 0.4), "float16": (0.03, 0.2)}


@pytest.mark.parametrize("name", list(CASES))
def test_compiled_equals_eager_as_one_graph(name):
    case = CASES[name]
    eager, eager_metrics = train(case)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, compiled_metrics = train(case, "compiled")
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == case.graphs
    assert not counters["graph_break"]
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
def test_half_precision_compiles_to_the_same(precision):
    case = CASES["hybrid"]
    exact, _ = train(case)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    rough, _ = train(case, "compiled", precision)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    found = distance(rough, exact, case)
    assert 0 < max(found.values()) < PRECISION_TOLERANCE[precision][False], found


@pytest.mark.parametrize("name", ["hybrid", "vice"])
def test_losses_compiled_one_by_one_equal_eager(name, monkeypatch):
    """What an older torch does, which can not trace gradients; VICE's inner gradient must be in its loss's graph."""
    monkeypatch.setattr(engine_module, "can_trace_autograd", lambda: False)
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", False, raising=False)
    case = CASES[name]
    updates = min(case.updates, 20)
    eager, _ = train(case, updates=updates)
    compiled, _ = train(case, "compiled", updates=updates)
    assert max(distance(compiled, eager, case).values()) < EXECUTION_TOLERANCE
