"""Episodes without learning or interventions: success rate, return, length, frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

Policy = Callable[[dict[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class EvaluationResult:
    """What a number of episodes gave.

    Attributes:
        successes: for each episode, whether it succeeded.
        returns: undiscounted sums of rewards.
        lengths: steps.
        frames: rendered frames uint8 [H, W, 3] of the recorded episodes, in order.
    """

    successes: list[bool]
    returns: list[float]
    lengths: list[int]
    frames: list[np.ndarray] = field(default_factory=list, repr=False)

    @property
    def success_rate(self) -> float:
        """Fraction of episodes that succeeded, 0..1."""
        return float(np.mean(self.successes)) if self.successes else 0.0

    def metrics(self) -> dict[str, float]:
        """Scalars to log."""
        return {
            "evaluation/success_rate": self.success_rate,
            "evaluation/return": float(np.mean(self.returns)),
            "evaluation/length": float(np.mean(self.lengths)),
        }


def evaluate(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    episodes: int,
    *,
    seed: int,
    record_episodes: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> EvaluationResult:
    """Run ``policy`` for a number of episodes.

    Args:
        env: the environment, without an operator.
        policy: observation -> action.
        episodes: how many, at least 1.
        seed: episode i is reset with seed + i.
        record_episodes: render the first so many.
        should_stop: asked before each step; True ends early with the finished episodes.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; at least 1 is needed")
    result = EvaluationResult([], [], [])
    for episode in range(episodes):
        observation, info = env.reset(seed=seed + episode)
        total, length, success, done = 0.0, 0, False, False
        while not done:
            if should_stop():
                return result
            if episode < record_episodes:
                result.frames.append(np.asarray(env.render()))
            observation, reward, terminated, truncated, info = env.step(policy(observation))
            total += float(reward)
            length += 1
            success = success or succeeded(float(reward), bool(terminated), info)
            done = bool(terminated or truncated)
        if episode < record_episodes:
            result.frames.append(np.asarray(env.render()))
        result.successes.append(success)
        result.returns.append(total)
        result.lengths.append(length)
    return result


def succeeded(reward: float, terminated: bool, info: dict[str, Any]) -> bool:
    """Whether a step ends in success: ``info["succeed"]`` where there is one, else a positive terminal reward."""
    if "succeed" in info:
        return bool(info["succeed"])
    return terminated and reward > 0
