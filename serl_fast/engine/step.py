"""The whole update step of an agent as one plain function on tensors.

No ``Optimizer``, no ``.backward()``, no host reads: gradients come from ``torch.autograd.grad`` and Adam is written
with foreach operations, so that the same function runs eagerly and compiles into one graph without a break.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from serl_fast.core import AdamConfig, Agent, Batch, Noise, Objective, TargetUpdate

Step = Callable[[Batch, Noise], dict[str, Tensor]]
Function = TypeVar("Function")


class AdamState:
    """First and second moments of one network's parameters, and how many steps were taken.

    The count is a tensor, since a compiled or captured step would freeze a Python number.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.count = torch.zeros((), device=self.parameters[0].device)

    def tensors(self) -> list[Tensor]:
        """Everything that a checkpoint must hold."""
        return [self.count, *self.first, *self.second]


def adam_step(state: AdamState, gradients: Sequence[Tensor], config: AdamConfig) -> None:
    """One Adam step in place.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  p <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    Source: Kingma & Ba 2015, algorithm 1; equal to ``torch.optim.Adam``.
    """
    gradients = list(gradients)
    state.count.add_(1)
    torch._foreach_lerp_(state.first, gradients, 1 - config.beta1)
    torch._foreach_mul_(state.second, config.beta2)
    torch._foreach_addcmul_(state.second, gradients, gradients, 1 - config.beta2)
    # 1 - b^t as -expm1(t log b): the plain form loses half of float32's digits in the first steps.
    correction1 = -torch.expm1(state.count * math.log(config.beta1))
    correction2 = (-torch.expm1(state.count * math.log(config.beta2))).sqrt()
    denominators = torch._foreach_div(torch._foreach_sqrt(state.second), correction2)
    torch._foreach_add_(denominators, config.epsilon)
    updates = torch._foreach_div(state.first, denominators)
    torch._foreach_mul_(updates, -config.learning_rate / correction1)
    torch._foreach_add_(state.parameters, list(updates))


def average_targets(networks: nn.ModuleDict, updates: Sequence[TargetUpdate]) -> None:
    """Move each target towards its source, in place."""
    for update in updates:
        sources = dict(networks[update.source].named_parameters())
        # Parameters are matched by name: a target need not hold what is frozen, such as an encoder's trunk.
        pairs = [(target, sources[name]) for name, target in networks[update.target].named_parameters()]
        if pairs:
            torch._foreach_lerp_([target for target, _ in pairs], [source for _, source in pairs], update.rate)


def as_it_is(function: Function) -> Function:
    """Leave a part of the step uncompiled."""
    return function


def build_step(
    agent: Agent,
    adam: dict[str, AdamState],
    autocast: torch.autocast,
    *,
    with_actor: bool,
    compile_part: Callable[[Any], Any] = as_it_is,
) -> Step:
    """Assemble the step from the agent's objectives.

    Order: prepare; critic objectives, their gradients and Adam; with ``with_actor`` the actor objectives against the
    new critics, their gradients and Adam; target averages. Within one group all losses see the same parameters.

    Args:
        agent: what to minimise.
        adam: optimizer state by network name.
        autocast: the precision context of forward passes.
        with_actor: include the actor's objectives.
        compile_part: applied to the preparation and to every loss, where the whole step can not be compiled as one.

    Returns:
        A function (batch, noise) -> metrics, detached scalars named ``<objective>/<metric>``.
    """
    networks = agent.networks
    groups = (agent.critic_step, agent.actor_step) if with_actor else (agent.critic_step,)
    prepare = compile_part(agent.prepare)
    losses = {objective.name: compile_part(objective.loss) for group in groups for objective in group}

    def minimise(objectives: tuple[Objective, ...], batch: Batch, noise: Noise, metrics: dict[str, Tensor]) -> None:
        sums: dict[str, list[Tensor]] = {}
        for objective in objectives:
            with autocast:
                loss = losses[objective.name](networks, batch, noise)
            metrics.update({f"{objective.name}/{key}": value for key, value in loss.metrics.items()})
            trained = [name for name in objective.trains if name in adam]
            parameters = [p for name in trained for p in adam[name].parameters]
            gradients = list(torch.autograd.grad(loss.value, parameters))
            for name in trained:
                count = len(adam[name].parameters)
                share, gradients = gradients[:count], gradients[count:]
                sums[name] = share if name not in sums else [a + b for a, b in zip(sums[name], share, strict=True)]
        with torch.no_grad():
            for name, total in sums.items():
                adam_step(adam[name], total, agent.optimizer)

    def step(batch: Batch, noise: Noise) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        with torch.no_grad(), autocast:
            batch = prepare(networks, batch, noise)
        for group in groups:
            minimise(group, batch, noise, metrics)
        with torch.no_grad():
            average_targets(networks, agent.targets)
        return metrics

    return step
