"""Adam with schedules, clipping and weight decay along recorded trajectories, as the engine runs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serl_fast.core import AdamConfig, Agent, Batch, Loss, Noise, Objective
from serl_fast.engine import Engine, EngineConfig
from tests.parity.fixture import Fixture
from tests.parity.library import Library

# The original's name of a setting -> ours.
NAMES = {
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup_steps",
    "cosine_decay_steps": "cosine_decay_steps",
    "weight_decay": "weight_decay",
    "clip_grad_norm": "clip_gradient_norm",
}


def optimizer(fixture: Fixture, library: Library) -> None:
    """Every variant from the same start with the same gradients: parameters and learning rate of each step."""
    start = {name: fixture.given(f"params/{name}") for name in fixture.below("params")}
    gradients = {name: fixture.given(f"grads/{name}") for name in fixture.below("grads")}
    steps = next(iter(gradients.values())).shape[0]
    for variant, settings in fixture.config["variants"].items():
        values = fixture.config.get("defaults", {}) | settings
        config = AdamConfig(**{NAMES[name]: value for name, value in values.items() if value is not None})
        parameters = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in start.items()})
        engine = Engine(agent(parameters, config), EngineConfig("eager"))
        rates: list[Tensor] = []
        trajectory: dict[str, list[Tensor]] = {name: [] for name in start}
        for step in range(steps):
            metrics = engine.update({name: gradient[step] for name, gradient in gradients.items()})
            rates.append(metrics["network/learning_rate"])
            for name, parameter in parameters.items():
                trajectory[name].append(parameter.detach().clone())
        fixture.compare(f"{variant}/learning_rate", torch.stack(rates), "value")
        for name, passed in trajectory.items():
            fixture.compare(f"{variant}/trajectory/{name}", torch.stack(passed), "parameter")


def agent(parameters: nn.ParameterDict, config: AdamConfig) -> Agent:
    """An agent whose gradient is the batch: the loss is the sum of parameter times batch."""

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        return Loss(sum((parameters[name] * batch[name]).sum() for name in parameters), {})

    return Agent(
        networks=nn.ModuleDict({"network": parameters}),
        critic_step=(Objective("network", loss, trains=("network",)),),
        draw_noise=lambda *_: {},
        optimizers={"network": config},
    )
