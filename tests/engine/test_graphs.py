"""Captured programs, driven by a stand-in that repeats recorded operations: what a replay freezes is frozen in it."""

import copy
import math

import pytest
import torch
from torch import nn

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import AdamConfig
from serl_fast.engine import Engine, EngineConfig, ExecutionError, NonFiniteLossError
from serl_fast.engine import config as config_module
from serl_fast.engine import runner as runner_module
from serl_fast.engine.graphs import Watch
from tests.engine.tape import Tape
from tests.engine.test_guard import batch as fragile_batch
from tests.equivalence.agents import CASES, batches

SMALL = {"hidden_widths": (8, 8), "proprioception_dim": 4}
AGENTS = {
    "sac": lambda: sac(5, 6, config=SACConfig(**SMALL, critic_ensemble_size=4, critic_subsample_size=2)),
    "hybrid": lambda: hybrid_sac(5, 1, config=SACConfig(**SMALL, warmup_steps=5, cosine_decay_steps=15)),
    "compat": lambda: hybrid_sac(5, 1, config=SACConfig(**SMALL, compat="hil_serl")),
    "pixels": CASES["pixels, compat"].build,
}
CASE = {"sac": "sac", "hybrid": "hybrid", "compat": "hybrid", "pixels": "pixels, compat"}


@pytest.fixture(autouse=True)
def tape(monkeypatch):
    """Capture on the CPU; what would be compiled is captured as it is, so that the stand-in sees its operations."""
    monkeypatch.setattr(config_module, "CAPTURING_DEVICES", ("cpu",))
    monkeypatch.setattr(runner_module, "CudaGraphs", Tape)
    monkeypatch.setattr(runner_module, "compile_function", lambda function, **_: function)
    monkeypatch.setattr(Tape, "captures", 0)
    monkeypatch.setattr(Tape, "replays", 0)


def engine_of(name, execution, **options):
    torch.manual_seed(0)
    return Engine(AGENTS[name](), EngineConfig(execution, strict=True, **options), seed=3)


