"""What data sets go through before an agent learns from them alone, with numbers worked out by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from serl_fast.data.episodes import Dataset, DatasetError, Episode, columns_of
from serl_fast.data.fill import schema_of
from serl_fast.data.offline import (
    ACTION_LIMIT,
    FOLLOWING,
    MC_RETURNS,
    UNKNOWN,
    FilledLater,
    Selection,
    Summary,
    best_episodes,
    discounted_returns,
    pieces_of,
    prepared,
)
from serl_fast.replay import ReplayStore


def episode(rewards, actions, terminated=True, name="e") -> Episode:
    steps = len(rewards)
    end = np.arange(steps) == steps - 1
    return Episode(
        {"state": np.arange(steps + 1, dtype=np.float32)[:, None]},
        np.array(actions, np.float32).reshape(steps, -1),
        np.array(rewards, np.float32),
        end & terminated,
        end & (not terminated),
        name=name,
    )


def dataset(*episodes: Episode, path: str = "data.pkl") -> Dataset:
    return Dataset(Path(path), "pickle", lambda: iter(episodes), len(episodes), sum(map(len, episodes)))


@pytest.mark.parametrize(
    ("rewards", "terminated", "discount", "expected"),
    [
        ([1, 2, 4], True, 0.5, [3, 4, 4]),  # 4; 2 + 4 / 2; 1 + 4 / 2
        ([1, 2, 4], False, 0.5, [3, 4, 4]),  # cut: 0 stands for what is not known
        ([-1, -1], True, 0.5, [-1.5, -1]),
        ([-1, -1], False, 0.5, [-2, -2]),  # nothing ever happened: -1 / (1 - 0.5) for ever
        ([0, 0, 0], False, 0.9, [0, 0, 0]),
        ([1, 1], False, 1.0, [2, 1]),
        ([1, 1], False, 0.5, [1.5, 1]),  # a reward, not a cost: what would follow is not known
        ([-1], False, 0.5, [-1]),  # a single step tells nothing
    ],
)
def test_discounted_returns(rewards, terminated, discount, expected):
    returns = discounted_returns(np.array(rewards, np.float32), terminated, discount)
    np.testing.assert_allclose(returns, expected)
    assert returns.dtype == np.float32


def test_every_step_gets_the_next_action_and_the_return_of_the_rewards_that_the_agent_sees():
    selection = Selection(discount=0.5, reward_scale=2.0, reward_bias=-1.0)
    (whole,) = pieces_of(episode([0, 0, 1], [0.1, -1.0, 0.3]), selection)
    np.testing.assert_allclose(whole.extras[FOLLOWING][:, 0], [-ACTION_LIMIT, 0.3, 0.3])
    np.testing.assert_allclose(whole.extras[MC_RETURNS], [-1 + 0.5 * -0.5, -1 + 0.5 * 1, 1])
    np.testing.assert_array_equal(whole.rewards, [0, 0, 1])  # as they are: the agent scales them
    assert np.abs(whole.actions).max() == np.float32(ACTION_LIMIT)


def test_idle_steps_are_dropped_and_the_last_one_stays():
    found = pieces_of(episode([1, 2, 3, 4, 5], [0, 0.5, 0, 0.7, 0]), Selection(discount=1.0, drop_idle=True))
    assert [piece.rewards.tolist() for piece in found] == [[2], [4, 5]]
    assert [piece.observations["state"][:, 0].tolist() for piece in found] == [[1, 2], [3, 4, 5]]
    assert [piece.terminated.tolist() for piece in found] == [[False], [False, True]]
    assert found[0].extras[MC_RETURNS].tolist() == [14]  # 2 + 3 + 4 + 5: of the whole episode


def test_actions_of_another_range_are_scaled_and_others_refused():
    low, high = np.array([-2.0]), np.array([6.0])
    (scaled,) = pieces_of(episode([0, 0, 0], [-2, 2, 4]), Selection(action_range=(low, high)))
    np.testing.assert_allclose(scaled.actions[:, 0], [-ACTION_LIMIT, 0, 0.5])
    with pytest.raises(DatasetError, match=r"data.pkl, bad: field 'actions' is 2 at step 1, index 0; .*--env says"):
        list(prepared(dataset(episode([0, 0], [0, 2], name="bad")), Selection()))
    with pytest.raises(DatasetError, match=r"has 1 values; the environment takes 2"):
        pieces_of(episode([0], [0]), Selection(action_range=(np.array([0, 0]), np.array([1, 1]))))


def test_the_best_episodes_of_all_data_sets():
    first = dataset(episode([1], [0]), episode([3], [0]), path="a")
    second = dataset(episode([3], [0]), episode([2], [0]), path="b")
    assert best_episodes([first, second], 0.25) == {Path("a"): {1}, Path("b"): set()}
    assert best_episodes([first, second], 0.75) == {Path("a"): {1}, Path("b"): {0, 1}}
    assert best_episodes([first, second], 0.01) == {Path("a"): {1}, Path("b"): set()}
    assert best_episodes([first, second], 1.0) is None
    assert [float(e.rewards[0]) for e in prepared(first, Selection(), {1})] == [3]


def goal_and_after(start: float, costs: int, after: int) -> list[Episode]:
    """A demonstration of ``costs`` steps to the goal, and the steps in the goal, as readers cut them."""
    pieces = [episode([-1] * costs, [0.5] * costs), *(episode([0], [0.1]) for _ in range(after))]
    value = start
    for piece in pieces:
        piece.observations["state"][:, 0] = value + np.arange(len(piece) + 1)
        value += len(piece)
    return pieces


def test_steps_in_the_goal_are_part_of_the_demonstration():
    data = dataset(*goal_and_after(0, 5, 3), *goal_and_after(100, 3, 3), *goal_and_after(200, 4, 0))
    assert best_episodes([data], 0.3) == {Path("data.pkl"): {4, 5, 6, 7}}
    summary = Summary()
    list(prepared(data, Selection(), {4, 5, 6, 7}, summary))
    assert (summary.episodes, summary.failures, summary.returns) == (1, 0, [-3])
    cut = dataset(*(episode([1], [0], terminated=False) for _ in range(4)))
    for number, each in enumerate(cut.read()):  # time limits of an environment that is not reset
        each.observations["state"][:, 0] = (number, number + 1)
    assert best_episodes([cut], 0.5) == {Path("data.pkl"): {0, 1}}


def test_returns_of_steps_without_an_end_are_not_known():
    open_end = dataclasses.replace(episode([-1, -1], [0.1, 0.1]), terminated=np.zeros(2, bool))
    (piece,) = pieces_of(open_end, Selection())
    assert (piece.extras[MC_RETURNS] == UNKNOWN).all()
    summary = Summary()
    list(prepared(dataset(open_end), Selection(), summary=summary))
    assert summary.known == 0
    assert "not known" in summary.describe()
    assert json.dumps(summary.plain(), allow_nan=False)
    list(prepared(dataset(open_end, episode([1], [0])), Selection(), summary=summary))
    assert (summary.known, summary.mc_return, summary.mc_lowest, summary.mc_highest) == (1, 1, 1, 1)


def test_the_summary_counts_what_was_read():
    summary = Summary()
    data = dataset(episode([0, 1], [0.5, 0.0]), episode([0, 0], [0.0, 0.5], terminated=False))
    selection = Selection(discount=0.5, drop_idle=True)
    assert sum(len(piece) for piece in prepared(data, selection, summary=summary)) == 3
    assert (summary.episodes, summary.transitions, summary.idle, summary.failures) == (2, 3, 1, 1)
    assert (summary.mc_return, summary.mc_lowest, summary.mc_highest) == (1.5 / 4, 0, 1)
    assert "3 transitions of 2 episodes (1 end terminated, 1 idle steps dropped); return 0.5" in summary.describe()
    assert summary.plain()["mean_return"] == 0.5


def test_an_actors_steps_get_what_only_later_steps_tell():
    selection = Selection(discount=0.5, reward_bias=1.0)
    (whole,) = pieces_of(episode([0, 0, 1], [0.1, 0.2, 0.3]), selection)
    store = ReplayStore(schema_of(whole, ["grasp_penalty", *selection.columns]), 20)
    filled = FilledLater(store, selection)
    columns = columns_of(whole, ("grasp_penalty",))

    def append(row: int, continues: bool) -> None:
        filled.append(_row(columns, row), continues)

    append(0, False)
    append(1, True)
    assert store.batch_at([0, 1])[MC_RETURNS].tolist() == [UNKNOWN, UNKNOWN]
    append(2, True)
    expected = (whole.extras[MC_RETURNS], whole.extras[FOLLOWING])
    append(1, False)  # another stretch, whose end never comes
    batch = store.batch_at(np.arange(4))
    np.testing.assert_array_equal(batch[MC_RETURNS][:3], expected[0])
    np.testing.assert_array_equal(batch[FOLLOWING][:3], expected[1])
    assert batch[MC_RETURNS][3] == UNKNOWN


def _row(tree, row):
    return {key: _row(value, row) if isinstance(value, dict) else value[row] for key, value in tree.items()}
