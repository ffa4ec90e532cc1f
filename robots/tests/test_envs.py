"""The environments: spaces, determinism, actions, penalty, images, speed."""

import os
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import serl_robots
from gymnasium.utils.env_checker import check_env
from serl_robots.bench import control_steps_per_second
from serl_robots.envs import pick_cube, reach
from serl_robots.experts import expert
from serl_robots.registration import ENVIRONMENTS

PICK_CUBE, REACH = "serl_robots/PickCube-v0", "serl_robots/Reach-v0"
CAMERAS = ("front", "wrist")
ALL = pytest.mark.parametrize("env_id", ENVIRONMENTS)


def opengl_missing():
    from serl_robots.sim.arm import SimulatedFranka
    from serl_robots.sim.rendering import Camera

    try:
        Camera(SimulatedFranka().model, 16, 16).close()
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def opengl():
    if reason := opengl_missing():
        pytest.skip(reason)


def rollout(env, seed, actions):
    observations = [env.reset(seed=seed)[0]]
    for action in actions:
        observation, _, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        if terminated or truncated:
            break
    return observations


@ALL
def test_gymnasium_accepts_the_environment(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


@ALL
def test_gymnasium_accepts_the_environment_with_images(env_id, opengl):
    env = gymnasium.make(env_id, image_keys=CAMERAS, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


def test_registered_once_and_by_module_prefix():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        serl_robots.register()
    code = f"import gymnasium; print(gymnasium.make('serl_robots:{PICK_CUBE}').spec.max_episode_steps)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("100", "")


@ALL
def test_same_seed_and_actions_give_the_same_observations(env_id):
    env = gymnasium.make(env_id)
    actions = np.random.default_rng(0).uniform(-1, 1, (30, *env.action_space.shape)).astype(np.float32)
    first = rollout(env, 3, actions)
    rollout(env, 4, actions[:7])
    for again in (rollout(env, 3, actions), rollout(gymnasium.make(env_id), 3, actions)):
        assert len(first) == len(again)
        for one, other in zip(first, again, strict=True):
            assert np.array_equal(one["state"], other["state"])
    other_seed = rollout(env, 4, actions[:0])
    assert not np.array_equal(first[0]["state"], other_seed[0]["state"])


@ALL
def test_observations_stay_within_bounds_under_wild_actions(env_id):
    env = gymnasium.make(env_id)
    random = np.random.default_rng(0)
    for seed in range(5):
        actions = np.sign(random.uniform(-1, 1, (60, *env.action_space.shape))) * 10
        for observation in rollout(env, seed, actions):
            assert observation in env.observation_space
            assert np.isfinite(observation["state"]).all()


@ALL
def test_action_is_clipped(env_id):
    size = gymnasium.make(env_id).action_space.shape[0]
    action = np.linspace(-1, 1, size)
    action[[0, -1]] = 1.0
    beyond = action.copy()
    beyond[[0, -1]] = 7.0
    states = [rollout(gymnasium.make(env_id), 0, [each])[-1]["state"] for each in (action, beyond)]
    assert np.array_equal(*states)


@ALL
def test_bad_actions_are_refused(env_id):
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    size = env.action_space.shape[0]
    with pytest.raises(ValueError, match=rf"shape \({size + 1},\).*takes \({size},\)"):
        env.unwrapped.step(np.zeros(size + 1))
    with pytest.raises(ValueError, match="not finite"):
        env.unwrapped.step(np.full(size, np.nan))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\['side'\]; the cameras are \['front', 'wrist'\]"):
        gymnasium.make(PICK_CUBE, image_keys=("side",))
    with pytest.raises(ValueError, match="rgb_array"):
        pick_cube.PickCube(render_mode="human")
    with pytest.raises(ValueError, match="image_size is 0 px"):
        gymnasium.make(PICK_CUBE, image_size=0)


@ALL
def test_idle_episode_is_truncated_and_fails(env_id):
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    for step in range(1, ENVIRONMENTS[env_id][1] + 1):
        _, reward, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
        assert (reward, terminated, info["succeed"], info["grasp_penalty"]) == (0.0, False, False, 0.0)
        assert truncated == (step == ENVIRONMENTS[env_id][1])


def test_motion_follows_the_action_and_the_safety_box():
    env = gymnasium.make(PICK_CUBE)
    env.reset(seed=0)
    position, rotation = pick_cube.STATE["tcp_position"], pick_cube.STATE["tcp_rotation"]
    action = np.array((0, 1, 0, 0, 0, 1, 0), np.float32)
    for _ in range(3):
        state = env.step(action)[0]["state"]
    assert 0.04 < state[position][1] < 0.1
    assert 0.2 < state[rotation][2] < 0.45
    for _ in range(30):
        state = env.step(action)[0]["state"]
    assert state[position][1] == pytest.approx(0.18, abs=0.01)
    assert state[rotation][2] == pytest.approx(0.8, abs=0.02)


def test_state_layout_says_where_the_cube_is():
    env = gymnasium.make(PICK_CUBE)
    for seed in range(20):
        state = env.reset(seed=seed)[0]["state"]
        cube = env.unwrapped.robot.data.body("cube").xpos
        tcp = env.unwrapped.robot.state().tcp_position
        assert state[pick_cube.STATE["cube_from_tcp"]] == pytest.approx(cube - tcp, abs=1e-6)
        assert state[pick_cube.STATE["cube_position"]] == pytest.approx(cube - pick_cube.CUBE_CENTRE, abs=1e-6)
        assert np.abs(state[pick_cube.STATE["cube_position"]][:2]).max() <= pick_cube.CUBE_RANGE
        sine, cosine = state[pick_cube.STATE["cube_yaw"]]
        assert np.hypot(sine, cosine) == pytest.approx(1.0, abs=1e-6)
    assert state.shape == (21,)


def test_grasp_penalty_is_for_changes_of_the_gripper_only():
    env = gymnasium.make(PICK_CUBE)
    env.reset(seed=0)
    close, keep, open_ = (np.array((0, 0, 0, 0, 0, 0, value), np.float32) for value in (-0.6, 0.3, 0.6))
    expected = [(open_, 0.0), (close, -0.02), (close, 0.0), (keep, 0.0), (open_, -0.02), (keep, 0.0)]
    for action, penalty in expected:
        assert env.step(action)[-1]["grasp_penalty"] == penalty
    assert env.step(open_)[0]["state"][pick_cube.STATE["gripper"]] > 0.95


def test_gripper_keeps_its_target_between_commands():
    env = gymnasium.make(PICK_CUBE)
    env.reset(seed=0)
    close, keep = np.zeros(7, np.float32), np.zeros(7, np.float32)
    close[6] = -1.0
    env.step(close)
    for _ in range(3):
        state = env.step(keep)[0]["state"]
    assert state[pick_cube.STATE["gripper"]] < 0.05


def test_lifted_cube_must_be_held():
    env = gymnasium.make(PICK_CUBE)
    env.reset(seed=0)
    env.unwrapped.robot.data.qpos[env.unwrapped._cube_pose][2] = 0.5
    _, reward, terminated, _, info = env.step(np.zeros(7, np.float32))
    assert (reward, terminated, info["succeed"]) == (0.0, False, False)


def test_reach_takes_any_box_of_targets():
    env = gymnasium.make("serl_robots/Reach-v0", target_low=(0.01, 0.02, -0.03), target_high=(0.01, 0.02, -0.03))
    env.reset(seed=0)
    assert env.unwrapped.privileged_state()[13:16] == pytest.approx([0.01, 0.02, -0.03], abs=1e-3)
    below = gymnasium.make("serl_robots/ReachInView-v0")
    for seed in range(20):
        below.reset(seed=seed)
        assert -0.125 < below.unwrapped.privileged_state()[15] < -0.045
    with pytest.raises(ValueError, match="give three lows below three highs"):
        gymnasium.make("serl_robots/Reach-v0", target_low=(0.2, 0, 0))


def test_reach_succeeds_within_tolerance():
    env = gymnasium.make(REACH)
    env.reset(seed=1)
    goal = env.unwrapped.robot.data.mocap_pos[env.unwrapped._goal]
    for distance, succeed in ((0.021, False), (0.019, True)):
        goal[:] = env.unwrapped.robot.state().tcp_position + np.array((distance, 0.0, 0.0))
        observation, reward, terminated, _, info = env.step(np.zeros(6, np.float32))
        assert (reward == 1.0, terminated, info["succeed"]) == (succeed, succeed, succeed)
        assert observation["state"][reach.STATE["target_from_tcp"]][0] == pytest.approx(distance, abs=1e-4)


def test_images_show_the_cube_from_two_sides(opengl):
    env = gymnasium.make(PICK_CUBE, image_keys=CAMERAS, image_size=96, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    assert observation["state"].shape == (13,)
    for camera in CAMERAS:
        image = observation[camera].astype(int)
        assert image.shape == (96, 96, 3)
        red = (image[..., 0] > 100) & (image[..., 1] < 60) & (image[..., 2] < 60)
        assert red.sum() > 20, f"no cube in {camera}"
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10
    assert not np.array_equal(observation["front"], observation["wrist"])
    frame = env.render()
    assert frame.shape == (256, 256, 3)
    env.close()


def test_cameras_of_a_classifier_leave_the_state_as_it_is(opengl):
    env = gymnasium.make(PICK_CUBE, classifier_keys=("front",), image_size=16)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["front"].shape == (16, 16, 3)
    assert np.array_equal(observation["state"], env.unwrapped.privileged_state())
    env.close()
    env = gymnasium.make(PICK_CUBE, image_keys=("front",), classifier_keys=CAMERAS, image_size=16)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert set(observation) == {"state", *CAMERAS}
    assert observation["state"].shape == (13,)
    env.close()
    with pytest.raises(ValueError, match=r"\['side'\]; the cameras are"):
        gymnasium.make(PICK_CUBE, classifier_keys=("side",))


def test_images_are_deterministic_and_independent(opengl):
    env = gymnasium.make(PICK_CUBE, image_keys=("front",))
    first = env.reset(seed=0)[0]["front"]
    kept = first.copy()
    other = env.reset(seed=1)[0]["front"]
    assert np.array_equal(first, kept), "an observation must not change after it was returned"
    assert not np.array_equal(first, other)
    assert np.array_equal(env.reset(seed=0)[0]["front"], kept)
    env.close()


def test_missing_opengl_gives_one_clear_line(monkeypatch):
    from serl_robots.sim import rendering

    monkeypatch.setattr(rendering, "choose_backend", lambda: "absent")
    rendering._context_class.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"libegl1 libgl1-mesa-dri.*libosmesa6") as caught:
            rendering._context_class()
    finally:
        rendering._context_class.cache_clear()
    assert "\n" not in str(caught.value)


def back_end_chosen_with(variables):
    """The module of the OpenGL back end that a fresh interpreter chooses, or what it says instead."""
    code = (
        "from serl_robots.sim.arm import SimulatedFranka\n"
        "from serl_robots.sim.rendering import Camera, _context_class\n"
        "Camera(SimulatedFranka().model, 16, 16).close()\n"
        "print(_context_class().__module__)"
    )
    # MuJoCo's context modules leave PYOPENGL_PLATFORM behind in this process.
    ours = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**environment, **variables}
    )
    return result.stdout.strip() or result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("backend", ["egl", "osmesa"])
