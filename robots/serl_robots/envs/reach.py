"""Bring the tool to a random point: the smallest task, for tests and for the 6-dimensional action."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from serl_robots.envs.base import PROPRIOCEPTION, START_POSITION, FrankaTask, slices
from serl_robots.sim.scene import NO_CONTACT

TARGET_RANGE = 0.1  # m, largest offset of the target from START_POSITION, per axis
TOLERANCE = 0.02  # m

PRIVILEGED: dict[str, tuple[int, float, float]] = {
    "target_from_tcp": (3, -0.5, 0.5),  # m, target minus tool position, in the base frame
}
STATE = slices({**PROPRIOCEPTION, **PRIVILEGED})


class Reach(FrankaTask):
    """Bring the tool within `TOLERANCE` of the target; reward 1 and the end of the episode on success."""

    ID = "serl_robots/Reach-v0"
    PRIVILEGED: ClassVar[Mapping[str, tuple[int, float, float]]] = PRIVILEGED
    OBJECTS = f"""
    <body name="goal" mocap="true">
      <geom type="sphere" size="0.015" rgba="0.1 0.6 0.2 1" {NO_CONTACT}/>
    </body>"""
    HAS_GRIPPER_ACTION = False
    START_GRIPPER = 0.0

    def __init__(
        self,
        *,
        target_low: Sequence[float] = (-TARGET_RANGE,) * 3,
        target_high: Sequence[float] = (TARGET_RANGE,) * 3,
        **keywords: Any,
    ) -> None:
        """Build the task.

        Args:
            target_low: m, smallest offset of the target from START_POSITION, for each axis.
            target_high: m, largest.
            keywords: the arguments of `FrankaTask`.

        Raises:
            ValueError: the range is no box of three axes, or is empty.
        """
        self._low, self._high = np.asarray(target_low, float), np.asarray(target_high, float)
        if self._low.shape != (3,) or self._high.shape != (3,) or not np.all(self._low <= self._high):
            raise ValueError(
                f"target_low {target_low} and target_high {target_high}: give three lows below three highs"
            )
        super().__init__(**keywords)
        self._goal = self.robot.model.body("goal").mocapid[0]

    def progress(self) -> float:
        """Minus the distance to the target in m."""
        return -float(np.linalg.norm(self._target_from_tcp()))

    def _reset_task(self) -> None:
        offset = self.np_random.uniform(self._low, self._high)
        self.robot.data.mocap_pos[self._goal] = START_POSITION + offset

    def _privileged(self) -> list[ArrayLike]:
        return [self._target_from_tcp()]

    def _succeeded(self) -> bool:
        return self.progress() >= -TOLERANCE

    def _target_from_tcp(self) -> Any:
        return self.robot.data.mocap_pos[self._goal] - self._state.tcp_position
