"""The whole update step of an agent as one plain function on tensors.

No ``Optimizer``, no ``.backward()``, no host reads: gradients come from ``torch.autograd.grad`` and Adam is written
with foreach operations, so that the same function runs eagerly and compiles into one graph without a break.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from serl_fast.core import AdamConfig, Agent, Batch, Noise, Objective, TargetUpdate
from serl_fast.engine.guard import Guard, Outcome, Verdict
from serl_fast.engine.metrics import MetricsRing

Step = Callable[[Batch, Noise, dict[str, Any]], dict[str, Tensor]]
Average = Callable[[list[Tensor]], list[Tensor]]
Function = TypeVar("Function")


class AdamState:
    """First and second moments of some parameters, how many steps were taken, and the learning rate.

    Count and learning rate are tensors, since a compiled or captured step would freeze a Python number.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: AdamConfig) -> None:
        self.config = config
        self.parameters: list[Tensor] = list(parameters)
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.count = torch.zeros((), device=self.parameters[0].device)
        self.learning_rate = torch.full_like(self.count, config.learning_rate)  # before its schedule

    def tensors(self) -> list[Tensor]:
        """Everything that a checkpoint must hold."""
        return [self.count, *self.first, *self.second]


def adam_move(state: AdamState, gradients: Sequence[Tensor], take: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
    """Take a gradient into Adam's moments, in place; how far each parameter is to move, and the learning rate.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;
    move = -lr ((m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay p).

    Args:
        state: moments and count, changed in place.
        gradients: one for each parameter.
        take: bool scalar; where it is false moments and count stay as they are and every move is zero, whatever the
            gradient. None: the step is taken.

    Source: Kingma & Ba 2015, algorithm 1; equal to ``torch.optim.AdamW`` (``Adam`` without weight decay).
    """
    config, gradients = state.config, list(gradients)
    if take is not None:
        gradients = [torch.where(take, gradient, 0.0) for gradient in gradients]  # NaN * 0 would be NaN
    if config.clip_gradient_norm is not None:
        gradients = clip_by_global_norm(gradients, config.clip_gradient_norm)
    learning_rate = config.learning_rate_at(state.count, state.learning_rate)
    state.count.add_(1 if take is None else take.to(state.count.dtype))
    if take is None:
        torch._foreach_lerp_(state.first, gradients, 1 - config.beta1)
        torch._foreach_mul_(state.second, config.beta2)
    else:
        # m + w (m - m) is m to the bit; a weight of 0 in a tensor would do too, at twice the time when compiled.
        drawn_to = [torch.where(take, gradient, m) for gradient, m in zip(gradients, state.first, strict=True)]
        torch._foreach_lerp_(state.first, drawn_to, 1 - config.beta1)
        torch._foreach_mul_(state.second, torch.where(take, torch.full_like(state.count, config.beta2), 1.0))
    torch._foreach_addcmul_(state.second, gradients, gradients, 1 - config.beta2)
    # 1 - b^t as -expm1(t log b): the plain form loses half of float32's digits in the first steps.
    count = state.count if take is None else state.count.clamp(min=1)  # before the first step nothing divides by 0
    correction1 = -torch.expm1(count * math.log(config.beta1))
    correction2 = (-torch.expm1(count * math.log(config.beta2))).sqrt()
    denominators = torch._foreach_div(torch._foreach_sqrt(state.second), correction2)
    torch._foreach_add_(denominators, config.epsilon)
    torch._foreach_mul_(denominators, correction1)
    moves = torch._foreach_div(state.first, denominators)
    if config.weight_decay:
        torch._foreach_add_(moves, state.parameters, alpha=config.weight_decay)
    torch._foreach_mul_(moves, -learning_rate if take is None else torch.where(take, -learning_rate, 0.0))
    return list(moves), learning_rate


def clip_by_global_norm(gradients: list[Tensor], largest: float) -> list[Tensor]:
    """Scale all gradients by min(1, largest / norm), norm over all of their entries together."""
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    # A zero gradient has norm 0: its quotient is infinite and the minimum 1.
    return list(torch._foreach_mul(gradients, (largest / norm).clamp(max=1.0)))


def average_targets(networks: nn.ModuleDict, updates: Sequence[TargetUpdate], take: Tensor | None = None) -> None:
    """Move each target towards its source, in place; where ``take`` is false it stays as it is."""
    for update in updates:
        # Users may wrap a network by torch.compile, which puts it under this name.
        sources = {name.removeprefix("_orig_mod."): p for name, p in networks[update.source].named_parameters()}
        # Parameters are matched by name: a target need not hold what is frozen, such as an encoder's trunk.
        named = dict(networks[update.target].named_parameters())
        targets: list[Tensor] = list(named.values())
        values: list[Tensor] = [sources[name] for name in named]
        if targets:
            # Not lerp: the original rounds tau * source and (1 - tau) * target one after the other.
            if take is None:
                torch._foreach_mul_(targets, 1 - update.rate)
            else:
                values = [torch.where(take, value, 0.0) for value in values]
                kept = torch.full((), 1 - update.rate, device=take.device)
                torch._foreach_mul_(targets, torch.where(take, kept, 1.0))
            torch._foreach_add_(targets, values, alpha=update.rate)


def as_it_is(function: Function) -> Function:
    """Leave a part of the step uncompiled."""
    return function


class StepOptions(NamedTuple):
    """What a step is built with beside the agent.

    Attributes:
        autocast: the precision context of forward passes.
        compile_part: applied to the preparation and to every loss, where the whole step can not be compiled as one.
        guard: takes back what is not finite, and scales the losses; None: everything is taken as it comes.
        average: applied to the gradients of a group of objectives, with the scalars that the guard judges, before Adam
            sees them: the mean over processes that each have a share of the batch.
        ring: where the metrics of every update are written.
    """

    autocast: Any
    compile_part: Callable[[Any], Any] = as_it_is
    guard: Guard | None = None
    average: Average | None = None
    ring: MetricsRing | None = None


def build_step(agent: Agent, adam: dict[str, AdamState], options: StepOptions, *, with_actor: bool) -> Step:
    """Assemble the step on a prepared batch from the agent's objectives.

    With ``agent.optimize == "networks"``: critic objectives, their gradients and Adam; with ``with_actor`` the actor
    objectives against the new critics, their gradients and Adam; target averages. Within one group all losses see the
    same parameters. With "objectives": every gradient at the old parameters; every Adam; target averages.

    Args:
        agent: what to minimise.
        adam: optimizer state by the names of ``agent.optimized``.
        options: precision, guard and the like.
        with_actor: include the actor's objectives.

    Returns:
        A function (prepared batch, noise, what the guard keeps if the update fails) -> metrics, detached scalars named
        ``<objective>/<metric>``, and ``<name>/learning_rate`` of every Adam that stepped.
    """
    networks, guard, average = agent.networks, options.guard, options.average
    asked = (agent.critic_step, agent.actor_step) if with_actor else (agent.critic_step,)
    groups = [group for group in asked if group]  # a classifier has no actor
    gradients_of = _gradient_function(agent, groups, options)

    # Where each Adam's parameters stand among all: an encoder may belong to several of them.
    parameters = list(dict.fromkeys(p for state in adam.values() for p in state.parameters))
    place_of = {p: place for place, p in enumerate(parameters)}
    places = {name: [place_of[p] for p in state.parameters] for name, state in adam.items()}

    def take_steps(gradients: dict[str, list[Tensor]], metrics: dict[str, Tensor], take: Tensor | None) -> None:
        moves: dict[int, Tensor] = {}
        for name, gradient in gradients.items():
            steps, rate = adam_move(adam[name], gradient, take)
            metrics[f"{name}/learning_rate"] = rate
            for place, move in zip(places[name], steps, strict=True):
                moves[place] = moves[place] + move if place in moves else move
        if moves:
            torch._foreach_add_([parameters[place] for place in moves], list(moves.values()))

    def minimise_by_networks(batch: Batch, noise: Noise, metrics: dict[str, Tensor]) -> Verdict | None:
        verdict = guard.begin() if guard else None
        for group in groups:
            sums: dict[str, list[Tensor]] = {}
            outcomes: list[Outcome] = []
            for objective in group:
                trained = [name for name in objective.trains if name in adam]
                reached = [p for name in trained for p in adam[name].parameters]
                gradients, found = gradients_of(objective, reached, batch, noise, metrics)
                outcomes += found
                for name in trained:
                    count = len(adam[name].parameters)
                    share, gradients = gradients[:count], gradients[count:]
                    sums[name] = share if name not in sums else [a + b for a, b in zip(sums[name], share, strict=True)]
            with torch.no_grad():
                if average:
                    sums, outcomes = averaged(average, sums, outcomes)
                if verdict:
                    verdict = verdict.after(outcomes)
                take_steps(sums, metrics, verdict.take if verdict else None)
        return verdict

    def minimise_by_objectives(batch: Batch, noise: Noise, metrics: dict[str, Tensor]) -> Verdict | None:
        verdict = guard.begin() if guard else None
        gradients = {name: [torch.zeros_like(p) for p in state.parameters] for name, state in adam.items()}
        outcomes: list[Outcome] = []
        for objective in (objective for group in groups for objective in group):
            reached = adam[objective.name].parameters
            gradients[objective.name], found = gradients_of(objective, reached, batch, noise, metrics)
            outcomes += found
        with torch.no_grad():
            if average:
                gradients, outcomes = averaged(average, gradients, outcomes)
            if verdict:
                verdict = verdict.after(outcomes)
            take_steps(gradients, metrics, verdict.take if verdict else None)
        return verdict

    targets = [target for target in agent.targets if with_actor or not target.with_actor]
    minimise = minimise_by_objectives if agent.optimize == "objectives" else minimise_by_networks

    def step(prepared: Batch, noise: Noise, given: dict[str, Any]) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        verdict = minimise(prepared, noise, metrics)
        take = verdict.take if verdict else None
        with torch.no_grad():
            average_targets(networks, targets, take)
            if guard and verdict:
                guard.settle(verdict, given, with_actor=with_actor)
                metrics.update(guard.metrics())
            if options.ring:
                options.ring.write(list(metrics.values()))
        return metrics

    return step


def averaged(
    average: Average, gradients: dict[str, list[Tensor]], outcomes: list[Outcome]
) -> tuple[dict[str, list[Tensor]], list[Outcome]]:
    """Gradients and the guard's scalars after ONE call of ``average``: what is not finite anywhere is so everywhere."""
    flat = [gradient for group in gradients.values() for gradient in group]
    mean = iter(average(flat + [scalar for outcome in outcomes for scalar in outcome]))
    gradients = {name: [next(mean) for _ in group] for name, group in gradients.items()}
    return gradients, [Outcome(next(mean), next(mean)) for _ in outcomes]


GradientFunction = Callable[
    [Objective, list[Tensor], Batch, Noise, dict[str, Tensor]],
    tuple[list[Tensor], list[Outcome]],
]


def _gradient_function(agent: Agent, groups: Sequence[Sequence[Objective]], options: StepOptions) -> GradientFunction:
    """(objective, parameters, batch, noise, metrics to add to) -> gradients, and what the guard wants to know."""
    guard, autocast = options.guard, options.autocast
    losses = {objective.name: options.compile_part(objective.loss) for group in groups for objective in group}
    scaled = guard is not None and guard.scaled

    def gradients_of(
        objective: Objective, reached: list[Tensor], batch: Batch, noise: Noise, metrics: dict[str, Tensor]
    ) -> tuple[list[Tensor], list[Outcome]]:
        with autocast:
            loss = losses[objective.name](agent.networks, batch, noise)
        metrics.update({objective.metric(key): value for key, value in loss.metrics.items()})
        value = loss.value
        if scaled:
            assert guard is not None
            value = value * guard.loss_scale
        # What a loss does not reach (camera heads behind a detach) has gradient zero.
        gradients = list(torch.autograd.grad(value, reached, allow_unused=True, materialize_grads=True))
        with torch.no_grad():
            if scaled:
                assert guard is not None
                torch._foreach_div_(gradients, guard.loss_scale)
            # A sum is judged by its parts, which have one gradient together.
            parts = [metrics.get(part.metric("loss"), loss.value) for part in objective.parts] or [loss.value]
            norm = _norm(gradients, loss.value)
            return gradients, [Outcome(part.detach().float().reshape(()), norm) for part in parts]

    return gradients_of


def _norm(gradients: list[Tensor], like: Tensor) -> Tensor:
    """The norm of all gradients together, float32; infinite where a square would overflow in Adam."""
    if not gradients:
        return torch.zeros((), device=like.device)
    # Not _foreach_norm: compilers call that as it is, where these sums become part of their loops.
    return torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt()
