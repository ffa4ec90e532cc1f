"""Compiled equals eager, as one graph, for BC and the learned rewards; VICE has a second derivative in its loss."""

import pytest
import torch

from serl_fast.agents.bc import BCConfig, bc
from serl_fast.engine import Engine, EngineConfig
from serl_fast.engine import engine as engine_module
from serl_fast.rewards.classifier import ClassifierConfig, reward_classifier
from serl_fast.rewards.vice import ViceConfig, vice

# Norm of the difference after the updates, relative to how far training moved the tensor. Compiled code adds in another
# order; Adam turns the rounding of near-zero gradients into steps of up to the learning rate.
TOLERANCE = 5e-3
UPDATES = 5
CAMERAS = ("front", "wrist")
SMALL = {"encoder": "small", "image_size": (32, 32)}
AGENTS = {
    "bc": lambda: bc(5, 6, CAMERAS, BCConfig(hidden_widths=(32, 32), **SMALL)),
    "bc, squashed, states": lambda: bc(5, 6, (), BCConfig(hidden_widths=(32, 32), squash=True)),
    "classifier": lambda: reward_classifier(CAMERAS, ClassifierConfig(hidden=32, **SMALL)),
    "classifier of 3": lambda: reward_classifier(CAMERAS, ClassifierConfig(classes=3, hidden=32)),
    "vice": lambda: vice(CAMERAS, ViceConfig(hidden=32, bottleneck=32, **SMALL)),
    "vice, compat": lambda: vice(CAMERAS, ViceConfig(hidden=32, bottleneck=32, compat="hil_serl")),
}


def batches(size=4):
    generator = torch.Generator().manual_seed(1)

    def observe():
        images = torch.randint(256, (len(CAMERAS), size, 32, 32, 3), generator=generator, dtype=torch.uint8)
        return {"state": torch.randn(size, 5, generator=generator), **dict(zip(CAMERAS, images, strict=True))}

    for _ in range(UPDATES):
        yield {
            "observations": observe(),
            "next_observations": observe(),
            "actions": torch.rand(size, 6, generator=generator) * 2 - 1,
            "labels": torch.randint(2, (size,), generator=generator),
        }


def train(build, execution):
    torch.manual_seed(0)
    agent = build()
    before = [p.detach().clone() for p in agent.networks.parameters()]
    engine, history = Engine(agent, EngineConfig(execution), seed=5), []
    for batch in batches():
        history.append({name: value.item() for name, value in engine.update(batch).items()})
    return agent.networks, before, history


def check(build):
    eager, before, eager_history = train(build, "eager")
    compiled, _, compiled_history = train(build, "compiled")
    for ours, theirs in zip(compiled_history, eager_history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    for (name, a), b, start in zip(eager.named_parameters(), compiled.parameters(), before, strict=True):
        assert (a - b).norm() <= TOLERANCE * (a - start).norm(), name


@pytest.mark.parametrize("name", list(AGENTS))
def test_compiled_equals_eager_as_one_graph(name):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    check(AGENTS[name])
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_the_penalty_compiles_in_a_loss_of_its_own(monkeypatch):
    """Where torch cannot trace gradients, each loss is compiled alone: its inner gradient must be in that graph."""
    monkeypatch.setattr(engine_module, "can_trace_autograd", lambda: False)
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", False, raising=False)
    check(AGENTS["vice"])
