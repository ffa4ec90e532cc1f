"""Engine.act: one observation runs on the ladder and acts as the plain policy does, with the parameters of now."""

import copy

import numpy as np
import pytest
import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.sac_config import SACConfig
from serl_fast.engine import Engine, EngineConfig, ExecutionError, PolicyRunner
from serl_fast.engine import policy as policy_module
from serl_fast.engine.policy import LivePolicy, with_threads
from tests.engine.deferred_cuda import DeferredCuda

SMALL = SACConfig(hidden_widths=(16, 16), proprioception_dim=None)
PIXELS = SACConfig(hidden_widths=(16,), encoder="small", image_size=(32, 32))
AGENTS = {"state": (6, 0, (), SMALL), "hybrid": (7, 1, (), SMALL), "pixels": (7, 1, ("front",), PIXELS)}


def agent_of(name):
    torch.manual_seed(0)
    width, grippers, cameras, config = AGENTS[name]
    return build_agent(5, width, grippers, cameras, config)


def observations(name, rows=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = {"state": torch.randn(rows, 5, generator=generator)}
    if name == "pixels":
        found["front"] = torch.randint(256, (rows, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return found


def plain(engine, seen, deterministic):
    """What the policy says, from the engine's generator as it is; leaves it as it was."""
    generator = torch.Generator()
    generator.set_state(engine.generator.get_state())
    noise = None
    if not deterministic:
        noise = torch.randn(len(seen["state"]), engine.agent.policy_noise_dim, generator=generator)
    with torch.no_grad():
        return engine.agent.policy(engine.agent.networks, seen, noise)


def compare(engine, name, acts, **tolerance):
    """Samples and modes for several observations, before and after the parameters have moved in place."""
    found = []
    for scale in (0.0, 0.1):
        with torch.no_grad():
            for parameter in engine.agent.networks["actor"].parameters():
                parameter.add_(scale)
        for deterministic in (False, True):
            for seed in range(2):
                seen = observations(name, seed=seed)
                expected = plain(engine, seen, deterministic)
                torch.testing.assert_close(acts(seen, deterministic), expected, **tolerance)
                found.append(expected)
    rows = torch.cat(found)[:, :6]
    assert min((a - b).abs().max().item() for i, a in enumerate(rows) for b in rows[:i]) > 1e-3


@pytest.mark.parametrize("name", list(AGENTS))
def test_an_eager_engine_acts_as_the_policy(name):
    engine = Engine(agent_of(name), seed=3)
    compare(engine, name, engine.act, rtol=0, atol=0)
    seen = observations(name, rows=4)
    torch.testing.assert_close(engine.act(seen, True), plain(engine, seen, True), rtol=0, atol=0)
    assert engine.act(seen).shape == (4, AGENTS[name][0])


@pytest.mark.parametrize("name", ["hybrid", pytest.param("state", marks=pytest.mark.slow)])
def test_a_compiled_engine_acts_as_the_policy(name, monkeypatch):
    compiled = []
    compile_function = policy_module.compile_function
    monkeypatch.setattr(policy_module, "compile_function", lambda f: compiled.append(f) or compile_function(f))
    engine = Engine(agent_of(name), EngineConfig("compiled", strict=True), seed=3)
    compare(engine, name, engine.act, rtol=1e-5, atol=1e-6)
    assert len(compiled) == 2  # samples and modes, once each
    seen = observations(name, rows=4)
    torch.testing.assert_close(engine.act(seen, True), plain(engine, seen, True), rtol=0, atol=0)
    assert len(compiled) == 2
    assert engine._policy.execution == "compiled"


@pytest.mark.slow
def test_a_compiled_policy_of_images_acts_as_the_policy(monkeypatch):
    monkeypatch.setattr(policy_module, "suited", lambda execution, *_: execution)  # on a CPU it would stay eager
    engine = Engine(agent_of("pixels"), EngineConfig("compiled", strict=True), seed=3)
    compare(engine, "pixels", engine.act, rtol=1e-4, atol=1e-5)
    assert engine._policy.execution == "compiled"


def test_images_stay_eager_on_a_cpu(monkeypatch):
    monkeypatch.setattr(policy_module, "compile_function", None)
    engine = Engine(agent_of("pixels"), EngineConfig("compiled", strict=True), seed=3)
    compare(engine, "pixels", engine.act, rtol=0, atol=0)


def captured(engine, monkeypatch, *, deferred=False):
    """The policy of an engine, captured by a stand-in."""
    monkeypatch.setattr(policy_module, "compile_function", lambda function: function)
    cuda = DeferredCuda(deferred=deferred)
    return LivePolicy(engine.agent, engine.device, engine.generator, "graphed", strict=True, cuda=cuda), cuda


@pytest.mark.parametrize("name", list(AGENTS))
def test_a_captured_policy_acts_as_the_policy(name, monkeypatch):
    engine = Engine(agent_of(name), seed=3)
    live, cuda = captured(engine, monkeypatch)
    compare(engine, name, live.act, rtol=1e-6, atol=1e-6)
    assert [graph.replays for graph in cuda.graphs] == [4, 4]
    seen = observations(name)
    first = live.act(seen, True)
    kept = first.clone()
    live.act(observations(name, seed=5), True)
    assert torch.equal(first, kept)  # the caller's own


@pytest.mark.parametrize("execution", ["compiled", "graphed"])
@pytest.mark.parametrize("change", ["assigned", "moved", "network"])
def test_networks_that_became_others_are_noticed(execution, change, monkeypatch):
    engine = Engine(agent_of("hybrid"), seed=3)
    live, cuda = captured(engine, monkeypatch)
    live._execution = execution
    seen = observations("hybrid")
    before = live.act(seen, True)
    actor = engine.agent.networks["actor"]
    other = {name: value + 0.1 for name, value in actor.state_dict().items()}
    if change == "assigned":
        actor.load_state_dict(other, assign=True)
    elif change == "moved":
        for name, parameter in actor.named_parameters():
            parameter.data = other[name]
    else:
        engine.agent.networks["actor"] = copy.deepcopy(actor)
        engine.agent.networks["actor"].load_state_dict(other)
    after = live.act(seen, True)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, plain(engine, seen, True))
    assert len(cuda.graphs) == (2 if execution == "graphed" else 0)


def test_a_wrong_observation_is_the_policys_own_error(monkeypatch):
    engine = Engine(agent_of("hybrid"), seed=3)
    live, _ = captured(engine, monkeypatch)
    seen = observations("hybrid")
    live.act(seen, True)
    with pytest.raises(ValueError, match="state has 4 values; the encoder takes 5"):
        live.act({"state": torch.zeros(1, 4)}, True)
    torch.testing.assert_close(live.act(seen, True), plain(engine, seen, True))
    assert live.execution == "graphed"  # a wrong observation says nothing about capturing


def break_compiler(monkeypatch) -> None:
    def compile_function(function):
        def run(*arguments):
            raise RuntimeError("no compiler here")

        return run

    monkeypatch.setattr(policy_module, "compile_function", compile_function)


def test_a_policy_that_does_not_compile_acts_one_rung_lower_and_says_so(monkeypatch, capsys):
    break_compiler(monkeypatch)
    engine = Engine(agent_of("hybrid"), EngineConfig("compiled"), seed=3)
    compare(engine, "hybrid", engine.act, rtol=0, atol=0)
    said = capsys.readouterr().err.splitlines()
    assert said == ["acting by execution 'compiled' failed, going on with 'eager': RuntimeError: no compiler here"]
    assert engine._policy.execution == "eager"
    assert engine.execution == "compiled"  # of updates


def test_strict_execution_raises(monkeypatch):
    break_compiler(monkeypatch)
    engine = Engine(agent_of("hybrid"), EngineConfig("compiled", strict=True))
    for _ in range(2):  # and does not go on eagerly afterwards
        with pytest.raises(ExecutionError, match=r"no compiler here.*strict"):
            engine.act(observations("hybrid"))


def test_acting_has_its_own_threads_and_gives_them_back(monkeypatch):
    seen = []

    def watched(networks, observations, noise):
        seen.append(torch.get_num_threads())
        return observations["state"]

    agent = agent_of("state")
    agent = type(agent)(**{**vars(agent), "policy": watched})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        engine, runner = Engine(agent), PolicyRunner(agent)
        engine.act(observations("state"))
        runner.act({"state": np.zeros(5, np.float32)})
        engine.act(observations("state", rows=2))  # many: as many threads as the caller has
        PolicyRunner(agent, threads=2).act({"state": np.zeros(5, np.float32)})
        assert seen == [1, 1, 3, 2]
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyError), with_threads(1, torch.device("cpu")):
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
