"""The loop's schedule, and what the actor's and the learner's threads share."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

STEP_LIMIT = "the step limit is reached"
"""Why a run ends that took its steps."""


@dataclass(frozen=True)
class LoopConfig:
    """The loop's schedule. A step is one gradient step unless it says environment step.

    Attributes:
        max_steps: gradient steps after pre-training at which the run ends.
        batch_size: transitions per gradient step, half of them demonstrations.
        training_starts: online transitions to wait for before learning.
        random_steps: environment steps with uniform actions at the start.
        critic_to_actor_ratio: critic steps per actor step; so many are taken at once where nothing forbids it, and
            what is due at a multiple of an interval comes behind the block in which it lies.
        steps_per_update: gradient steps between two publications of the policy.
        discount: gamma, in [0, 1].
        pretrain_steps: gradient steps on demonstrations alone before the actor starts.
        log_interval: gradient steps between two reports of losses.
        save_interval: gradient steps between two checkpoints; 0 for none.
        eval_interval: gradient steps between two evaluations; 0 for none.
        eval_episodes: episodes of one evaluation.
        stop_success_rate: end when an evaluation and its repetition with four times the episodes together reach this,
            in (0, 1]; None: never.
        max_utd_ratio: the learner waits rather than exceed so many gradient steps per environment step.
        min_utd_ratio: the actor waits rather than fall below (for simulations; a real robot is not to be kept waiting).
        seed: of environment resets and random actions.
    """

    max_steps: int = 100_000
    batch_size: int = 256
    training_starts: int = 1000
    random_steps: int = 1000
    critic_to_actor_ratio: int = 2
    steps_per_update: int = 50
    discount: float = 0.95
    pretrain_steps: int = 0
    log_interval: int = 100
    save_interval: int = 10_000
    eval_interval: int = 1000
    eval_episodes: int = 20
    stop_success_rate: float | None = 0.95
    max_utd_ratio: float | None = None
    min_utd_ratio: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least = {
            "max_steps": 1,
            "batch_size": 1,
            "training_starts": 1,
            "random_steps": 0,
            "critic_to_actor_ratio": 1,
            "steps_per_update": 1,
            "pretrain_steps": 0,
            "log_interval": 1,
            "save_interval": 0,
            "eval_interval": 0,
            "eval_episodes": 1,
            "seed": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount is {self.discount}; it must be in [0, 1]")
        if self.stop_success_rate is not None and not 0 < self.stop_success_rate <= 1:
            raise ValueError(f"stop_success_rate is {self.stop_success_rate}; it must be in (0, 1]")
        for name in ("max_utd_ratio", "min_utd_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be positive and finite (no limit: leave it out)")
        if (
            self.max_utd_ratio is not None
            and self.min_utd_ratio is not None
            and self.min_utd_ratio > self.max_utd_ratio
        ):
            raise ValueError(f"min_utd_ratio {self.min_utd_ratio} exceeds max_utd_ratio {self.max_utd_ratio}")


def crossed(interval: int, before: int, after: int) -> bool:
    """Whether a multiple of ``interval`` lies in (before, after]; never for an interval of 0."""
    return interval > 0 and after // interval > before // interval


class Stop:
    """Asks both loops to end after the step or block in progress, and remembers why.

    Plain attributes and no lock: a signal handler sets it, perhaps while the main thread is inside one of its methods.
    """

    def __init__(self) -> None:
        self.reason = ""

    def set(self, reason: str) -> None:
        """Ask for the end; the first reason stays."""
        self.reason = self.reason or reason

    def is_set(self) -> bool:
        """Whether the end was asked for."""
        return bool(self.reason)


@dataclass
class Counters:
    """What happened so far. Each field has one writer: the actor's thread or the learner's."""

    environment_steps: int = 0
    episodes: int = 0
    interventions: int = 0
    updates: int = 0
    training_started_at: int | None = None  # environment steps when learning began
    success_rate: float | None = None  # of the newest evaluation
    recent_successes: deque[bool] = field(default_factory=lambda: deque(maxlen=20))

    @property
    def utd_ratio(self) -> float:
        """Gradient steps per environment step, over the whole run."""
        return self.updates / max(self.environment_steps, 1)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "environment_steps": self.environment_steps,
            "episodes": self.episodes,
            "interventions": self.interventions,
            "updates": self.updates,
            "training_started_at": self.training_started_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)
