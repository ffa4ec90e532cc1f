"""Bring the tool to a random point: the smallest task, for tests and for the 6-dimensional action."""

from collections.abc import Mapping
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

    def __init__(self, **keywords: Any) -> None:
        """Build the task; the arguments are those of `FrankaTask`."""
        super().__init__(**keywords)
        self._goal = self.robot.model.body("goal").mocapid[0]

    def progress(self) -> float:
        """Minus the distance to the target in m."""
        return -float(np.linalg.norm(self._target_from_tcp()))

    def _reset_task(self) -> None:
        offset = self.np_random.uniform(-TARGET_RANGE, TARGET_RANGE, 3)
        self.robot.data.mocap_pos[self._goal] = START_POSITION + offset

    def _privileged(self) -> list[ArrayLike]:
        return [self._target_from_tcp()]

    def _succeeded(self) -> bool:
        return self.progress() >= -TOLERANCE

    def _target_from_tcp(self) -> Any:
        return self.robot.data.mocap_pos[self._goal] - self._state.tcp_position
