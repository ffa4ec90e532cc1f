"""A classifier's verdict in place of the environment's: reward, end, cameras, and what stays of the truth."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from serl_fast.envs import ClassifierReward, Judge, make_env, parse_condition
from serl_fast.evaluation import evaluate


class Film(gymnasium.Env):
    """Shows 1, 2, 3, ... in every camera; what it says of each step is given."""

    def __init__(self, verdicts, rewards=None, length=10, cameras=("front", "side"), state=True):
        fields: dict[str, Any] = {key: spaces.Box(0, 255, (4, 4, 3), np.uint8) for key in cameras}
        if state:
            fields["state"] = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict(fields)
        self.action_space = spaces.Box(-1, 1, (3,), np.float32)
        self.verdicts, self.length, self.rewards = verdicts, length, rewards or {}

    def reset(self, *, seed=None, options=None):
        self.shown = 0
        return self._observe(), {}

    def step(self, action):
        self.shown += 1
        verdict = self.verdicts.get(self.shown)
        info = {} if verdict is None else {"succeed": verdict == "success"}
        reward = self.rewards.get(self.shown, float(verdict == "success"))
        ended = verdict in ("success", "failure")
        return self._observe(), reward, ended, self.shown >= self.length, info

    def _observe(self):
        values = {key: np.full(space.shape, self.shown, space.dtype) for key, space in self.observation_space.items()}
        return values


def judge(successes, **settings):
    """Sees success where the first pixel is one of ``successes``."""

    def probability(observation):
        assert set(observation) == set(settings.get("image_keys", ("front",)))
        return 0.9 if next(iter(observation.values()))[0, 0, 0] in successes else 0.2

    return Judge(probability, **{"image_keys": ("front",), "threshold": 0.8, **settings})


def rollout(env):
    """Reward, terminated, truncated and info of every step of an episode."""
    env.reset(seed=0)
    steps = []
    while not steps or not (steps[-1][1] or steps[-1][2]):
        steps.append(env.step(np.zeros(3, np.float32))[1:])
    return steps


def test_success_is_what_the_judge_sees_after_the_action():
    steps = rollout(ClassifierReward(Film({1: "no", 2: "no", 3: "no"}), judge({3}), ["front", "side"]))
    assert [step[:3] for step in steps] == [(0.0, False, False), (0.0, False, False), (1.0, True, False)]
    assert [step[3]["succeed"] for step in steps] == [False, False, True]
    assert [step[3]["success_probability"] for step in steps] == [0.2, 0.2, 0.9]
    assert [step[3]["true_succeed"] for step in steps] == [False, False, False]


def test_the_frame_of_the_reset_is_not_judged():
    env = ClassifierReward(Film({}), judge({0}), ["front"])
    assert env.reset()[1] == {"succeed": False}
    assert len(rollout(env)) == 10


@pytest.mark.parametrize(("seen", "length"), [({1, 2, 3}, 3), ({1, 2, 4, 5, 6}, 6), ({1, 2, 4, 5}, 10)])
def test_frames_must_count_in_a_row(seen, length):
    assert len(rollout(ClassifierReward(Film({}), judge(seen, consecutive=3), []))) == length


def test_a_new_episode_starts_to_count_anew():
    env = ClassifierReward(Film({}, length=2), judge({1, 2}, consecutive=3), [])
    assert len(rollout(env)) == 2
    env.reset()
    assert not env.step(np.zeros(3, np.float32))[2]


def test_the_condition_must_hold_in_each_of_these_frames():
    condition = parse_condition("state[1]>=4")
    env = ClassifierReward(Film({}), judge({2, 3, 4, 5, 6}, consecutive=2, condition=condition), [])
    assert len(rollout(env)) == 5


def test_the_environments_own_success_does_not_end_the_episode_and_stays_visible():
    steps = rollout(ClassifierReward(Film({1: "no", 2: "success", 3: "no", 4: "no"}), judge({4}), []))
    assert [step[0] for step in steps] == [0.0, 0.0, 0.0, 1.0]
    assert [step[3]["true_succeed"] for step in steps] == [False, True, False, False]


def test_an_end_without_success_and_truncation_stay():
    assert rollout(ClassifierReward(Film({3: "failure"}), judge({5}), []))[-1][:3] == (0.0, True, False)
    assert rollout(ClassifierReward(Film({}, length=4), judge({5}), []))[-1][:3] == (0.0, False, True)
    assert rollout(ClassifierReward(Film({}, length=4), judge({4}), []))[-1][:3] == (1.0, True, True)


def test_cameras_of_the_classifier_alone_are_dropped():
    env = ClassifierReward(Film({}), judge({3}, image_keys=("side",)), ["front"])
    assert set(env.observation_space.spaces) == {"front", "state"}
    assert set(env.reset()[0]) == set(env.step(np.zeros(3, np.float32))[0]) == {"front", "state"}


def test_what_can_not_work_is_refused():
    with pytest.raises(ValueError, match=r"compares state\[2\]; .*state\[0\] to state\[1\]"):
        ClassifierReward(Film({}), judge({1}, condition=parse_condition("state[2]>0")), [])
    with pytest.raises(ValueError, match="there is no state"):
        ClassifierReward(Film({}, state=False), judge({1}, condition=parse_condition("state[0]>0")), ["front"])
    with pytest.raises(ValueError, match="nothing to observe"):
        ClassifierReward(Film({}, state=False), judge({1}), [])
    with pytest.raises(ValueError, match="threshold is 1"):
        judge({1}, threshold=1.0)
    with pytest.raises(ValueError, match="consecutive is 0"):
        judge({1}, consecutive=0)


def test_evaluation_tells_true_success_beside_the_judges():
    def act(observation):
        return np.zeros(3, np.float32)

    verdicts = {1: "no", 2: "success", 3: "no", 4: "no"}
    result = evaluate(ClassifierReward(Film(verdicts), judge({4}), []), act, 2, seed=0)
    assert (result.successes, result.true_successes) == ([True, True], [True, True])
    result = evaluate(ClassifierReward(Film(verdicts), judge({1}), []), act, 1, seed=0)
    assert (result.successes, result.true_successes) == ([True], [False])
    assert result.metrics()["evaluation/true_success_rate"] == 0.0
    silent = evaluate(ClassifierReward(Film({}), judge({1}), []), act, 1, seed=0)
    assert silent.true_success_rate is None
    assert "evaluation/true_success_rate" not in silent.metrics()


def test_make_env_shows_the_judge_its_cameras(toy_arm):
    looked = []

    def probability(observation):
        looked.append({key: image.shape for key, image in observation.items()})
        return 0.0

    for image_keys in ([], ["front"], ["side"]):
        env = make_env("toy/Arm-v0", image_keys, image_size=8, judge=Judge(probability, ("front",), 0.5))
        observation, _ = env.reset(seed=0)
        env.step(np.zeros(7, np.float32))
        assert list(observation) == ["state", *image_keys]
        assert set(observation) == set(env.observation_space.spaces)
    assert looked == 3 * [{"front": (8, 8, 3)}]


def test_make_env_tells_an_environment_which_cameras_are_the_judges():
    given = []

    class Apart(Film):
        def __init__(self, image_keys=(), classifier_keys=()):
            given.append((image_keys, classifier_keys))
            super().__init__({}, cameras=(*image_keys, *classifier_keys))
            self.action_space = spaces.Box(-1, 1, (7,), np.float32)

    gymnasium.register("toy/Apart-v0", entry_point=Apart)
    for image_keys in ([], ["front"], ["side"]):
        make_env("toy/Apart-v0", image_keys, judge=judge({1}))
    make_env("toy/Apart-v0", ["side"])
    assert given == [((), ("front",)), (("front",), ()), (("side",), ("front",)), (("side",), ())]
