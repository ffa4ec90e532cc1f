"""Counting successes, returns and lengths."""

import numpy as np
import pytest

from serl_fast.evaluation import evaluate, succeeded


def right(observation):
    action = np.zeros(7, np.float32)
    action[0] = 1.0
    return action


def test_counts(toy_arm):
    env = toy_arm(goal=0.45, render_mode="rgb_array")
    frames = []
    result = evaluate(env, right, 3, seed=5, record_episodes=2, film=frames.append)
    assert result.successes == [True] * 3
    assert result.lengths == [5] * 3
    assert result.returns == [1.0] * 3
    assert len(frames) == 2 * 6  # every observation, the last one too
    assert result.metrics() == {"evaluation/success_rate": 1.0, "evaluation/return": 1.0, "evaluation/length": 5.0}


def test_a_time_out_is_no_success(toy_arm):
    result = evaluate(toy_arm(goal=99), right, 2, seed=0)
    assert result.success_rate == 0.0
    assert result.lengths == [20, 20]


def test_stopping_early_keeps_what_there_is(toy_arm):
    stops = iter([False] * 25 + [True])  # episodes of 11 steps
    assert len(evaluate(toy_arm(), right, 9, seed=0, should_stop=lambda: next(stops)).successes) == 2
    with pytest.raises(ValueError, match="episodes is 0"):
        evaluate(toy_arm(), right, 0, seed=0)


@pytest.mark.parametrize(
    ("reward", "terminated", "info", "expected"),
    [
        (1.0, True, {}, True),
        (1.0, False, {}, False),
        (0.0, True, {}, False),
        (0.0, False, {"succeed": True}, True),
        (1.0, True, {"succeed": False}, False),
    ],
)
def test_what_counts_as_success(reward, terminated, info, expected):
    assert succeeded(reward, terminated, info) is expected
