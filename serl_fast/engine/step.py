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
    """First and second moments of some parameters, and how many steps were taken.

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


def adam_move(state: AdamState, gradients: Sequence[Tensor], config: AdamConfig) -> tuple[list[Tensor], Tensor]:
    """Take a gradient into Adam's moments, in place; how far each parameter is to move, and the learning rate.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;
    move = -lr ((m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay p).

    Source: Kingma & Ba 2015, algorithm 1; equal to ``torch.optim.AdamW`` (``Adam`` without weight decay).
    """
    gradients = list(gradients)
    if config.clip_gradient_norm is not None:
        gradients = clip_by_global_norm(gradients, config.clip_gradient_norm)
    learning_rate = config.learning_rate_at(state.count)
    state.count.add_(1)
    torch._foreach_lerp_(state.first, gradients, 1 - config.beta1)
    torch._foreach_mul_(state.second, config.beta2)
    torch._foreach_addcmul_(state.second, gradients, gradients, 1 - config.beta2)
    # 1 - b^t as -expm1(t log b): the plain form loses half of float32's digits in the first steps.
    correction1 = -torch.expm1(state.count * math.log(config.beta1))
    correction2 = (-torch.expm1(state.count * math.log(config.beta2))).sqrt()
    denominators = torch._foreach_div(torch._foreach_sqrt(state.second), correction2)
    torch._foreach_add_(denominators, config.epsilon)
    torch._foreach_mul_(denominators, correction1)
    moves = torch._foreach_div(state.first, denominators)
    if config.weight_decay:
        torch._foreach_add_(moves, state.parameters, alpha=config.weight_decay)
    torch._foreach_mul_(moves, -learning_rate)
    return list(moves), learning_rate


def clip_by_global_norm(gradients: list[Tensor], largest: float) -> list[Tensor]:
    """Scale all gradients by min(1, largest / norm), norm over all of their entries together."""
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    # A zero gradient has norm 0: its quotient is infinite and the minimum 1.
    return list(torch._foreach_mul(gradients, (largest / norm).clamp(max=1.0)))


def average_targets(networks: nn.ModuleDict, updates: Sequence[TargetUpdate]) -> None:
    """Move each target towards its source, in place."""
    for update in updates:
        # Users may wrap a network by torch.compile, which puts it under this name.
        sources = {name.removeprefix("_orig_mod."): p for name, p in networks[update.source].named_parameters()}
        # Parameters are matched by name: a target need not hold what is frozen, such as an encoder's trunk.
        named = dict(networks[update.target].named_parameters())
        targets: list[Tensor] = list(named.values())
        values: list[Tensor] = [sources[name] for name in named]
        if targets:
            # Not lerp: the original rounds tau * source and (1 - tau) * target one after the other.
            torch._foreach_mul_(targets, 1 - update.rate)
            torch._foreach_add_(targets, values, alpha=update.rate)


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

    With ``agent.optimize == "networks"``: prepare; critic objectives, their gradients and Adam; with ``with_actor``
    the actor objectives against the new critics, their gradients and Adam; target averages. Within one group all
    losses see the same parameters. With "objectives": prepare; every gradient at the old parameters; every Adam;
    target averages.

    Args:
        agent: what to minimise.
        adam: optimizer state by the names of ``agent.optimized``.
        autocast: the precision context of forward passes.
        with_actor: include the actor's objectives.
        compile_part: applied to the preparation and to every loss, where the whole step can not be compiled as one.

    Returns:
        A function (batch, noise) -> metrics, detached scalars named ``<objective>/<metric>``, and
        ``<name>/learning_rate`` of every Adam that stepped.
    """
    networks = agent.networks
    asked = (agent.critic_step, agent.actor_step) if with_actor else (agent.critic_step,)
    groups = [group for group in asked if group]  # a classifier has no actor
    prepare = compile_part(agent.prepare)
    losses = {objective.name: compile_part(objective.loss) for group in groups for objective in group}

    def gradients_of(
        objective: Objective, reached: list[Tensor], batch: Batch, noise: Noise, metrics: dict[str, Tensor]
    ) -> list[Tensor]:
        with autocast:
            loss = losses[objective.name](networks, batch, noise)
        metrics.update({f"{objective.name}/{key}": value for key, value in loss.metrics.items()})
        # What a loss does not reach (camera heads behind a detach) has gradient zero.
        return list(torch.autograd.grad(loss.value, reached, allow_unused=True, materialize_grads=True))

    # Where each Adam's parameters stand among all: an encoder may belong to several of them.
    parameters = list(dict.fromkeys(p for state in adam.values() for p in state.parameters))
    place_of = {p: place for place, p in enumerate(parameters)}
    places = {name: [place_of[p] for p in state.parameters] for name, state in adam.items()}

    def take_steps(gradients: dict[str, list[Tensor]], metrics: dict[str, Tensor]) -> None:
        moves: dict[int, Tensor] = {}
        for name, gradient in gradients.items():
            steps, rate = adam_move(adam[name], gradient, agent.optimizers.get(name, AdamConfig()))
            metrics[f"{name}/learning_rate"] = rate
            for place, move in zip(places[name], steps, strict=True):
                moves[place] = moves[place] + move if place in moves else move
        if moves:
            torch._foreach_add_([parameters[place] for place in moves], list(moves.values()))

    def by_networks(batch: Batch, noise: Noise, metrics: dict[str, Tensor]) -> None:
        for group in groups:
            sums: dict[str, list[Tensor]] = {}
            for objective in group:
                trained = [name for name in objective.trains if name in adam]
                reached = [p for name in trained for p in adam[name].parameters]
                gradients = gradients_of(objective, reached, batch, noise, metrics)
                for name in trained:
                    count = len(adam[name].parameters)
                    share, gradients = gradients[:count], gradients[count:]
                    sums[name] = share if name not in sums else [a + b for a, b in zip(sums[name], share, strict=True)]
            with torch.no_grad():
                take_steps(sums, metrics)

    def by_objectives(batch: Batch, noise: Noise, metrics: dict[str, Tensor]) -> None:
        gradients = {name: [torch.zeros_like(p) for p in state.parameters] for name, state in adam.items()}
        for objective in (objective for group in groups for objective in group):
            reached = adam[objective.name].parameters
            gradients[objective.name] = gradients_of(objective, reached, batch, noise, metrics)
        with torch.no_grad():
            take_steps(gradients, metrics)

    minimise = by_objectives if agent.optimize == "objectives" else by_networks

    def step(batch: Batch, noise: Noise) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        with torch.no_grad(), autocast:
            batch = prepare(networks, batch, noise)
        minimise(batch, noise, metrics)
        with torch.no_grad():
            average_targets(networks, agent.targets)
        return metrics

    return step
