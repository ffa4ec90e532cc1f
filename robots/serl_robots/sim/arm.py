"""The simulated Franka arm."""

import numpy as np

from serl_robots.robot import Array, RobotState
from serl_robots.sim import panda
from serl_robots.sim._mujoco import mujoco
from serl_robots.sim.scene import Impedance, build_scene


class SimulatedFranka:
    """A `Robot` in MuJoCo: Cartesian impedance control of a 7-joint arm with a parallel gripper.

    The impedance acts in every physics step (see `scene`); a null-space term, computed once per control
    period and held, pulls the posture towards `panda.HOME` without moving the tool. Gravity is compensated;
    Coriolis forces, small at these speeds, are not.

    Attributes:
        model: the MuJoCo model.
        data: the MuJoCo state, consistent with the newest measurement (positions, velocities and contacts).
    """

    def __init__(
        self,
        objects: str = "",
        control_period: float = 0.1,
        substeps: int = 40,
        impedance: Impedance | None = None,
        posture_stiffness: float = 10.0,
    ) -> None:
        """Build the scene.

        Args:
            objects: MJCF of the task's own bodies.
            control_period: s, one `command`.
            substeps: physics steps per control period.
            impedance: the controller's figures.
            posture_stiffness: Nm/rad, of the null-space term.
        """
        scene = build_scene(objects, impedance, control_period / substeps)
        self.model = mujoco.MjModel.from_xml_string(scene)
        self.data = mujoco.MjData(self.model)
        self._substeps = substeps
        self._posture_stiffness = posture_stiffness
        self._tcp = self.model.site("tcp").id
        self._target = int(self.model.body("target").mocapid[0])
        joints = [self.model.joint(f"joint{number}") for number in range(1, 8)]
        start = int(joints[0].qposadr[0])
        self._arm_positions = slice(start, start + 7)
        start = int(joints[0].dofadr[0])
        self._arm_velocities = slice(start, start + 7)
        self._fingers = [int(self.model.joint(f"{side}_finger").qposadr[0]) for side in ("left", "right")]
        self._jacobian = np.zeros((6, self.model.nv))
        self._quaternion = np.zeros(4)  # wxyz, MuJoCo's order

    def state(self) -> RobotState:
        """The newest measurement; the wrench is estimated from joint torques, as the real arm does."""
        data, jacobian = self.data, self._jacobian[:, self._arm_velocities]
        velocities = data.qvel[self._arm_velocities].copy()
        torques = data.qfrc_constraint[self._arm_velocities]
        wrench = np.linalg.solve(jacobian @ jacobian.T + 1e-8 * np.eye(6), jacobian @ torques)
        return RobotState(
            tcp_position=data.site_xpos[self._tcp].copy(),
            tcp_quaternion=self._tcp_quaternion(),
            tcp_velocity=jacobian @ velocities,
            joint_positions=data.qpos[self._arm_positions].copy(),
            joint_velocities=velocities,
            gripper=self._opening(),
            tcp_force=wrench[:3],
            tcp_torque=wrench[3:],
        )

    def command(self, position: Array, quaternion: Array, gripper: float) -> None:
        """Track a target pose for one control period; see `Robot.command`."""
        self._set_target(position, quaternion, gripper)
        self.data.qfrc_applied[self._arm_velocities] = self._posture_torques()
        mujoco.mj_step(self.model, self.data, self._substeps)
        self.refresh()

    def stop(self) -> None:
        """Make the pose measured now the target."""
        self._set_target(self.data.site_xpos[self._tcp], self._tcp_quaternion(), self._opening())

    def reset(self, position: Array, quaternion: Array, gripper: float) -> None:
        """Put the scene into its initial state with the tool at this pose, at rest."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self._fingers] = gripper * panda.FINGER_TRAVEL
        self.data.qpos[self._arm_positions] = self.inverse_kinematics(position, quaternion)
        self._set_target(position, quaternion, gripper)
        self.refresh()

    def refresh(self) -> None:
        """Recompute what depends on positions and velocities; call it after writing into `data`."""
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_jacSite(self.model, self.data, self._jacobian[:3], self._jacobian[3:], self._tcp)

    def inverse_kinematics(self, position: Array, quaternion: Array) -> Array:
        """Joint angles that bring the tool to a pose, by damped least squares from `panda.HOME`.

        Args:
            position: [3] m.
            quaternion: [4] xyzw.

        Returns:
            [7] rad.

        Raises:
            ValueError: if the pose is out of reach.
        """
        model, data = self.model, self.data
        wanted = np.roll(quaternion, 1)
        error, joints = np.zeros(6), panda.HOME.copy()
        lower, upper = panda.LOWER, panda.UPPER
        for _ in range(100):
            data.qpos[self._arm_positions] = joints
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            error[:3] = position - data.site_xpos[self._tcp]
            mujoco.mju_mat2Quat(self._quaternion, data.site_xmat[self._tcp])
            mujoco.mju_subQuat(error[3:], wanted, self._quaternion)
            # subQuat answers in the tool's frame.
            error[3:] = data.site_xmat[self._tcp].reshape(3, 3) @ error[3:]
            if np.abs(error).max() < 1e-6:
                return joints
            mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._tcp)
            jacobian = self._jacobian[:, self._arm_velocities]
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-5 * np.eye(6), error)
            joints = np.clip(joints + np.clip(step, -0.3, 0.3), lower, upper)
        raise ValueError(f"the pose {position} m, {quaternion} (xyzw) is out of the arm's reach")

    def _set_target(self, position: Array, quaternion: Array, gripper: float) -> None:
        self.data.mocap_pos[self._target] = position
        self.data.mocap_quat[self._target] = np.roll(quaternion, 1)
        self.data.ctrl[-1] = gripper * panda.FINGER_TRAVEL

    def _opening(self) -> float:
        opening = float(self.data.qpos[self._fingers].mean()) / panda.FINGER_TRAVEL
        return min(1.0, max(0.0, opening))

    def _tcp_quaternion(self) -> Array:
        mujoco.mju_mat2Quat(self._quaternion, self.data.site_xmat[self._tcp])
        return np.roll(self._quaternion, -1)

    def _posture_torques(self) -> Array:
        """Torques [7] Nm towards the home posture, projected so that they exert no wrench at the tool."""
        jacobian = self._jacobian[:, self._arm_velocities]
        torques = self._posture_stiffness * (panda.HOME - self.data.qpos[self._arm_positions])
        wrench = np.linalg.solve(jacobian @ jacobian.T + 1e-8 * np.eye(6), jacobian @ torques)
        return torques - jacobian.T @ wrench
