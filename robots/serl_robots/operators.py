"""Someone who takes over when the policy needs help: the human's place in the loop.

An operator is any callable `operator(observation, policy_action, info) -> action | None`: None leaves the
policy alone, an action replaces the policy's. A device (keyboard, gamepad, SpaceMouse) plugs in the same way
as the scripted operator below.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from serl_robots.experts import Policy
from serl_robots.experts import expert as expert_of

Action = NDArray[Any]
Operator = Callable[[Any, Action, dict[str, Any]], Action | None]


class Intervention(gymnasium.Wrapper[Any, Action, Any, Action]):
    """Lets an operator replace the policy's action.

    On the steps that the operator takes, and only on those, `info["intervene_action"]` is the executed action
    (float32, within -1..1).

    Attributes:
        enabled: False leaves the policy alone, for evaluation.
    """

    def __init__(self, env: gymnasium.Env[Any, Action], operator: Operator, enabled: bool = True) -> None:
        """Wrap an environment.

        Args:
            env: the environment.
            operator: asked before every step.
            enabled: whether it is asked at all.
        """
        super().__init__(env)
        self.operator = operator
        self.enabled = enabled
        self._observation: Any = None
        self._info: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        self._observation, self._info = self.env.reset(seed=seed, options=options)
        return self._observation, self._info

    def step(self, action: Action) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Execute the operator's action if there is one, else the policy's."""
        taken = self.operator(self._observation, action, self._info) if self.enabled else None
        if taken is not None:
            action = np.clip(np.asarray(taken, dtype=np.float32), -1.0, 1.0)
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        if taken is not None:
            info["intervene_action"] = action
        self._info = info
        return self._observation, reward, terminated, truncated, info


class ScriptedOperator(Intervention):
    """Takes over with a scripted expert while the policy is stuck.

    The policy is stuck when the task's `progress()` has not risen by `min_gain` above its best of the episode
    for `patience` steps. The expert then acts for `duration` steps, or until it has gained `release_gain`;
    after that the policy has `patience` steps again. A policy that keeps making progress is never
    interrupted.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Action],
        expert: Policy | None = None,
        patience: int = 20,
        duration: int = 10,
        min_gain: float = 0.005,
        release_gain: float = 1.5,
        enabled: bool = True,
    ) -> None:
        """Wrap an environment of this package.

        Args:
            env: the environment; its `unwrapped.progress()` is watched.
            expert: acts in the policy's place; by default the environment's scripted expert.
            patience: steps without progress until the operator takes over.
            duration: largest number of steps of one take-over.
            min_gain: rise of `progress()` that counts, in the task's unit (m, while approaching).
            release_gain: rise of `progress()` since the take-over that ends it early.
            enabled: whether it may take over.
        """
        for name, steps in (("patience", patience), ("duration", duration)):
            if steps < 1:
                raise ValueError(f"{name} is {steps}; it must be at least 1 step")
        if not callable(getattr(env.unwrapped, "progress", None)):
            raise ValueError(f"{env} has no progress() to watch; use Intervention with an operator of your own")
        super().__init__(env, self._decide, enabled)
        self._expert = expert_of(env) if expert is None else expert
        self._patience, self._duration = patience, duration
        self._min_gain, self._release_gain = min_gain, release_gain
        self._watch()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and hand it to the policy."""
        result = super().reset(seed=seed, options=options)
        self._watch()
        return result

    def _watch(self) -> None:
        """Start to watch the policy: nothing reached yet, full patience."""
        self._best, self._stalled, self._remaining, self._start = -np.inf, 0, 0, -np.inf

    def _decide(self, observation: Any, policy_action: Action, info: dict[str, Any]) -> Action | None:
        progress = self.env.unwrapped.progress()  # type: ignore[attr-defined]
        if self._remaining > 0:
            self._remaining -= 1
            if self._remaining > 0 and progress < self._start + self._release_gain:
                return self._expert(observation)
            self._watch()
        if progress > self._best + self._min_gain:
            self._best, self._stalled = progress, 0
            return None
        self._stalled += 1
        if self._stalled < self._patience:
            return None
        self._remaining, self._start = self._duration, progress
        return self._expert(observation)