def test_named_back_end_is_used(backend, opengl):
    chosen = back_end_chosen_with({"MUJOCO_GL": backend})
    if "no OpenGL" in chosen:
        pytest.skip(f"{backend} is not installed")
    assert chosen == f"mujoco.{backend}"


@pytest.mark.skipif(sys.platform != "linux", reason="EGL and OSMesa are Linux back ends")
def test_back_end_is_found_without_being_named(opengl):
    no_driver = {"__EGL_VENDOR_LIBRARY_DIRS": os.devnull}
    if "no OpenGL" in back_end_chosen_with({"MUJOCO_GL": "osmesa"}):
        pytest.skip("osmesa is not installed")
    assert back_end_chosen_with({}) in ("mujoco.egl", "mujoco.osmesa")
    assert back_end_chosen_with(no_driver) == "mujoco.osmesa"
    assert "egl failed" in back_end_chosen_with({**no_driver, "MUJOCO_GL": "egl"})


@ALL
def test_speed(env_id):
    for _ in range(10):  # others may be at work on this machine
        rate = control_steps_per_second(env_id, seconds=1.0)
        print(f"{env_id}: {rate:.0f} control steps/s")
        if rate > 100:
            return
    pytest.fail(f"{rate:.0f} control steps a second; a robot's loop needs more than 100")


def test_rewards_and_ends_of_a_success():
    env = gymnasium.make(PICK_CUBE)
    policy = expert(PICK_CUBE)
    observation, info = env.reset(seed=0)
    rewards = []
    while not info["succeed"]:
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        rewards.append(reward)
        assert not truncated
    assert terminated
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert isinstance(info["succeed"], bool)
    assert isinstance(info["grasp_penalty"], float)
