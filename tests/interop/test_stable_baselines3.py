"""The store behind Stable-Baselines3: the same samples as its own buffer would give, and runs that train."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed")

from stable_baselines3 import DQN, SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from serl_fast.interop.stable_baselines3 import FastReplayBuffer

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = spaces.Box(-1, 1, (2,), np.float32)


def feed(buffers, steps, n_envs=1, length=4):
    """Episodes of `length` steps whose observation is the time; every second one ends by time."""
    for t in range(steps):
        last = t % length == length - 1
        late = last and (t // length) % 2 == 1
        observation = np.stack([np.full(3, 100 * env + t + t // length, np.float32) for env in range(n_envs)])
        for buffer in buffers:
            buffer.add(
                observation,
                observation + 1,
                np.full((n_envs, 2), t, np.float32),
                np.full(n_envs, t, np.float32),
                np.full(n_envs, last),
                [{"TimeLimit.truncated": late}] * n_envs,
            )


def by_reward(samples):
    """Rows by what they hold, so that the order of drawing does not matter."""
    columns = [c.numpy().reshape(len(samples.rewards), -1) for c in samples if c is not None]
    return {tuple(row) for row in np.concatenate(columns, 1).tolist()}


def bootstrapped(samples):
    """The rows whose return did not end in a termination: there nothing is bootstrapped, whatever the discount."""
    rows = by_reward(type(samples)(*(column[samples.dones[:, 0] == 0] for column in samples)))
    return {tuple(np.round(row, 4)) for row in rows}


@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_rows_are_those_of_the_original(n_envs):
    arguments = dict(buffer_size=30 * n_envs, observation_space=BOX, action_space=ACTION, n_envs=n_envs, device="cpu")
    ours, original = FastReplayBuffer(**arguments), ReplayBuffer(**arguments)
    feed([ours, original], 50, n_envs)
    assert (ours.size(), ours.full, ours.pos) == (original.size(), original.full, original.pos)
    assert by_reward(ours.sample(3_000)) == by_reward(original.sample(3_000))


def test_n_step_returns_are_those_of_the_original():
    arguments = dict(buffer_size=100, observation_space=BOX, action_space=ACTION, device="cpu", gamma=0.9, n_steps=3)
    ours, original = FastReplayBuffer(**arguments), NStepReplayBuffer(**arguments)
    feed([ours, original], 40)
    mine, theirs = ours.sample(2_000), original.sample(2_000)
    assert bootstrapped(mine) == bootstrapped(theirs)


def test_dict_observations_and_discrete_actions():
    space = spaces.Dict({"image": spaces.Box(0, 255, (3, 8, 8), np.uint8), "phase": spaces.Discrete(4)})
    buffer = FastReplayBuffer(50, space, spaces.Discrete(3), device="cpu", n_envs=2)
    for t in range(10):
        look, after = (
            {"image": np.full((2, 3, 8, 8), time, np.uint8), "phase": np.full(2, time % 4)} for time in (t, t + 1)
        )
        buffer.add(look, after, np.array([1, 2]), np.zeros(2), np.zeros(2, bool), [{}, {}])
    samples = buffer.sample(16)
    assert samples.observations["image"].shape == (16, 3, 8, 8)
    assert samples.observations["phase"].shape == (16, 1)
    assert samples.actions.shape == (16, 1)
    assert set(samples.actions.flatten().tolist()) == {1, 2}
    assert buffer.stores[0].nbytes < 50 * 3 * 8 * 8 * 1.5  # once, not twice
    buffer.reset()
    assert buffer.size() == 0


def test_sac_with_normalisation_and_two_environments_trains():
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2))
    model = SAC("MlpPolicy", env, learning_starts=20, buffer_size=200, replay_buffer_class=FastReplayBuffer, seed=0)
    model.learn(100)
    assert model.replay_buffer.size() == 50
    assert abs(float(model.replay_buffer.sample(64, env).observations.abs().max())) <= 10  # clipped by the wrapper


def test_dqn_trains():
    arguments = {"n_steps": 2, "gamma": 0.99}
    model = DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=20,
        replay_buffer_class=FastReplayBuffer,
        buffer_size=100,
        replay_buffer_kwargs=arguments,
        seed=0,
    )
    model.learn(60)
    assert model.replay_buffer.size() == 60


def test_the_buffer_is_saved_and_loaded(tmp_path):
    model = SAC(
        "MlpPolicy", "Pendulum-v1", learning_starts=1_000, buffer_size=100, replay_buffer_class=FastReplayBuffer
    )
    model.learn(120)
    model.save_replay_buffer(tmp_path / "buffer")
    again = SAC("MlpPolicy", "Pendulum-v1", replay_buffer_class=FastReplayBuffer)
    again.load_replay_buffer(tmp_path / "buffer")
    assert (again.replay_buffer.size(), again.replay_buffer.pos) == (100, 20)
    assert (again.replay_buffer.sample(50).rewards == model.replay_buffer.sample(50).rewards).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="optimize_memory_usage is not needed"):
        FastReplayBuffer(10, BOX, ACTION, optimize_memory_usage=True)
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    with pytest.raises(ValueError, match="norm_reward=False"):
        FastReplayBuffer(10, BOX, ACTION, n_steps=3).sample(1, env)
    with pytest.raises(ValueError, match="hold 0 transitions"):
        FastReplayBuffer(10, BOX, ACTION).sample(1)
