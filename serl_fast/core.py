"""The shared nouns: what an agent is, what a batch is, what a loss returns.

Dimension letters used in shape comments everywhere:
B batch, U updates per call, T stacked frames, E critics, M critics kept, A action, P proprioception,
H W C image, K cameras, G gripper choices, D feature.

An agent is a value. It says WHAT to minimise; ``serl_fast.engine`` decides HOW (eager, compiled, precision).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Observations = dict[str, Tensor]
"""``state`` float32 [B, P] and, for each camera, uint8 images [B, H, W, C] or trunk features."""

Batch = dict[str, Any]
"""``observations`` and ``next_observations`` (:data:`Observations`), ``actions`` float32 [B, A], ``rewards``,
``discounts`` (gamma^n * (1 - terminated)) float32 [B], and for hybrid agents ``grasp_penalty`` float32 [B]."""

Noise = dict[str, Tensor]
"""Every random number of one update. An argument, so that losses are pure functions."""


class Loss(NamedTuple):
    """What an objective returns: a scalar to minimise and detached scalars to log."""

    value: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """One loss and the networks that receive its gradient.

    Objectives of one step are evaluated at the same parameters; a network trained by several of them receives the
    sum of their gradients and takes ONE optimizer step.

    Attributes:
        name: metric prefix, for example ``"critic"``.
        loss: pure function of (networks, batch, noise).
        trains: names in ``Agent.networks``.
    """

    name: str
    loss: Callable[[nn.ModuleDict, Batch, Noise], Loss]
    trains: tuple[str, ...]


@dataclass(frozen=True)
class TargetUpdate:
    """Exponential moving average: target <- rate * source + (1 - rate) * target, over all parameters."""

    source: str
    target: str
    rate: float


@dataclass(frozen=True)
class AdamConfig:
    """Adam (Kingma & Ba 2015, algorithm 1) with bias correction, epsilon outside the square root."""

    learning_rate: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive")


def no_preparation(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
    """Leave the batch as it is (agents without augmentation)."""
    return batch


@dataclass(frozen=True)
class Agent:
    """An algorithm as a value.

    Attributes:
        networks: every network, targets included, by name.
        critic_step: objectives of every gradient step.
        actor_step: objectives added once per ``critic_to_actor_ratio`` steps, evaluated after the critic step.
        targets: averages taken after every gradient step.
        draw_noise: (generator, batch size, device) -> the noise of one update.
        prepare: augmentation and frozen encoding, once per update, without gradient.
        policy: (networks, observations, standard normal noise [B, A] or None for the mode) -> actions [B, A].
        policy_networks: the networks that ``policy`` reads; what an actor process must receive.
        action_dim: width of the full action, grippers included.
        policy_noise_dim: width of the noise that ``policy`` takes.
        optimizer: one Adam per trained network.
        settings: plain values that rebuild this agent, stored in checkpoints.
    """

    networks: nn.ModuleDict
    critic_step: tuple[Objective, ...]
    actor_step: tuple[Objective, ...]
    targets: tuple[TargetUpdate, ...]
    draw_noise: Callable[[torch.Generator, int, torch.device], Noise]
    policy: Callable[[nn.ModuleDict, Observations, Tensor | None], Tensor]
    policy_networks: tuple[str, ...]
    action_dim: int
    policy_noise_dim: int
    prepare: Callable[[nn.ModuleDict, Batch, Noise], Batch] = no_preparation
    optimizer: AdamConfig = AdamConfig()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_networks(self) -> tuple[str, ...]:
        """Names of the networks that some objective trains, in the order of ``networks``."""
        trained = {name for objective in self.critic_step + self.actor_step for name in objective.trains}
        return tuple(name for name in self.networks if name in trained)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nested dict, with '/'-joined names, in insertion order."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
