"""The step's parts against torch's own optimizer and plain arithmetic."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from serl_fast.core import AdamConfig
from serl_fast.engine import Engine, EngineConfig
from serl_fast.engine.step import AdamState, adam_move
from tests.engine.conftest import quadratic_agent


def take_step(state, gradients):
    moves, rate = adam_move(state, gradients)
    torch._foreach_add_(state.parameters, moves)
    return rate


def test_adam_equals_torch_adam():
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    config = AdamConfig(learning_rate=1e-2)
    optimizer = torch.optim.Adam(theirs, lr=1e-2)
    state = AdamState(mine, config)
    for _ in range(20):
        gradients = [torch.randn_like(p) * 10 ** torch.randn(()) for p in mine]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        with torch.no_grad():
            take_step(state, gradients)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=5e-7)  # float32 rounding, 20 steps


@pytest.mark.parametrize(
    "config",
    [
        AdamConfig(1e-2, weight_decay=0.1),
        AdamConfig(1e-2, warmup_steps=4),
        AdamConfig(1e-2, warmup_steps=3, cosine_decay_steps=15),
        AdamConfig(1e-2, clip_gradient_norm=0.5),
        AdamConfig(1e-2, warmup_steps=2, cosine_decay_steps=12, weight_decay=0.3, clip_gradient_norm=2.0),
    ],
)
def test_schedule_decay_and_clipping_equal_torch(config):
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    optimizer = torch.optim.AdamW(theirs, lr=config.learning_rate, weight_decay=config.weight_decay)

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return step / config.warmup_steps
        if config.cosine_decay_steps is None:
            return 1.0
        span = config.cosine_decay_steps - config.warmup_steps
        return 0.5 * (1 + math.cos(math.pi * min((step - config.warmup_steps) / span, 1)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    state = AdamState(mine, config)
    for step in range(20):
        gradients = [torch.randn_like(p) if step != 5 else torch.zeros_like(p) for p in mine]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        if config.clip_gradient_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs, config.clip_gradient_norm)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            rate = take_step(state, gradients)
        assert rate.item() == pytest.approx(config.learning_rate * factor(step), rel=1e-6, abs=1e-9)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"warmup_steps": 5, "cosine_decay_steps": 5}, "cosine_decay_steps is 5.*must exceed warmup_steps, 5"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"clip_gradient_norm": 0.0}, "clip_gradient_norm is 0.0"),
    ],
)
def test_wrong_optimizer_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        AdamConfig(**settings)


def test_what_has_no_policy_can_not_act():
    engine = Engine(dataclasses.replace(quadratic_agent(), policy=None))
    with pytest.raises(ValueError, match="has no policy"):
        engine.act({"state": torch.zeros(1, 1)})


BATCH = {"actions": torch.zeros(4, 1)}


@pytest.mark.parametrize("execution", ["eager", "compiled"])
def test_order_of_one_update(execution):
    engine = Engine(quadratic_agent(), EngineConfig(execution))
    networks = engine.agent.networks
    metrics = engine.update(BATCH, with_actor=False)
    # ONE Adam step on the summed gradient: its first step has size lr whatever the gradient.
    assert networks["shared"].weight.item() == pytest.approx(0.1, abs=1e-6)
    assert networks["target"].weight.item() == pytest.approx(0.025, abs=1e-6)
    assert networks["actor"].weight.item() == 0.0  # nothing moves that was not asked for: no ghost step
    assert metrics["towards_3/loss"].item() == pytest.approx(9.0)
    metrics = engine.update(BATCH, with_actor=True)
    # The actor saw the new critic: its loss is the square of the shared weight after this step.
    assert metrics["actor/loss"].item() == pytest.approx(networks["shared"].weight.item() ** 2, rel=1e-5)
    assert networks["actor"].weight.item() == pytest.approx(0.1, abs=1e-5)
    assert engine.updates == 2


def test_wrong_shape_dtype_and_field_are_named():
    engine = Engine(quadratic_agent())
    engine.update(BATCH)
    with pytest.raises(ValueError, match=r"'actions' is float32\[3, 1\]; the step was built for float32\[4, 1\]"):
        engine.update({"actions": torch.zeros(3, 1)})
    with pytest.raises(ValueError, match=r"'actions' is float64"):
        engine.update({"actions": torch.zeros(4, 1, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"'extra' is float32\[1\]; the step was built for absent"):
        engine.update({"actions": torch.zeros(4, 1), "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'actions' is on meta; this engine runs on cpu"):
        engine.update({"actions": torch.zeros(4, 1, device="meta")})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "the batch has no fields"),
        ({"actions": np.zeros((4, 1), np.float32)}, "field 'actions' is a ndarray; a batch holds tensors"),
        ({"actions": torch.zeros(0, 1)}, r"a batch of 0 rows can not be shared out to 1 updates"),
    ],
)
def test_what_is_no_batch_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        Engine(quadratic_agent()).update(batch)


def test_a_device_is_the_same_with_and_without_its_index():
    engine = Engine(quadratic_agent(), device="cpu:0")  # as "cuda" and "cuda:0"
    engine.update(BATCH)
    assert engine.device == BATCH["actions"].device


def test_state_continues_exactly():
    first, second = Engine(quadratic_agent(), seed=3), Engine(quadratic_agent(), seed=9)
    for _ in range(3):
        first.update(BATCH)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        a, b = first.update(BATCH), second.update(BATCH)
        assert {k: v.item() for k, v in a.items()} == {k: v.item() for k, v in b.items()}
    assert second.updates == 6


def test_state_of_another_agent_is_refused():
    engine = Engine(quadratic_agent())
    state = engine.state_dict()
    state["adam"]["critic"] = state["adam"].pop("shared")
    with pytest.raises(ValueError, match=r"trains \['actor', 'critic'\]; this agent trains \['actor', 'shared'\]"):
        engine.load_state_dict(state)


@pytest.mark.parametrize("part", ["networks", "adam"])
def test_a_state_that_is_refused_changes_nothing(part):
    engine, other = Engine(quadratic_agent(), seed=3), Engine(quadratic_agent(), seed=3)
    state = engine.state_dict()
    for _ in range(3):
        other.update(BATCH)
    before, state = copy.deepcopy(state), copy.deepcopy(other.state_dict())
    if part == "networks":  # the last one does not fit, those before it do
        state["networks"][list(state["networks"])[-1]] = torch.zeros(7, 7)
    else:
        state["adam"]["shared"][-1] = torch.zeros(7, 7)
    with pytest.raises((ValueError, RuntimeError), match=r"size mismatch|other parameters of 'shared'"):
        engine.load_state_dict(state)
    after = engine.state_dict()
    assert after["updates"] == 0
    for name, value in before["networks"].items():
        assert torch.equal(after["networks"][name], value), name
    assert all(map(torch.equal, after["adam"]["shared"], before["adam"]["shared"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"execution": "fast"}, "execution is 'fast'; choose one of eager, compiled, graphed"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"execution": "graphed"}, "'graphed' captures a CUDA graph and this is cpu; choose 'compiled' or 'eager'"),
        ({"precision": "tf32"}, "'tf32' needs a CUDA device, this is cpu"),
    ],
)
def test_what_can_not_run_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Engine(quadratic_agent(), EngineConfig(**settings))


def test_warming_up_compiles_and_trains_nothing():
    engine = Engine(quadratic_agent(), EngineConfig("compiled"), seed=3)
    before = copy.deepcopy(engine.state_dict())
    engine.warm_up(BATCH)
    after = engine.state_dict()
    assert after["updates"] == 0
    assert torch.equal(after["generator"], before["generator"])
    for name, value in before["networks"].items():
        assert torch.equal(after["networks"][name], value)
    for name, tensors in before["adam"].items():
        assert all(torch.equal(a, b) for a, b in zip(after["adam"][name], tensors, strict=True))
    cold = Engine(quadratic_agent(), EngineConfig("compiled"), seed=3)
    assert engine.update(BATCH)["actor/noise"] == cold.update(BATCH)["actor/noise"]
