"""An agent whose every number can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from serl_fast.core import AdamConfig, Agent, Loss, Objective, TargetUpdate


def quadratic_agent() -> Agent:
    """Two objectives pull the shared weight towards 1 and 3; the actor's weight towards the shared one."""

    def weight(value: float) -> nn.Linear:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, value)
        return layer

    networks = nn.ModuleDict({name: weight(0.0) for name in ("shared", "target", "actor")})
    networks["target"].requires_grad_(False)

    def towards(goal: float) -> Objective:
        def loss(networks, batch, noise):
            value = (networks["shared"].weight - goal).square().sum()
            return Loss(value, {"loss": value.detach()})

        return Objective(f"towards_{goal:g}", loss, ("shared",))

    def follow(networks, batch, noise):
        value = (networks["actor"].weight - networks["shared"].weight.detach()).square().sum()
        return Loss(value, {"loss": value.detach(), "noise": noise["x"].mean()})

    return Agent(
        networks=networks,
        critic_step=(towards(1.0), towards(3.0)),
        actor_step=(Objective("actor", follow, ("actor",)),),
        targets=(TargetUpdate("shared", "target", 0.25),),
        draw_noise=lambda generator, size, device: {"x": torch.randn(size, generator=generator)},
        policy=lambda networks, observations, noise: networks["actor"](observations["state"]),
        policy_networks=("actor",),
        action_dim=1,
        policy_noise_dim=1,
        optimizers=dict.fromkeys(("shared", "actor"), AdamConfig(0.1)),
    )


def fragile_agent(optimize: str = "networks") -> Agent:
    """A critic and an actor whose losses and gradients the batch can break, with everything that Adam has.

    ``critic`` and ``actor`` [B] are factors of the losses, in a float16 product on the gradient's way; where ``slope``
    is 0 the critic's loss is finite and its gradient is not.
    """
    torch.manual_seed(0)
    networks = nn.ModuleDict({name: nn.Linear(3, 2) for name in ("critic", "actor")})
    networks["target"] = nn.Linear(3, 2).requires_grad_(False)

    def objective(name: str) -> Objective:
        def loss(networks, batch, noise):
            out = networks[name](noise["x"]).sum(-1)
            factors = batch[name][:2, None].expand(2, 3).half()
            product = (0.01 * out)[:, None].expand(-1, 2).half() @ factors  # compiled too: fused casts keep more digits
            value = product.float().mean() + 0.01 * out.square().mean()
            if name == "critic":
                value = value + (batch["slope"] * networks[name].bias.square().sum()).sqrt().mean()
            else:
                value = value + networks["critic"].bias.detach().sum()
            return Loss(value, {"loss": value.detach()})

        return Objective(name, loss, (name,))

    adam = AdamConfig(0.01, weight_decay=0.1, clip_gradient_norm=1.0, warmup_steps=2)
    return Agent(
        networks=networks,
        critic_step=(objective("critic"),),
        actor_step=(objective("actor"),),
        targets=(TargetUpdate("critic", "target", 0.25),),
        draw_noise=lambda generator, size, device: {"x": torch.randn(size, 3, generator=generator)},
        optimizers=dict.fromkeys(("critic", "actor"), adam),
        optimize=optimize,
        settings={"algorithm": "fragile", "sizes": [3, 2]},
    )


@pytest.fixture
def quadratic() -> Callable[[], Agent]:
    return quadratic_agent


@pytest.fixture
def fragile() -> Callable[..., Agent]:
    return fragile_agent
