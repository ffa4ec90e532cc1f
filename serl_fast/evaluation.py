"""Episodes without learning or interventions: success rate, return, length, and a film of some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from serl_fast.schedule import STEP_LIMIT, Counters, LoopConfig, Stop

Policy = Callable[[dict[str, np.ndarray]], np.ndarray]

EVALUATION_SEEDS = 1_000_000
"""Episodes of evaluations are seeded from here on, apart from those of training."""


@dataclass(frozen=True)
class EvaluationResult:
    """What a number of episodes gave.

    Attributes:
        successes: for each episode, whether it succeeded.
        returns: undiscounted sums of rewards.
        lengths: steps.
        true_successes: where a classifier said what success is, whether the environment saw it too, in each episode;
            empty where it does not say.
    """

    successes: list[bool]
    returns: list[float]
    lengths: list[int]
    true_successes: list[bool] = field(default_factory=list)

    @property
    def success_rate(self) -> float:
        """Fraction of episodes that succeeded, 0..1."""
        return float(np.mean(self.successes)) if self.successes else 0.0

    @property
    def true_success_rate(self) -> float | None:
        """Fraction of episodes in which the environment saw success, 0..1; None where nobody knows."""
        return float(np.mean(self.true_successes)) if self.true_successes else None

    def metrics(self) -> dict[str, float]:
        """Scalars to log."""
        true_rate = self.true_success_rate
        return {
            "evaluation/success_rate": self.success_rate,
            "evaluation/return": float(np.mean(self.returns)),
            "evaluation/length": float(np.mean(self.lengths)),
            **({} if true_rate is None else {"evaluation/true_success_rate": true_rate}),
        }


def evaluate(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    episodes: int,
    *,
    seed: int,
    record_episodes: int = 0,
    film: Callable[[np.ndarray], object] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EvaluationResult:
    """Run ``policy`` for a number of episodes.

    Args:
        env: the environment, without an operator.
        policy: observation -> action.
        episodes: how many, at least 1.
        seed: episode i is reset with seed + i.
        record_episodes: render the first so many, if there is a film.
        film: is given their rendered frames, in order, one after the other: all of them may not fit into memory.
        should_stop: asked before each step; True ends early with the finished episodes.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; at least 1 is needed")
    result = EvaluationResult([], [], [])
    for episode in range(episodes):
        observation, info = env.reset(seed=seed + episode)
        total, length, success, done = 0.0, 0, False, False
        verdicts: list[bool] = []
        while not done:
            if should_stop():
                return result
            if film is not None and episode < record_episodes:
                film(np.asarray(env.render()))
            observation, reward, terminated, truncated, info = env.step(policy(observation))
            total += float(reward)
            length += 1
            success = success or succeeded(float(reward), bool(terminated), info)
            verdicts += [info["true_succeed"]] if "true_succeed" in info else []
            done = bool(terminated or truncated)
        if film is not None and episode < record_episodes:
            film(np.asarray(env.render()))
        result.successes.append(success)
        result.true_successes.extend([any(verdicts)] if verdicts else [])
        result.returns.append(total)
        result.lengths.append(length)
    return result


def succeeded(reward: float, terminated: bool, info: dict[str, Any]) -> bool:
    """Whether a step ends in success: ``info["succeed"]`` where there is one, else a positive terminal reward."""
    if "succeed" in info:
        return bool(info["succeed"])
    return terminated and reward > 0


class Evaluations:
    """Evaluations during a run, every ``eval_interval`` gradient steps.

    Args:
        env: an environment without operator, or None for no evaluations.
        policy: the mode of the policy that is evaluated.
        counters: of the run; receives the success rate.
        config: the schedule.
        report: receives the metrics.
        stop: asked between steps; set when the policy is good enough.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any] | None,
        policy: Policy,
        counters: Counters,
        config: LoopConfig,
        report: Callable[[dict[str, float]], None],
        stop: Stop,
    ) -> None:
        self.env, self._policy = env, policy
        self._counters, self._config, self._report, self._stop = counters, config, report, stop
        self._next = config.eval_interval
        self._episodes = 0

    @property
    def due(self) -> bool:
        """Whether it is time for an evaluation; at the end of a run, whether one is missing."""
        if self.env is None or not self._config.eval_interval:
            return False
        return self._counters.updates >= self._next

    def run_if_due(self) -> bool:
        """Evaluate if it is time; whether the policy is as good as was asked for, which ends the run."""
        if not self.due:
            return False
        config, began = self._config, self._counters.updates
        result = self._run(config.eval_episodes)
        if len(result.successes) < config.eval_episodes:  # the run ends meanwhile, and the evaluation is still due
            return False
        self._next = began + config.eval_interval
        threshold = config.stop_success_rate
        if threshold is None or result.success_rate < threshold or self._stop.is_set():
            return False
        # One good evaluation may be luck: the same policy must keep the rate over four times as many fresh episodes.
        successes = result.successes + self._run(4 * config.eval_episodes).successes
        rate = sum(successes) / len(successes)
        if rate < threshold or self._stop.is_set():
            return False
        self._stop.set(f"the policy succeeds in {rate:.0%} of {len(successes)} evaluation episodes")
        return True

    def state_dict(self) -> dict[str, int]:
        """When the next one is due, and the seeds used up, for a checkpoint."""
        return {"next_evaluation": self._next, "evaluation_episodes": self._episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._next, self._episodes = state["next_evaluation"], state["evaluation_episodes"]

    def _run(self, episodes: int) -> EvaluationResult:
        assert self.env is not None
        seed = EVALUATION_SEEDS * (1 + self._config.seed) + self._episodes
        self._episodes += episodes
        result = evaluate(self.env, self._policy, episodes, seed=seed, should_stop=self._stop.is_set)
        # What the step limit cut short is not logged: the evaluation at the end stands for it.
        if result.successes and self._stop.reason != STEP_LIMIT:
            self._counters.success_rate = result.success_rate
            self._report(result.metrics())
        return result
