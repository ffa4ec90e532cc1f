"""A pixel agent's compiled step equals the eager one, trunk included, as one graph per variant."""

import pytest
import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.sac import SACConfig
from serl_fast.engine import Engine, EngineConfig

# Norm of the difference after 10 updates, relative to how far training moved the tensor. Compiled convolutions add in
# another order; Adam turns the rounding of near-zero gradients into steps of up to the learning rate, in a few of the
# million weights of a camera's head, so the largest single difference says nothing.
PIXEL_TOLERANCE = 5e-3
CAMERAS = ("front", "wrist")


def batches(count, size=4, side=32):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def observe():
        images = torch.randint(256, (len(CAMERAS), size, side, side, 3), generator=generator, dtype=torch.uint8)
        return {"state": normal(size, 5), **dict(zip(CAMERAS, images, strict=True))}

    for _ in range(count):
        yield {
            "observations": observe(),
            "next_observations": observe(),
            "actions": torch.tanh(normal(size, 7)),
            "rewards": normal(size),
            "discounts": 0.97 * (normal(size) > -1).float(),
            "grasp_penalty": -0.02 * (normal(size) > 0).float(),
        }


def build(config):
    torch.manual_seed(0)
    return build_agent(5, 7, 1, CAMERAS, config)


def train(execution, config):
    agent, metrics = build(config), {}
    engine = Engine(agent, EngineConfig(execution), seed=5)
    for index, batch in enumerate(batches(10)):
        metrics.update(engine.update(batch, with_actor=index % 2 == 1))
    return agent.networks, {name: value.item() for name, value in metrics.items()}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SACConfig(hidden_widths=(32, 32)), id="frozen_resnet"),
        pytest.param(SACConfig(hidden_widths=(32, 32), compat="hil_serl"), id="compat"),
        pytest.param(SACConfig.drq(hidden_widths=(32, 32), critic_ensemble_size=3, image_size=(32, 32)), id="drq"),
    ],
)
def test_compiled_equals_eager_as_one_graph_per_variant(config):
    """One test, since compiling is what takes its time."""
    eager, eager_metrics = train("eager", config)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, compiled_metrics = train("compiled", config)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2  # the critic-only step and the full step
    assert not counters["graph_break"]
    assert compiled_metrics == pytest.approx(eager_metrics, rel=1e-3, abs=1e-4)
    tensors = (network.parameters() for network in (compiled, eager, build(config).networks))
    for (name, _), a, b, start in zip(eager.named_parameters(), *tensors, strict=True):
        assert (a - b).norm() <= PIXEL_TOLERANCE * (b - start).norm(), name
