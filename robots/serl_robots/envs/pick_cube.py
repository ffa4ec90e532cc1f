"""Lift a cube from the table: the smallest task that needs a gripper."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from serl_robots.envs.base import GRIPPER_THRESHOLD, PROPRIOCEPTION, FrankaTask, slices
from serl_robots.robot import Array
from serl_robots.sim.scene import OBJECT_CONTACT

CUBE_SIZE = 0.04  # m, edge
CUBE_MASS = 0.1  # kg
CUBE_RANGE = 0.1  # m, largest start offset from CUBE_CENTRE, in x and in y
CUBE_YAW_RANGE = 0.4  # rad
CUBE_CENTRE = np.array((0.45, 0.0, CUBE_SIZE / 2))  # m
LIFT_HEIGHT = 0.1  # m, between table and cube
OPEN_THRESHOLD = 0.85  # gripper opening from which it counts as open, as in HIL-SERL

PRIVILEGED: dict[str, tuple[int, float, float]] = {
    "cube_position": (3, -0.5, 0.5),  # m, relative to CUBE_CENTRE
    "cube_from_tcp": (3, -0.5, 0.5),  # m, cube position minus tool position, in the base frame
    # sine and cosine of 4 times the yaw from hand to cube: a cube looks the same after a quarter turn
    "cube_yaw": (2, -1.0, 1.0),
}
STATE = slices({**PROPRIOCEPTION, **PRIVILEGED})


class PickCube(FrankaTask):
    """Grasp the cube and lift it by `LIFT_HEIGHT`; reward 1 and the end of the episode on success.

    Success: the cube is `LIFT_HEIGHT` above the table at the end of a step, touches both fingers, and nothing
    else holds it. `info["grasp_penalty"]` follows HIL-SERL's gripper penalty: negative on a step whose action
    closes an open gripper or opens one that is not open, so that changes of mind cost something and repeated
    commands do not.
    """

    ID = "serl_robots/PickCube-v0"
    PRIVILEGED: ClassVar[Mapping[str, tuple[int, float, float]]] = PRIVILEGED
    OBJECTS = f"""
    <body name="cube" pos="{CUBE_CENTRE[0]} {CUBE_CENTRE[1]} {CUBE_CENTRE[2]}">
      <freejoint name="cube"/>
      <geom name="cube" type="box" size="{CUBE_SIZE / 2} {CUBE_SIZE / 2} {CUBE_SIZE / 2}" mass="{CUBE_MASS}"
            rgba="0.8 0.1 0.1 1" {OBJECT_CONTACT} condim="4" friction="1 0.01 0.0001"/>
    </body>"""

    def __init__(self, **keywords: Any) -> None:
        """Build the task; the arguments are those of `FrankaTask`."""
        super().__init__(**keywords)
        model = self.robot.model
        start = int(model.joint("cube").qposadr[0])
        self._cube_pose = slice(start, start + 7)
        self._cube = model.geom("cube").id
        self._cube_body = model.body("cube").id
        self._table = model.geom("table").id
        self._fingers = (model.geom("left_pad").id, model.geom("right_pad").id)

    def progress(self) -> float:
        """Minus the distance of tool and cube in m; once held, 1 plus the lifted part of `LIFT_HEIGHT`."""
        if self._held():
            return 1.0 + float(np.clip((self._cube_position()[2] - CUBE_SIZE / 2) / LIFT_HEIGHT, 0.0, 1.0))
        return -float(np.linalg.norm(self._cube_position() - self._state.tcp_position))

    def _reset_task(self) -> None:
        offset = self.np_random.uniform(-CUBE_RANGE, CUBE_RANGE, 2)
        yaw = self.np_random.uniform(-CUBE_YAW_RANGE, CUBE_YAW_RANGE)
        position = CUBE_CENTRE + np.array((*offset, 0.0))
        self.robot.data.qpos[self._cube_pose] = (*position, math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))

    def _privileged(self) -> list[ArrayLike]:
        position = self._cube_position()
        yaw = 4.0 * self._relative_yaw()
        return [position - CUBE_CENTRE, position - self._state.tcp_position, [math.sin(yaw), math.cos(yaw)]]

    def _succeeded(self) -> bool:
        return bool(self._cube_position()[2] - CUBE_SIZE / 2 >= LIFT_HEIGHT) and self._held()

    def _penalty(self, action: Array) -> float:
        is_open = self._state.gripper > OPEN_THRESHOLD
        changes = action[6] <= -GRIPPER_THRESHOLD if is_open else action[6] >= GRIPPER_THRESHOLD
        return self._grasp_penalty if changes else 0.0

    def _cube_position(self) -> Array:
        position: Array = self.robot.data.xpos[self._cube_body]
        return position

    def _held(self) -> bool:
        """Whether the cube touches both fingers and is off the table."""
        pairs = self.robot.data.contact.geom  # [contacts, 2]
        partners = set(pairs[(pairs == self._cube).any(axis=1)].ravel().tolist()) - {self._cube}
        return partners.issuperset(self._fingers) and self._table not in partners

    def _relative_yaw(self) -> float:
        """Angle in rad from the hand's axes to the cube's, of no meaning beyond a quarter turn."""
        data = self.robot.data
        axes = data.xmat[self._cube_body].reshape(3, 3)
        # Whichever face the cube lies on, its most horizontal edge tells the yaw.
        edge = axes[:, int(np.argmin(np.abs(axes[2])))]
        hand = self._hand_axis()
        return math.atan2(edge[1], edge[0]) - math.atan2(hand[1], hand[0])

    def _hand_axis(self) -> Array:
        """The hand's x axis in the base frame: the fingers open at a right angle to it."""
        x, y, z, w = self._state.tcp_quaternion.tolist()
        return np.array((1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)))
