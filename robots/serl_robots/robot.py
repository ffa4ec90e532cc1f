"""What the environments ask of a robot, simulated or real.

SI units; positions and rotations in the robot's base frame; quaternions are (x, y, z, w); the gripper is a
number from 0 (closed) to 1 (open).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RobotState:
    """One measurement of the robot.

    Attributes:
        tcp_position: [3] m, tool centre point.
        tcp_quaternion: [4] xyzw.
        tcp_velocity: [6] m/s and rad/s, linear then angular.
        joint_positions: [7] rad.
        joint_velocities: [7] rad/s.
        gripper: opening, 0 (closed) to 1 (open).
        tcp_force: [3] N, the force of the surroundings on the tool.
        tcp_torque: [3] Nm, about the tool centre point.
    """

    tcp_position: Array
    tcp_quaternion: Array
    tcp_velocity: Array
    joint_positions: Array
    joint_velocities: Array
    gripper: float
    tcp_force: Array
    tcp_torque: Array


class Robot(Protocol):
    """An arm with a gripper that tracks Cartesian targets compliantly."""

    def state(self) -> RobotState:
        """The newest measurement."""
        ...

    def command(self, position: Array, quaternion: Array, gripper: float) -> None:
        """Track a target pose, and return when the control period that began with this call is over.

        Args:
            position: [3] m.
            quaternion: [4] xyzw, unit length.
            gripper: target opening, 0 to 1.
        """
        ...

    def stop(self) -> None:
        """Hold the pose measured now."""
        ...

    def reset(self, position: Array, quaternion: Array, gripper: float) -> None:
        """Clear errors and be at rest at this pose on return; arguments as for `command`."""
        ...
