"""The recorders of the offline data sets: rows line up, failures stay in, files come back."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from benchmarks import offline_halfcheetah, offline_pickcube
from benchmarks.offline_recording import collect, describe, record_episode
from serl_fast.data.episodes import check_episode
from serl_fast.data.formats import open_dataset
from serl_fast.envs import make_env


class Counting(gymnasium.Env):
    """State: the number of steps. Ends after ``length`` of them, in success or by the time limit."""

    observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)})
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, length, succeeds):
        self.length, self.succeeds = length, succeeds

    def reset(self, *, seed=None, options=None):
        self.steps, self.executed = 0, []
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        self.executed.append(float(action[0]))
        ended = self.steps == self.length
        reward = float(ended and self.succeeds)
        return self._observe(), reward, ended and self.succeeds, ended and not self.succeeds, {}

    def _observe(self):
        return {"state": np.array([self.steps], np.float32)}


@pytest.mark.parametrize("succeeds", [True, False])
def test_the_rows_of_an_episode_line_up(succeeds):
    env = Counting(3, succeeds)
    episode = record_episode(
        env, lambda seen: 2.0 * seen["state"] - 1.0, 7, "counter", lambda env: {"infos/steps": np.float32(env.steps)}
    )
    check_episode(episode)
    np.testing.assert_array_equal(episode.observations["state"][:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(episode.actions[:, 0], [-1, 1, 1])  # cut to what is executed
    assert env.executed == [-1.0, 1.0, 1.0]
    np.testing.assert_array_equal(episode.rewards, [0, 0, float(succeeds)])
    np.testing.assert_array_equal(episode.terminated, [False, False, succeeds])
    np.testing.assert_array_equal(episode.truncated, [False, False, not succeeds])
    np.testing.assert_array_equal(episode.extras["infos/steps"], [0, 1, 2])  # of the state before each step
    assert set(episode.extras) == {"infos/steps"}  # this environment has no grasp penalty
    assert episode.attributes == {"policy": "counter", "seed": 7, "success": succeeds}


def test_the_summary_of_a_data_set():
    episodes = [record_episode(Counting(n, n == 2), lambda seen: np.zeros(1), n, "p") for n in (2, 4)]
    assert collect(iter(episodes), 6) == episodes
    assert describe(episodes) == [{"policy": "p", "episodes": 2, "steps": 6, "successes": 1, "return": 0.5}]


def beginner(path, seed, env):
    return make_env(env), lambda seen: np.zeros(7, np.float32)


def test_pickcube_is_recorded_in_turns_failures_included(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mujoco")
    monkeypatch.setattr(offline_pickcube, "checkpoint_policy", beginner)
    output = tmp_path / "mixed.pkl"
    flags = f"--checkpoints a.pth b.pth --episodes 4 --output {output}"
    assert offline_pickcube.run(flags.split()) == 0
    expert, shaking, still, again = open_dataset(output)
    assert len(still) == 100
    assert still.truncated[-1]
    assert not still.terminated.any()
    assert not still.actions.any()
    for success in (expert, again):
        assert success.terminated[-1]
        assert success.rewards.sum() == 1
        assert not np.array_equal(success.actions[0], shaking.actions[0])
    assert "grasp_penalty" in expert.extras
    assert "beginner      1 episodes    100 steps    0 succeeded" in capsys.readouterr().out


def test_without_checkpoints_nothing_is_recorded():
    with pytest.raises(ValueError, match="at least one"):
        offline_pickcube.MixedConfig((), Path("x"))


@pytest.mark.parametrize(("target", "step"), [(100, 10), (101, 20)])
def test_the_medium_checkpoint_is_the_first_that_is_good_enough(tmp_path, target, step):
    for saved in (10, 20, 30):
        (tmp_path / f"checkpoint_{saved}.pth").touch()
    rows = ["step,environment_steps,time,evaluation/return", "5,5,1,", "11,11,1,100", "21,21,1,900", "31,31,1,100"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    chosen, reached = offline_halfcheetah.medium_checkpoint(tmp_path, target)
    assert chosen.name == f"checkpoint_{step}.pth"
    assert reached == (100 if step == 10 else 900)
    with pytest.raises(ValueError, match="the best one is 900"):
        offline_halfcheetah.medium_checkpoint(tmp_path, 1000)