def states_equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", list(AGENTS))
def test_replays_equal_eager_updates(name, precision, capsys):
    eager, graphed = engine_of(name, "eager", precision=precision), engine_of(name, "graphed", precision=precision)
    for index, batch in enumerate(batches(CASES[CASE[name]], 12)):
        if index == 6:
            for engine in (eager, graphed):
                engine.set_learning_rate(0.01)
        expected = eager.update(batch, with_actor=index % 2 == 1)
        found = graphed.update(batch, with_actor=index % 2 == 1)
        numbers = {name: value.item() for name, value in expected.items()}
        # Products of matrices that lie differently in memory may differ in the last bit.
        assert {name: value.item() for name, value in found.items()} == pytest.approx(numbers, rel=1e-4, abs=1e-6)
    pairs = zip(graphed.agent.networks.parameters(), eager.agent.networks.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-4
    assert torch.equal(graphed.generator.get_state(), eager.generator.get_state())
    assert (Tape.captures, Tape.replays) == (2, 12)
    assert not capsys.readouterr().err


def test_a_batch_may_have_its_fields_in_another_order():
    eager, graphed = engine_of("hybrid", "eager"), engine_of("hybrid", "graphed")
    for index, batch in enumerate(batches(CASES["hybrid"], 4)):
        other = dict(reversed(batch.items())) if index else batch
        expected, found = eager.update(batch)["critic/loss"].item(), graphed.update(other)["critic/loss"].item()
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_block_is_one_replay_and_the_same_to_the_bit():
    eager, graphed = engine_of("sac", "eager"), engine_of("sac", "graphed")
    graphed.warm_up(next(batches(CASES["sac"], 1)), updates=4)
    for batch in batches(CASES["sac"], 5):
        expected, found = eager.update_block(batch, 4), graphed.update_block(batch, 4)
        assert {n: v.item() for n, v in found.items()} == {n: v.item() for n, v in expected.items()}
    assert states_equal(graphed.state_dict(), eager.state_dict())
    assert graphed.updates == 20
    assert (Tape.captures, Tape.replays) == (1, 6)  # one while warming up


def test_warming_up_trains_nothing_and_draws_nothing():
    engine = engine_of("sac", "graphed")
    before = copy.deepcopy(engine.state_dict())
    engine.warm_up(next(batches(CASES["sac"], 1)))
    assert Tape.captures == 2
    assert states_equal(engine.state_dict(), before)
    engine.request_metrics()
    assert engine.newest_metrics(wait=True).metrics == {}


def test_a_checkpoint_is_loaded_into_place():
    first, second = engine_of("hybrid", "graphed"), engine_of("hybrid", "graphed")
    given = list(batches(CASES["hybrid"], 8))
    for batch in given[:4]:
        first.update(batch)
        second.update(given[7])
    second.load_state_dict(first.state_dict())
    for batch in given[4:]:
        first.update(batch)
        second.update(batch)
    assert states_equal(first.state_dict(), second.state_dict())
    assert Tape.captures == 2


def test_modes_are_captured_once_each_and_it_is_said_once(capsys):
    engine, eager = engine_of("sac", "graphed"), engine_of("sac", "eager")
    for index, batch in enumerate(batches(CASES["sac"], 6)):
        for one in (engine, eager):
            one.agent.networks.train(index % 2 == 0)
            one.update(batch)
    assert Tape.captures == 2
    said = capsys.readouterr().err
    assert said == ("the step was captured again at update 2: train(), eval() or requires_grad changed (said once)\n")
    engine.agent.networks["target_critic"].requires_grad_(True)
    engine.update(batch)
    assert Tape.captures == 3
    eager.update(batch)
    assert states_equal(engine.state_dict(), eager.state_dict())


@pytest.mark.parametrize("execution", ["eager", "compiled", "graphed"])
def test_replaced_tensors_are_trained_and_captured_again(execution, capsys):
    engine, expected = engine_of("sac", execution), engine_of("sac", "eager")
    given = list(batches(CASES["sac"], 6))
    for batch in given[:3]:
        engine.update(batch)
        expected.update(batch)
    values = {name: value.clone() for name, value in engine.agent.networks.state_dict().items()}
    engine.agent.networks.load_state_dict(values, assign=True)
    for batch in given[3:]:
        engine.update(batch)
        expected.update(batch)
    assert states_equal(engine.state_dict(), expected.state_dict())
    said = capsys.readouterr().err
    rebuilt = f"the step was {execution} again at update 4: a network's tensors were replaced (said once)\n"
    assert said == ("" if execution == "eager" else rebuilt.replace("graphed", "captured"))


def test_a_capture_that_fails_falls_one_rung(quadratic, monkeypatch, capsys):
    def refuse(self, function):
        function()  # a capture that broke late has written
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Tape, "capture", refuse)
    batch = {"actions": torch.zeros(4, 1)}
    engine, eager = Engine(quadratic(), EngineConfig("graphed"), seed=3), Engine(quadratic(), seed=3)
    for index in range(4):
        engine.update(batch, with_actor=index % 2 == 1)
        eager.update(batch, with_actor=index % 2 == 1)
    assert engine.execution == "compiled"
    assert states_equal(engine.state_dict(), eager.state_dict())
    assert capsys.readouterr().err == (
        "execution 'graphed' failed, going on with 'compiled': "
        "RuntimeError: operation not permitted when stream is capturing\n"
    )
    strict = Engine(quadratic(), EngineConfig("graphed", strict=True), seed=3)
    before = copy.deepcopy(strict.state_dict())
    with pytest.raises(ExecutionError, match=r"'graphed' failed.*not permitted when stream is capturing.*strict"):
        strict.update(batch)
    assert states_equal(strict.state_dict(), before)
    assert strict.execution == "graphed"


def test_what_neither_captures_nor_compiles_runs_eagerly(quadratic, monkeypatch, capsys):
    def refuse(function, **_):
        def call(*arguments):
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(runner_module, "compile_function", refuse)
    engine = Engine(quadratic(), EngineConfig("graphed"), seed=3)
    engine.update({"actions": torch.zeros(4, 1)})
    assert engine.execution == "eager"
    assert capsys.readouterr().err.splitlines() == [
        "execution 'graphed' failed, going on with 'compiled': RuntimeError: no compiler",
        "execution 'compiled' failed, going on with 'eager': RuntimeError: no compiler",
    ]


def test_a_value_read_on_the_host_is_what_the_stand_in_refuses(quadratic, capsys):
    """The stand-in must be able to fail: a loss that reads a value can not be captured."""
    import dataclasses

    agent = quadratic()

    def loss(networks, batch, noise):
        result = agent.critic_step[0].loss(networks, batch, noise)
        result.value.item()
        return result

    reading = dataclasses.replace(agent.critic_step[0], loss=loss)
    engine = Engine(dataclasses.replace(agent, critic_step=(reading,)), EngineConfig("graphed"), seed=3)
    engine.update({"actions": torch.zeros(4, 1)})
    assert engine.execution == "compiled"
    assert "_local_scalar_dense" in capsys.readouterr().err


