"""Observations and actions as the loop expects them, whatever the environment offers."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from serl_fast.envs import SETUP_MODES, load_operator, make_env
from serl_fast.envs.make import FlatObservations, HeldGripper, WithoutGripper


class Fixed(gymnasium.Env):
    """Returns one observation for ever."""

    def __init__(self, space, observation):
        self.observation_space, self.value = space, observation
        self.action_space = spaces.Box(-1, 1, (7,), np.float32)

    def reset(self, *, seed=None, options=None):
        return self.value, {}

    def step(self, action):
        self.executed = action
        return self.value, 0.0, False, False, {"intervene_action": np.arange(7) / 10}


def box(*shape):
    return spaces.Box(-np.inf, np.inf, shape, np.float64)


IMAGE = spaces.Box(0, 255, (1, 4, 4, 3), np.uint8)


def test_a_box_is_the_state():
    env = FlatObservations(Fixed(box(3), np.arange(3.0)), ())
    observation, _ = env.reset()
    assert observation["state"].dtype == np.float32
    assert env.observation_space.contains(observation)
    assert env.state_dim == 3


def test_serl_layout_is_joined_in_alphabetical_order_and_cameras_are_squeezed():
    space = spaces.Dict(
        {"state": spaces.Dict({"tcp_pose": box(2), "gripper_pose": box(1)}), "wrist": IMAGE, "classifier": IMAGE}
    )
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    value = {"state": {"tcp_pose": [2.0, 3.0], "gripper_pose": [1.0]}, "wrist": pixels, "classifier": pixels}
    env = FlatObservations(Fixed(space, value), ["wrist"])
    observation, _ = env.reset()
    assert observation["state"].tolist() == [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(observation["wrist"], pixels[0])
    assert set(observation) == {"state", "wrist"}  # a camera that was not asked for is never stored
    assert env.observation_space.contains(observation)


def test_without_a_state_all_float_boxes_are_joined():
    space = spaces.Dict({"b": box(1), "a": box(2), "camera": IMAGE})
    value = {"b": [3.0], "a": [1.0, 2.0], "camera": np.zeros((1, 4, 4, 3), np.uint8)}
    assert FlatObservations(Fixed(space, value), ()).reset()[0]["state"].tolist() == [1.0, 2.0, 3.0]


def test_observations_are_copies():
    value = np.zeros(3)
    env = FlatObservations(Fixed(box(3), value), ())
    first, _ = env.reset()
    value += 1
    assert first["state"].tolist() == [0.0, 0.0, 0.0]


def test_what_can_not_be_observed_is_named():
    with pytest.raises(ValueError, match=r"no camera \['side'\]; its observations are \['state'\]"):
        FlatObservations(Fixed(box(3), None), ["side"])
    with pytest.raises(ValueError, match="uint8 images"):
        FlatObservations(Fixed(spaces.Dict({"state": box(3)}), None), ["state"])
    with pytest.raises(ValueError, match="nothing to observe"):
        FlatObservations(Fixed(spaces.Dict({"camera": IMAGE}), None), ())


def test_a_fixed_gripper_adds_and_removes_the_command():
    inner = Fixed(box(3), np.zeros(3))
    env = WithoutGripper(HeldGripper(inner, arms=1), arms=1)
    assert env.action_space.shape == (6,)
    *_, info = env.step(np.full(6, 0.5, np.float32))
    assert inner.executed.tolist() == [0.5] * 6 + [0.0]
    HeldGripper(inner, arms=1).step(np.ones(7, np.float32))
    assert inner.executed.tolist() == [1.0] * 6 + [0.0]
    np.testing.assert_allclose(info["intervene_action"], np.arange(6) / 10)


def test_setup_modes_have_the_manuals_widths():
    assert {name: mode.action_dim for name, mode in SETUP_MODES.items()} == {
        "single-arm-fixed-gripper": 6,
        "single-arm-learned-gripper": 7,
        "dual-arm-fixed-gripper": 12,
        "dual-arm-learned-gripper": 14,
    }
    assert [mode.grippers for mode in SETUP_MODES.values()] == [0, 1, 0, 2]


@pytest.mark.parametrize("env_id", ["serl_robots/Reach-v0", "serl_robots:serl_robots/Reach-v0", "toy/Arm-v0"])
def test_ids_with_and_without_a_module(env_id):
    env = make_env(env_id)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


def test_arguments_reach_the_constructor():
    env = make_env("toy/Arm-v0", ("front",), render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    assert observation["front"].shape == (16, 16, 3)
    assert env.render().shape == (32, 32, 3)
    observation, _ = make_env("toy/Arm-v0", ("front",), image_size=24).reset(seed=0)
    assert observation["front"].shape == (24, 24, 3)
    with pytest.raises(ValueError, match="Pendulum-v1 takes no image_size"):
        make_env("Pendulum-v1", image_size=24)


def test_operators_by_name():
    assert load_operator("none") is None
    assert load_operator("scripted").__name__ == "ScriptedOperator"
    with pytest.raises(ValueError, match=r"operator 'me' can not be loaded.*none, scripted, module:callable"):
        load_operator("me")


def test_misuse_of_operators_and_action_bounds_are_named(toy_arm):
    with pytest.raises(ValueError, match=r"can not wrap the environment.*takes the environment and returns it wrapped"):
        make_env("toy/Arm-v0", operator=lambda observation, action, info: None)
    with pytest.raises(ValueError, match="returned NoneType"):
        make_env("toy/Arm-v0", operator=lambda env: None)
    with pytest.raises(ValueError, match=r"takes actions from -2\.0 to 2\.0.*RescaleAction"):
        make_env("Pendulum-v1", setup_mode=SETUP_MODES["single-arm-fixed-gripper"])
    with pytest.raises(ValueError, match="action space Discrete"):
        make_env("CartPole-v1", setup_mode=SETUP_MODES["single-arm-fixed-gripper"])


class Wide(Fixed):
    """Takes one action from -2 to 6."""

    def __init__(self):
        super().__init__(box(1), np.zeros(1))
        self.action_space = spaces.Box(-2.0, 6.0, (1,), np.float32)


def test_actions_of_another_range_are_scaled_where_that_is_asked_for():
    if "toy/Wide-v0" not in gymnasium.registry:
        gymnasium.register("toy/Wide-v0", entry_point=Wide)
    env = make_env("toy/Wide-v0", rescale=True)
    assert (env.action_space.low, env.action_space.high) == (-1, 1)
    env.reset()
    for action, executed in ((-1, -2), (0, 2), (1, 6)):
        env.step(np.array([action], np.float32))
        assert env.unwrapped.executed == pytest.approx(executed)
    assert make_env("toy/Wide-v0").action_space.high == 6
    with pytest.raises(ValueError, match="a bounded Box of one axis is needed"):
        make_env("CartPole-v1", rescale=True)
