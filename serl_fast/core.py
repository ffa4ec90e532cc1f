"""The shared nouns: what an agent is, what a batch is, what a loss returns.

Dimension letters used in shape comments everywhere:
B batch, U updates per call, T stacked frames, E critics, M critics kept, A action, P proprioception,
H W C image, K cameras, G gripper choices, D feature.

An agent is a value. It says WHAT to minimise; ``serl_fast.engine`` decides HOW (eager, compiled, precision).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Compat = Literal["hil_serl"]
"""Original whose update an agent can reproduce exactly, its defects included."""

Observations = dict[str, Tensor]
"""``state`` float32 [B, P] and, for each camera, uint8 images [B, H, W, C] or trunk features."""

Batch = dict[str, Any]
"""``observations`` and ``next_observations`` (:data:`Observations`), ``actions`` float32 [B, A], ``rewards``,
``discounts`` (gamma^n * (1 - terminated)) float32 [B], and for some agents ``grasp_penalty`` float32 [B] (hybrid),
``next_actions`` float32 [B, A] (ReBRAC) or ``mc_returns`` float32 [B] (Cal-QL)."""

Noise = dict[str, Tensor]
"""Every random number of one update. An argument, so that losses are pure functions."""


class DeviceSource(Protocol):
    """Draws batches from memory of the learner's device, inside the step.

    Attributes:
        batch_size: B, rows of one gradient step.
    """

    batch_size: int

    def draw_noise(self, generator: torch.Generator, updates: int, device: torch.device) -> Noise:
        """The random numbers of the batches of ``updates`` gradient steps.

        The first axis of every entry is shared out evenly and in order: update u of U has the rows [u * n / U,
        (u + 1) * n / U), and :meth:`batch` of these alone gives the batch of update u alone.
        """

    def batch(self, noise: Noise) -> Batch:
        """The rows of all updates, [U * B, ...]; those of update u are u * B to (u + 1) * B.

        A function of ``noise`` and of the source's own tensors, which keep their addresses while their values change.
        A source that replaces them all the same, between two steps, has an attribute ``generation`` that counts it. One
        whose draw depends on such values has a method ``drew_from() -> Noise``: with a copy of it in the noise, the
        batch is the same again later.
        It reads nothing on the host, can be traced, and returns the same shapes every time.
        """


class Loss(NamedTuple):
    """What an objective returns: a scalar to minimise and detached scalars to log."""

    value: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """One loss and the networks that receive its gradient.

    Objectives of one step are evaluated at the same parameters; a network trained by several of them receives the
    sum of their gradients and takes ONE optimizer step (see ``Agent.optimize`` for the other way).

    Attributes:
        name: metric prefix, for example ``"critic"``.
        loss: pure function of (networks, batch, noise).
        trains: names in ``Agent.networks``.
        parts: the objectives whose losses this one adds up; its metrics are named after them. Empty for a plain one.
    """

    name: str
    loss: Callable[[nn.ModuleDict, Batch, Noise], Loss]
    trains: tuple[str, ...]
    parts: tuple[Objective, ...] = ()

    def metric(self, key: str) -> str:
        """The full name of a metric that ``loss`` returns."""
        return key if self.parts else f"{self.name}/{key}"


@dataclass(frozen=True)
class TargetUpdate:
    """Exponential moving average: target <- rate * source + (1 - rate) * target, over all parameters.

    Attributes:
        source: name of the network that is followed.
        target: name of the average.
        rate: see the formula.
        with_actor: taken in the updates that step the actor alone, as TD3 delays its targets; else in every one.
    """

    source: str
    target: str
    rate: float
    with_actor: bool = False


@dataclass(frozen=True)
class AdamConfig:
    """Adam (Kingma & Ba 2015, algorithm 1) with bias correction, epsilon outside the square root, and its schedule.

    Per step: clip the gradient by its global norm, Adam, decoupled weight decay (AdamW, Loshchilov & Hutter 2019),
    p <- p - lr * (adam(g) + weight_decay * p).

    The schedule counts the steps of this optimizer: an actor's takes one per ``critic_to_actor_ratio`` gradient steps
    (under ``Agent.optimize == "objectives"`` one per gradient step, like every other).

    Attributes:
        learning_rate: after the warm-up, positive.
        warmup_steps: the learning rate rises linearly from 0, which the first step uses.
        cosine_decay_steps: the step, counted from the start, at which a cosine has brought it to 0; None: constant.
        weight_decay: of AdamW, at least 0.
        clip_gradient_norm: largest global norm of the gradient; None: no clipping.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        epsilon: added to the root of the second moment.

    Source: ``serl_launcher/common/optimizers.py``.
    """

    learning_rate: float = 3e-4
    warmup_steps: int = 0
    cosine_decay_steps: int | None = None
    weight_decay: float = 0.0
    clip_gradient_norm: float | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive and finite")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is {self.epsilon}; it must be positive")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be at least 0")
        if self.cosine_decay_steps is not None and self.cosine_decay_steps <= self.warmup_steps:
            raise ValueError(
                f"cosine_decay_steps is {self.cosine_decay_steps}; it counts from the start and must exceed "
                f"warmup_steps, {self.warmup_steps}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be at least 0 and finite")
        if self.clip_gradient_norm is not None and not self.clip_gradient_norm > 0:
            raise ValueError(f"clip_gradient_norm is {self.clip_gradient_norm}; it must be positive, or None")

    def learning_rate_at(self, steps: Tensor, peak: Tensor | None = None) -> Tensor:
        """The learning rate after ``steps`` steps were taken, a scalar tensor like ``steps``.

        Args:
            steps: a scalar tensor.
            peak: a scalar tensor in place of ``learning_rate``, which may change while the schedule goes on.
        """
        rate = torch.full_like(steps, self.learning_rate) if peak is None else peak.clone()
        start = rate
        if self.cosine_decay_steps is not None:
            span = self.cosine_decay_steps - self.warmup_steps
            progress = ((steps - self.warmup_steps) / span).clamp(0, 1)
            rate = rate * 0.5 * (1 + torch.cos(math.pi * progress))
        if self.warmup_steps:
            rate = torch.where(steps < self.warmup_steps, start * steps / self.warmup_steps, rate)
        return rate


def no_preparation(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
    """Leave the batch as it is (agents without augmentation)."""
    return batch


Policy = Callable[[nn.ModuleDict, Observations, Tensor | None], Tensor]
"""(networks, observations, standard normal noise [B, A] or None for the mode) -> actions [B, A]."""


@dataclass(frozen=True)
class Agent:
    """An algorithm as a value.

    Attributes:
        networks: every network, targets included, by name.
        critic_step: objectives of every gradient step.
        actor_step: objectives added once per ``critic_to_actor_ratio`` steps.
        targets: averages taken after every gradient step, or after every one of the actor.
        draw_noise: (generator, batch size, device) -> the noise of one update.
        prepare: augmentation and frozen encoding, once per update, without gradient.
        policy: how to act; None for what does not act, such as a classifier.
        policy_networks: the networks that ``policy`` reads; what an actor process must receive.
        action_dim: width of the full action, grippers included.
        policy_noise_dim: width of the noise that ``policy`` takes.
        optimizers: Adam's settings by the name of what it optimizes (see ``optimize``); absent ones get the defaults.
        optimize: "networks": one Adam per trained network, the actor's objectives after the critics have moved.
            "objectives": one Adam per objective over every network that it trains, all losses at the same old
            parameters, the steps added up; objectives that were not asked for step too, with a zero gradient.
            This is how HIL-SERL updates.
        settings: plain values that rebuild this agent, stored in checkpoints.
    """

    networks: nn.ModuleDict
    critic_step: tuple[Objective, ...]
    draw_noise: Callable[[torch.Generator, int, torch.device], Noise]
    actor_step: tuple[Objective, ...] = ()
    targets: tuple[TargetUpdate, ...] = ()
    prepare: Callable[[nn.ModuleDict, Batch, Noise], Batch] = no_preparation
    policy: Policy | None = None
    policy_networks: tuple[str, ...] = ()
    action_dim: int = 0
    policy_noise_dim: int = 0
    optimizers: Mapping[str, AdamConfig] = field(default_factory=dict)
    optimize: Literal["networks", "objectives"] = "networks"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Every objective, those that add up others taken apart."""
        every = self.critic_step + self.actor_step
        return tuple(part for objective in every for part in objective.parts or (objective,))

    @property
    def trained_networks(self) -> tuple[str, ...]:
        """Names of the networks that some objective trains, in the order of ``networks``."""
        trained = {name for objective in self.critic_step + self.actor_step for name in objective.trains}
        return tuple(name for name in self.networks if name in trained)

    @property
    def optimized(self) -> dict[str, tuple[str, ...]]:
        """Every Adam by name, with the networks whose parameters it steps."""
        if self.optimize == "objectives":
            return {objective.name: objective.trains for objective in self.critic_step + self.actor_step}
        return {name: (name,) for name in self.trained_networks}


def require_policy(agent: Agent) -> Policy:
    """The agent's policy.

    Raises:
        ValueError: it has none.
    """
    if agent.policy is None:
        raise ValueError("this agent has no policy (a classifier, say); it can be trained but not act")
    return agent.policy


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nested dict, with '/'-joined names, in insertion order."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
