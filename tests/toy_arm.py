"""A small environment that the tests of the loop and the commands share."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class ToyArm(gymnasium.Env):
    """A point that follows the first action; time and step count are observable, so every transition is unique.

    Reward 1 and termination when the point passes 1; ``intervals`` lists the steps at which an operator takes over;
    ``fail_at`` raises at that step of the environment's life.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self, width=7, image_keys=(), intervals=(), length=20, fail_at=None, goal=1.0, render_mode=None, image_size=16
    ):
        cameras = {key: spaces.Box(0, 255, (image_size, image_size, 3), np.uint8) for key in image_keys}
        self.observation_space = spaces.Dict({"state": spaces.Box(-np.inf, np.inf, (4,), np.float32), **cameras})
        self.action_space = spaces.Box(-1, 1, (width,), np.float32)
        self.render_mode = render_mode
        self.cameras, self.intervals, self.length, self.fail_at, self.goal = cameras, intervals, length, fail_at, goal
        self.total = self.episode = 0

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.position, self.step_count = 0.0, 0
        self.episode += 1
        return self._observe(), {}

    def step(self, action):
        assert action.shape == self.action_space.shape
        self.total += 1
        if self.fail_at is not None and self.total >= self.fail_at:
            raise OSError("the gripper does not answer")
        info: dict[str, Any] = {"grasp_penalty": -0.02}
        if any(first <= self.step_count < last for first, last in self.intervals):
            action = np.full(self.action_space.shape, 0.5, np.float32)
            info["intervene_action"] = action
        self.position += 0.1 * float(action[0])
        self.step_count += 1
        success = self.position > self.goal
        return self._observe(), float(success), success, self.step_count >= self.length, info

    def render(self):
        return np.full((32, 32, 3), self.step_count, np.uint8)

    def _observe(self):
        state = np.array([self.position, self.step_count, self.episode, 1.0], np.float32)
        images = {key: np.full(space.shape, self.step_count, np.uint8) for key, space in self.cameras.items()}
        return {"state": state, **images}


gymnasium.register("toy/Arm-v0", entry_point=ToyArm)