def test_a_number_of_python_is_frozen_by_the_stand_in(quadratic, monkeypatch):
    """The stand-in must be able to fail: a learning rate that Python counts stays that of the capture."""
    counted = iter(range(1, 100))
    rate = AdamConfig.learning_rate_at
    monkeypatch.setattr(AdamConfig, "learning_rate_at", lambda *arguments: rate(*arguments) * next(counted))
    engine = Engine(quadratic(), EngineConfig("graphed"), seed=3)
    batch = {"actions": torch.zeros(4, 1)}
    rates = [engine.update(batch, with_actor=False)["shared/learning_rate"].item() for _ in range(3)]
    assert rates == pytest.approx([0.4] * 3)  # three calls to warm up, and the capture


@pytest.mark.parametrize("updates", [1, 3])
def test_a_failed_update_is_found_in_a_replay(fragile, updates):
    engine = Engine(fragile(), EngineConfig("graphed", strict=True, check_interval=updates), seed=3)
    good = {name: value.repeat(updates) for name, value in fragile_batch().items()}
    for _ in range(2):
        engine.update_block(good, updates)
    before = copy.deepcopy(engine.state_dict())
    bad = {name: value.clone() for name, value in good.items()}
    bad["critic"][0] = math.nan
    with pytest.raises(NonFiniteLossError, match=f"critic/loss is nan at update {2 * updates + 1},") as caught:
        engine.update_block(bad, updates)
    assert states_equal(engine.state_dict()["networks"], before["networks"])
    inspection = caught.value.inspection
    assert inspection["batch"]["critic"].tolist()[1:] == good["critic"].tolist()[1:4]
    assert math.isnan(inspection["batch"]["critic"][0])
    engine.update_block(good, updates)


def test_a_capture_does_not_hide_a_failure(fragile):
    engine = Engine(fragile(), EngineConfig("graphed", strict=True, check_interval=100), seed=3)
    engine.update(fragile_batch())
    engine.update(fragile_batch(critic=math.nan))
    engine.update(fragile_batch())
    engine.agent.networks.eval()
    with pytest.raises(NonFiniteLossError, match="critic/loss is nan at update 2,"):
        engine.update(fragile_batch())
    assert engine.updates == 1


def test_the_watch_sees_what_it_must():
    networks = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.BatchNorm1d(2)})
    watch = Watch(networks)
    modes = watch.modes(training=True)
    assert not watch.replaced()
    assert not watch.moved()
    networks["a"].weight.data = networks["a"].weight.data.clone()
    assert watch.moved()
    assert not watch.replaced()
    networks["b"].running_mean = torch.zeros(2)
    assert watch.replaced()
    networks["b"].eval()
    assert watch.modes(training=True) != modes
    networks.train()
    assert watch.modes(training=True) == modes
    networks["a"].bias.requires_grad_(False)
    assert watch.modes(training=True) != modes
    watch = Watch(networks)
    networks["a"] = nn.Linear(2, 2)
    assert watch.replaced()


@pytest.mark.parametrize("execution", ["eager", "compiled", "graphed"])
def test_freezing_what_is_trained_is_one_clear_error(quadratic, execution, capsys):
    engine = Engine(quadratic(), EngineConfig(execution))
    weight = engine.agent.networks["actor"].weight
    batch = {"actions": torch.zeros(4, 1)}
    engine.update(batch)
    weight.requires_grad_(False)
    frozen = r"actor\.weight was frozen after the engine was built, .* for 1 tensors, not 0; set requires_grad first"
    for _ in range(2):
        with pytest.raises(ValueError, match=frozen):
            engine.update(batch)
    assert engine.updates == 1
    weight.requires_grad_(True)
    engine.update(batch)
    assert engine.execution == execution
    assert not capsys.readouterr().err


def test_what_is_made_trainable_is_not_left_out_silently(quadratic):
    agent = quadratic()
    agent.networks["actor"].bias = nn.Parameter(torch.zeros(1), requires_grad=False)
    engine = Engine(agent)
    engine.update({"actions": torch.zeros(4, 1)})
    agent.networks["actor"].bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"actor\.bias was made trainable after the engine was built"):
        engine.update({"actions": torch.zeros(4, 1)})
