"""Reward and termination by a classifier that looks at the cameras, in place of the environment's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from serl_fast.envs.conditions import Condition
from serl_fast.evaluation import succeeded

Observation = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Judge:
    """What says whether an observation shows success.

    Attributes:
        probability: of success, 0..1, of one observation: cameras uint8 [H, W, 3].
        image_keys: cameras that it looks at.
        threshold: probability from which a frame counts as success, in (0, 1).
        consecutive: frames in a row that must count; one frame may be a mistake.
        condition: must hold of the state as well, in each of these frames.
    """

    probability: Callable[[Observation], float]
    image_keys: tuple[str, ...]
    threshold: float
    consecutive: int = 1
    condition: Condition | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; it must be between 0 and 1")
        if self.consecutive < 1:
            raise ValueError(f"consecutive is {self.consecutive}; it must be at least 1 frame")


class ClassifierReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Reward 1 and the end of the episode where ``judge`` has seen success, else reward 0.

    Every step the observation AFTER the action is judged; that of the reset is not. The environment's own reward, and
    an end that is its own success, are replaced: it is stepped on after a success that the judge did not see, so it
    must allow that, as robots do. Its truncation, and an end without success, stay.

    ``info["succeed"]`` is the judge's verdict and ``info["success_probability"]`` its probability. Where the
    environment has ``info["succeed"]``, that is kept as ``info["true_succeed"]``, so that true success can be measured.

    Args:
        env: with observations as ``FlatObservations`` gives them, the judge's cameras among them.
        judge: see :class:`Judge`.
        image_keys: cameras of the policy; others were there for the judge alone and are dropped.

    Raises:
        ValueError: the judge's condition is about a state that is not there, or nothing is left to observe.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], judge: Judge, image_keys: Sequence[str]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        fields = env.observation_space.spaces
        if judge.condition is not None:
            judge.condition.check(spaces.flatdim(fields["state"]) if "state" in fields else 0)
        self._kept = tuple(key for key in fields if key == "state" or key in image_keys)
        if not self._kept:
            raise ValueError(
                "nothing to observe: no state and no image_keys; the classifier's cameras are for the classifier alone"
            )
        self.observation_space = spaces.Dict({key: fields[key] for key in self._kept})
        self.judge = judge
        self._streak = 0  # frames in a row that counted

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Reset the environment; no frame has counted yet."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._streak = 0
        return self._policy_part(observation), {**info, "succeed": False}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment and judge what it shows then."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        judge = self.judge
        probability = judge.probability({key: observation[key] for key in judge.image_keys})
        counts = probability >= judge.threshold
        if judge.condition is not None:
            counts = counts and judge.condition(observation["state"])
        self._streak = self._streak + 1 if counts else 0
        success = self._streak >= judge.consecutive
        failed = bool(terminated) and not succeeded(float(reward), bool(terminated), info)
        verdict = {"succeed": success, "success_probability": probability}
        if "succeed" in info:
            verdict["true_succeed"] = bool(info["succeed"])
        ended = success or failed
        return self._policy_part(observation), float(success), ended, bool(truncated), {**info, **verdict}

    def _policy_part(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: value for key, value in observation.items() if key in self._kept}
