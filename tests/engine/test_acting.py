"""Acting: compiled and captured policies act as eager ones, from one place in memory."""

import numpy as np
import pytest
import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.sac_config import SACConfig
from serl_fast.engine import ExecutionError, PolicyPublisher, PolicyRunner
from serl_fast.engine import policy as policy_module
from tests.engine.deferred_cuda import DeferredCuda

SMALL = SACConfig(hidden_widths=(16, 16), proprioception_dim=None)
OBSERVATION = {"state": np.linspace(-1, 1, 5).astype(np.float32)}


@pytest.fixture
def agent():
    torch.manual_seed(0)
    return build_agent(5, 7, 1, (), SMALL)


def actions(runner: PolicyRunner, count: int = 3) -> np.ndarray:
    """Samples and modes at different observations."""
    observations = [{"state": OBSERVATION["state"] * scale} for scale in range(1, count + 1)]
    return np.stack([runner.act(observation, mode) for mode in (False, True) for observation in observations])


def shift(agent, publisher: PolicyPublisher) -> None:
    """Publish other parameters."""
    with torch.no_grad():
        for parameter in agent.networks["actor"].parameters():
            parameter.add_(0.1)
    publisher.publish(agent.networks, agent.policy_networks, updates=7)


@pytest.mark.parametrize("captured", [False, True])
def test_compiled_and_captured_policies_act_as_the_eager_one(agent, captured, monkeypatch):
    cuda = DeferredCuda(deferred=False) if captured else None
    if captured:  # the capture is what is tested; the compiler is, in the other case
        monkeypatch.setattr(policy_module, "compile_function", lambda function: function)
    execution = "graphed" if captured else "compiled"
    eager = PolicyRunner(agent, seed=3)
    fast = PolicyRunner(agent, seed=3, execution=execution, strict=True, cuda=cuda)
    fast.warm_up(OBSERVATION)
    np.testing.assert_allclose(actions(fast), actions(eager), atol=1e-6)
    publisher = PolicyPublisher()
    shift(agent, publisher)
    before = actions(eager)
    assert fast.refresh(publisher)
    assert eager.refresh(publisher)
    eager.generator.set_state(fast.generator.get_state())
    after = actions(eager)
    assert not np.allclose(after, before)
    np.testing.assert_allclose(actions(fast), after, atol=1e-6)
    assert fast.execution == execution
    if cuda is not None:
        assert [graph.replays for graph in cuda.graphs] == [7, 7]
        assert [stream.priority for stream in cuda.streams] == [-1]


def test_an_action_is_not_overwritten_by_the_next(agent):
    runner = PolicyRunner(agent, cuda=DeferredCuda(deferred=False))
    first = runner.act(OBSERVATION)
    kept = first.copy()
    runner.act({"state": -OBSERVATION["state"]})
    np.testing.assert_array_equal(first, kept)


def test_images_stay_eager_on_a_cpu(monkeypatch):
    def fail(function):
        raise AssertionError("compiled")

    monkeypatch.setattr(policy_module, "compile_function", fail)
    agent = build_agent(5, 7, 1, ("front",), SACConfig(encoder="small", hidden_widths=(16,)))
    runner = PolicyRunner(agent, execution="compiled", strict=True)
    image = np.arange(128 * 128 * 3).astype(np.uint8).reshape(128, 128, 3)
    action = runner.act({**OBSERVATION, "front": image}, deterministic=True)
    batch = {"state": torch.from_numpy(OBSERVATION["state"])[None], "front": torch.from_numpy(image)[None]}
    with torch.no_grad():
        np.testing.assert_array_equal(action, agent.policy(agent.networks, batch, None)[0].numpy())
    assert runner.execution == "eager"


def break_compiler(monkeypatch) -> None:
    def compile_function(function):
        def run(*arguments):
            raise RuntimeError("no compiler here")

        return run

    monkeypatch.setattr(policy_module, "compile_function", compile_function)


def test_a_policy_that_does_not_compile_acts_eagerly_and_says_so(agent, monkeypatch, capsys):
    break_compiler(monkeypatch)
    runner = PolicyRunner(agent, seed=3, execution="graphed", cuda=DeferredCuda(deferred=False))
    runner.warm_up(OBSERVATION)
    assert runner.execution == "eager"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2  # one for each rung
    assert said[0].startswith("acting by execution 'graphed' failed, going on with 'compiled': RuntimeError: no comp")
    np.testing.assert_array_equal(actions(runner), actions(PolicyRunner(agent, seed=3)))


def test_strict_execution_raises(agent, monkeypatch):
    break_compiler(monkeypatch)
    with pytest.raises(ExecutionError, match=r"no compiler here.*strict"):
        PolicyRunner(agent, execution="compiled", strict=True).warm_up(OBSERVATION)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"state": np.zeros(4, np.float32)}, r"'state' is of shape \(4,\); the policy acts on shape \(5,\)"),
        ({"pose": np.zeros(5, np.float32)}, "'state' is absent"),
        ({"state": np.array(["a"] * 5)}, "'state' is <U1; the policy acts on float32"),
    ],
)
def test_an_observation_that_changes_is_refused(agent, observation, message):
    runner = PolicyRunner(agent)
    runner.act(OBSERVATION)
    with pytest.raises(ValueError, match=message):
        runner.act(observation)
