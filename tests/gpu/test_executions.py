"""Eager, compiled and graphed are the same, at every precision; a graphed step never waits for the host."""

from __future__ import annotations

import copy
import dataclasses
import gc

import pytest
import torch

from serl_fast.core import leaves
from serl_fast.engine import Engine, EngineConfig
from tests.equivalence.agents import CASES, batches, distance

pytestmark = pytest.mark.gpu
SMALL = ("sac", "sac, every option", "hybrid", "compat", "pixels, compat", "bc, squashed")
# Relative to how far training moved each network, see `distance`. On the CPU: 5e-3 between executions.
TOLERANCE = {"float32": 1e-2, "tf32": 5e-2, "bfloat16": 0.4, "float16": 0.2}


def train(name, device, execution, precision="float32", updates=20):
    case = CASES[name]
    torch.manual_seed(0)
    engine = Engine(case.build(), EngineConfig(execution, precision, strict=True), seed=5, device=device)
    if precision == "float16":
        state = engine.state_dict()
        state["loss_scaling"]["loss_scale"].fill_(2.0**5)  # a skipped update would be one less to compare
        engine.load_state_dict(state)
    metrics = {}
    for index, batch in enumerate(batches(case, updates)):
        here = to(batch, device)
        metrics.update({key: value.clone() for key, value in engine.update(here, with_actor=index % 2 == 1).items()})
    engine.check()
    return engine, {key: value.item() for key, value in metrics.items()}


def to(tree, device):
    return {key: to(value, device) if isinstance(value, dict) else value.to(device) for key, value in tree.items()}


def moved_apart(engine, reference, name):
    """Distances of networks, computed on the CPU."""
    for each in (engine, reference):
        each.agent.networks.cpu()
    return max(distance(engine, reference, CASES[name]).values())


@pytest.mark.parametrize("name", SMALL)
def test_compiled_equals_eager(name, device):
    eager, expected = train(name, device, "eager")
    compiled, found = train(name, device, "compiled")
    assert found == pytest.approx(expected, rel=5e-3, abs=1e-3)
    assert moved_apart(compiled, eager, name) < TOLERANCE["float32"]


@pytest.mark.parametrize("name", SMALL)
def test_graphed_equals_eager(name, cuda):
    """The same noise, too: a captured generator gives the numbers that the eager one gives."""
    eager, expected = train(name, cuda, "eager")
    graphed, found = train(name, cuda, "graphed")
    assert graphed.execution == "graphed"
    assert found == pytest.approx(expected, rel=5e-3, abs=1e-3)
    assert torch.equal(graphed.generator.get_state(), eager.generator.get_state())
    assert moved_apart(graphed, eager, name) < TOLERANCE["float32"]


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sac", "hybrid", "pixels, compat"])
def test_precisions_stay_near_float32(name, precision, cuda):
    exact, _ = train(name, cuda, "eager")
    rough, metrics = train(name, cuda, "graphed", precision)
    assert metrics.get("engine/skipped_steps", 0) == 0
    assert all(parameter.dtype == torch.float32 for parameter in rough.agent.networks.parameters())
    assert moved_apart(rough, exact, name) < TOLERANCE[precision]


@pytest.mark.parametrize("execution", ["compiled", "graphed"])
def test_a_block_equals_its_updates(execution, cuda):
    case = dataclasses.replace(CASES["hybrid"])
    given = [to(batch, cuda) for batch in batches(case, 4)]
    joint = stack(given)
    engines = []
    for _ in range(2):
        torch.manual_seed(0)
        engines.append(Engine(case.build(), EngineConfig(execution, strict=True), seed=5, device=cuda))
    single, block = engines
    for index, batch in enumerate(given):
        single.update(batch, with_actor=index == 3)
    block.update_block(joint, updates=4)
    assert moved_apart(block, single, "hybrid") < TOLERANCE["float32"]


def stack(given):
    first = given[0]
    return {
        key: stack([each[key] for each in given])
        if isinstance(value, dict)
        else torch.cat([each[key] for each in given])
        for key, value in first.items()
    }


def test_a_graphed_step_waits_for_nothing(cuda):
    case = CASES["hybrid"]
    engine = Engine(case.build(), EngineConfig("graphed", strict=True, check_interval=1000), device=cuda)
    given = [to(batch, cuda) for batch in batches(case, 4)]
    for batch in given:
        engine.update(batch)
        engine.update(batch, with_actor=False)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            for index, batch in enumerate(given):
                engine.update(batch, with_actor=index == 3)
        engine.request_metrics()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    engine.check()


def test_warming_up_trains_nothing(cuda):
    case = CASES["hybrid"]
    engine = Engine(case.build(), EngineConfig("graphed", strict=True), device=cuda)
    before = copy.deepcopy(engine.state_dict())
    engine.warm_up(to(next(batches(case, 1)), cuda))
    after = engine.state_dict()
    for (name, expected), (_, found) in zip(leaves(before["networks"]), leaves(after["networks"]), strict=True):
        assert torch.equal(found, expected), name
    assert after["updates"] == before["updates"]
    assert torch.equal(after["generator"], before["generator"])


def test_a_checkpoint_continues_without_another_capture(cuda, capfd):
    case = CASES["sac"]
    given = [to(batch, cuda) for batch in batches(case, 10)]
    engine = Engine(case.build(), EngineConfig("graphed", strict=True), device=cuda)
    for batch in given[:5]:
        engine.update(batch)
    saved = copy.deepcopy(engine.state_dict())
    for batch in given[5:]:
        engine.update(batch)
    expected = [p.clone() for p in engine.agent.networks.parameters()]
    engine.load_state_dict(saved)
    engine.set_learning_rate(3e-4)
    for batch in given[5:]:
        engine.update(batch)
    for found, parameter in zip(engine.agent.networks.parameters(), expected, strict=True):
        torch.testing.assert_close(found, parameter)
    assert "captured again" not in capfd.readouterr().err


def test_graphed_takes_no_more_memory_than_eager(cuda):
    """Peak of what is allocated, weights and batches included, at a size where activations matter."""
    from benchmarks.memory import peak_bytes
    from benchmarks.workloads import WORKLOADS

    workload = dataclasses.replace(WORKLOADS["state"], batch_size=1 << 16)
    peaks = {}
    for execution in ("eager", "graphed"):
        gc.collect()  # engines are in cycles

        def build(execution=execution):
            engine = workload.engine(execution, device=cuda, strict=True)
            call = workload.call(engine)
            call()
            return call, engine

        peaks[execution] = peak_bytes(build, "cuda")
    workspace = 1 << 25  # of cuBLAS, for the stream that captures
    assert peaks["graphed"] <= 1.5 * peaks["eager"] + workspace, peaks


def test_a_loss_that_is_not_finite_stops_a_graphed_run(cuda):
    from serl_fast.engine import NonFiniteLossError

    case = CASES["sac"]
    engine = Engine(case.build(), EngineConfig("graphed", strict=True, check_interval=4), device=cuda)
    given = [to(batch, cuda) for batch in batches(case, 3)]
    engine.update(given[0])
    before = [p.clone() for p in engine.agent.networks.parameters()]
    given[1]["rewards"][3] = float("nan")

    def go_on():
        for batch in [given[1], *[given[2]] * 40]:
            engine.update(batch)
        engine.check()

    with pytest.raises(NonFiniteLossError, match="critic/loss") as caught:
        go_on()
    assert engine.updates == 1
    assert all(torch.equal(p, q) for p, q in zip(engine.agent.networks.parameters(), before, strict=True))
    assert caught.value.inspection["batch"]["rewards"][3].isnan()
