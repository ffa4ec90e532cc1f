"""Compiled equals eager, as one graph without a break; bfloat16 stays near float32."""

import pytest
import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.sac import SACConfig
from serl_fast.engine import Engine, EngineConfig
from serl_fast.engine import engine as engine_module

# Largest difference of any parameter after 100 updates, relative to the tensor's largest entry: both sides are float32
# and differ only in the order of sums; Adam's normalisation turns rounding of near-zero gradients into steps of up to
# the learning rate, which bounds the growth.
EXECUTION_TOLERANCE = 2e-3
# bfloat16 has 8 bits of mantissa.
BFLOAT16_TOLERANCE = 5e-2


def batches(width: int, count: int, batch_size: int = 32) -> list[dict]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [
        {
            "observations": {"state": normal(batch_size, 9)},
            "next_observations": {"state": normal(batch_size, 9)},
            "actions": torch.tanh(normal(batch_size, width)),
            "rewards": normal(batch_size),
            "discounts": 0.97 * (normal(batch_size) > -1).float(),
            "grasp_penalty": -0.02 * (normal(batch_size) > 0).float(),
        }
        for _ in range(count)
    ]


def train(width, grippers, execution, precision="float32", updates=100, config=None):
    torch.manual_seed(0)
    config = config or SACConfig(hidden_widths=(32, 32), proprioception_dim=16)
    engine = Engine(build_agent(9, width, grippers, (), config), EngineConfig(execution, precision), seed=5)
    metrics = {}
    for index, batch in enumerate(batches(width, updates)):
        metrics.update(engine.update(batch, with_actor=index % 2 == 1))
    return engine, {name: value.item() for name, value in metrics.items()}


def largest_difference(a: Engine, b: Engine) -> float:
    pairs = zip(a.agent.networks.parameters(), b.agent.networks.parameters(), strict=True)
    return max(((x - y).abs().max() / y.abs().max().clamp(min=1e-3)).item() for x, y in pairs)


@pytest.mark.parametrize(("width", "grippers"), [(6, 0), (7, 1), (12, 0), (14, 2)])
def test_compiled_equals_eager(width, grippers):
    eager, eager_metrics = train(width, grippers, "eager")
    compiled, compiled_metrics = train(width, grippers, "compiled")
    assert largest_difference(compiled, eager) < EXECUTION_TOLERANCE
    assert compiled_metrics == pytest.approx(eager_metrics, rel=1e-3, abs=1e-4)


SMALL = {"hidden_widths": (32, 32)}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SACConfig.redq(**SMALL, critic_ensemble_size=5), id="redq"),
        pytest.param(SACConfig.rlpd(**SMALL, critic_ensemble_size=5), id="rlpd"),
        pytest.param(SACConfig.serl(**SMALL, critic_ensemble_size=5, warmup_steps=10), id="serl"),
        pytest.param(
            SACConfig(
                **SMALL,
                std_parameterization="uniform",
                cosine_decay_steps=80,
                weight_decay=1e-3,
                clip_gradient_norm=1.0,
                reward_bias=-0.1,
            ),
            id="optimizer",
        ),
        pytest.param(SACConfig(**SMALL, proprioception_dim=16, compat="hil_serl"), id="compat"),
        pytest.param(
            SACConfig(**SMALL, compat="hil_serl", critic_ensemble_size=5, critic_subsample_size=2, backup_entropy=True),
            id="compat_redq",
        ),
    ],
)
def test_every_configuration_compiles_to_the_same(config):
    width, grippers = (7, 1) if config.compat else (6, 0)
    eager, _ = train(width, grippers, "eager", config=config)
    compiled, _ = train(width, grippers, "compiled", config=config)
    assert largest_difference(compiled, eager) < EXECUTION_TOLERANCE


def test_the_step_is_one_graph_without_a_break():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(7, 1, "compiled", updates=4)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2  # the critic-only step and the full step, one graph each
    assert not counters["graph_break"]


def test_losses_compiled_one_by_one_equal_eager(monkeypatch):
    monkeypatch.setattr(engine_module, "can_trace_autograd", lambda: False)  # what an older torch answers
    eager, _ = train(7, 1, "eager", updates=20)
    compiled, _ = train(7, 1, "compiled", updates=20)
    assert largest_difference(compiled, eager) < EXECUTION_TOLERANCE


def test_bfloat16_stays_near_float32():
    exact, exact_metrics = train(7, 1, "eager")
    rough, rough_metrics = train(7, 1, "eager", precision="bfloat16")
    assert 0 < largest_difference(rough, exact) < 0.1  # untrained weights differ by 1
    assert all(p.dtype == torch.float32 for p in rough.agent.networks.parameters())
    assert rough_metrics["critic/loss"] == pytest.approx(exact_metrics["critic/loss"], rel=BFLOAT16_TOLERANCE)
