"""The simulated arm: kinematics, tracking, and what the package imports."""

import subprocess
import sys

import numpy as np
import pytest
from serl_robots import rotations
from serl_robots.robot import Robot
from serl_robots.sim import panda
from serl_robots.sim.arm import SimulatedFranka

DOWN = np.array((1.0, 0.0, 0.0, 0.0))
START = np.array((0.45, 0.0, 0.18))


@pytest.fixture
def arm():
    arm = SimulatedFranka()
    arm.reset(START, DOWN, 1.0)
    return arm


def denavit_hartenberg_flange(joints):
    """Independent of the package: the published table, multiplied out (Craig's convention)."""
    a = (0, 0, 0, 0.0825, -0.0825, 0, 0.088)
    d = (0.333, 0, 0.316, 0, 0.384, 0, 0)
    alpha = np.array((0, -1, 1, 1, -1, 1, 1)) * np.pi / 2
    pose = np.eye(4)
    for a_i, d_i, alpha_i, theta in zip(a, d, alpha, joints, strict=True):
        ca, sa, ct, st = np.cos(alpha_i), np.sin(alpha_i), np.cos(theta), np.sin(theta)
        pose = pose @ np.array(
            (
                (ct, -st, 0, a_i),
                (st * ca, ct * ca, -sa, -sa * d_i),
                (st * sa, ct * sa, ca, ca * d_i),
                (0, 0, 0, 1),
            )
        )
    pose[:3, 3] += 0.107 * pose[:3, 2]
    return pose


def test_forward_kinematics_are_the_published_ones(arm):
    random = np.random.default_rng(0)
    flange, tcp = arm.model.site("flange").id, arm.model.site("tcp").id
    for _ in range(100):
        joints = random.uniform(panda.LOWER, panda.UPPER)
        arm.data.qpos[arm._arm_positions] = joints
        arm.refresh()
        expected = denavit_hartenberg_flange(joints)
        assert np.abs(arm.data.site_xpos[flange] - expected[:3, 3]).max() < 1e-9
        assert np.abs(arm.data.site_xpos[tcp] - expected[:3, 3] - 0.1034 * expected[:3, 2]).max() < 1e-9
        hand = arm.data.site_xmat[flange].reshape(3, 3)
        quarter = np.sqrt(0.5)
        unturned = hand @ np.array(((quarter, -quarter, 0), (quarter, quarter, 0), (0, 0, 1)))
        assert np.abs(unturned - expected[:3, :3]).max() < 1e-9


def test_inverse_kinematics_reach_the_pose(arm):
    position = np.array((0.5, 0.1, 0.25))
    quaternion = rotations.multiply(rotations.from_rotation_vector((0.1, -0.2, 0.5)), DOWN)
    arm.reset(position, quaternion, 0.3)
    state = arm.state()
    assert state.tcp_position == pytest.approx(position, abs=1e-5)
    error = rotations.multiply(state.tcp_quaternion, rotations.inverse(quaternion))
    assert np.linalg.norm(rotations.to_rotation_vector(error)) < 1e-5
    assert state.gripper == pytest.approx(0.3)
    assert (state.joint_positions >= panda.LOWER).all()
    assert (state.joint_positions <= panda.UPPER).all()


def test_unreachable_pose_is_refused(arm):
    with pytest.raises(ValueError, match="out of the arm's reach"):
        arm.reset(np.array((2.0, 0.0, 0.0)), DOWN, 1.0)


def test_arm_tracks_a_target_and_stays_there(arm):
    target = START + np.array((0.05, -0.05, 0.03))
    turned = rotations.multiply(rotations.from_rotation_vector((0.0, 0.1, 0.3)), DOWN)
    for _ in range(15):
        arm.command(target, turned, 0.0)
    state = arm.state()
    assert state.tcp_position == pytest.approx(target, abs=1e-3)
    error = rotations.multiply(state.tcp_quaternion, rotations.inverse(turned))
    assert np.linalg.norm(rotations.to_rotation_vector(error)) < 5e-3
    assert np.abs(state.tcp_velocity).max() < 1e-2
    assert state.gripper < 0.01


def test_standing_target_does_not_creep(arm):
    """Commands are relative to the measured pose, so any standing error would add up."""
    for _ in range(100):
        state = arm.state()
        arm.command(state.tcp_position, state.tcp_quaternion, 1.0)
    assert arm.state().tcp_position == pytest.approx(START, abs=1e-4)


def test_stop_holds_the_measured_pose(arm):
    for _ in range(3):
        arm.command(START + np.array((0.1, 0.0, 0.0)), DOWN, 1.0)
    before = arm.state().tcp_position
    arm.stop()
    target = arm.data.mocap_pos[arm._target]
    assert target == pytest.approx(before)


def test_pressing_on_the_table_is_felt_and_bounded(arm):
    for _ in range(20):
        arm.command(np.array((0.45, 0.0, -0.2)), DOWN, 0.0)
    state = arm.state()
    # 2000 N/m times the error limit of 0.02 m
    assert state.tcp_force[2] == pytest.approx(40.0, rel=0.1)
    assert state.tcp_position[2] > 0.0


def test_velocity_is_the_derivative_of_the_pose(arm):
    arm.command(START + np.array((0.1, 0.05, 0.0)), DOWN, 1.0)
    before = arm.state()
    arm._substeps = 1
    arm.command(START + np.array((0.1, 0.05, 0.0)), DOWN, 1.0)
    after = arm.state()
    finite = (after.tcp_position - before.tcp_position) / arm.model.opt.timestep
    assert finite == pytest.approx((before.tcp_velocity[:3] + after.tcp_velocity[:3]) / 2, abs=5e-3)


def test_rotation_helpers_agree():
    random = np.random.default_rng(0)
    for _ in range(100):
        vector = random.normal(size=3)
        vector *= random.uniform(0.0, np.pi) / np.linalg.norm(vector)
        other = rotations.from_rotation_vector(random.normal(size=3))
        quaternion = rotations.from_rotation_vector(vector)
        assert rotations.to_rotation_vector(quaternion) == pytest.approx(vector)
        assert rotations.to_rotation_vector(-quaternion) == pytest.approx(vector)
        product = rotations.to_matrix(rotations.multiply(quaternion, other))
        assert product == pytest.approx(rotations.to_matrix(quaternion) @ rotations.to_matrix(other))
    assert rotations.to_rotation_vector((0.0, 0.0, 0.0, 1.0)) == pytest.approx(np.zeros(3))


def test_simulated_arm_is_a_robot(arm):
    robot: Robot = arm
    assert robot.state().joint_positions.shape == (7,)


def imported_by(statement):
    """The top-level modules that a statement brings into a fresh interpreter."""
    code = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_package_imports_no_learning_library():
    everything = "import serl_robots, serl_robots.operators, serl_robots.bench"
    assert not imported_by(everything) & {"torch", "serl_fast"}
    assert not imported_by("import serl_robots") & {"torch", "serl_fast", "mujoco"}
