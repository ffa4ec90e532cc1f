from dataclasses import replace
from itertools import pairwise

import numpy as np

from serl_fast.data.episodes import Episode, fields_of
from serl_fast.data.pieces import continues, joined, split_at_ends


def episode(steps, terminated=(), truncated=()):
    rows = np.arange(steps)
    return Episode(
        {"state": np.arange(steps + 1, dtype=np.float32)[:, None], "front": np.full((steps + 1, 2, 2, 3), 7, np.uint8)},
        rows.astype(np.float32)[:, None],
        rows.astype(np.float32),
        np.isin(rows, terminated),
        np.isin(rows, truncated),
        {"labels": rows},
        "e",
        {"demo": 1},
    )


def test_an_end_in_the_middle_begins_another_episode():
    whole = episode(8, terminated=(2, 3), truncated=(5,))
    pieces = list(split_at_ends(whole))
    assert [p.rewards.tolist() for p in pieces] == [[0, 1, 2], [3], [4, 5], [6, 7]]
    assert [p.observations["state"][:, 0].tolist() for p in pieces] == [[0, 1, 2, 3], [3, 4], [4, 5, 6], [6, 7, 8]]
    assert [p.terminated.tolist() for p in pieces] == [[False, False, True], [True], [False] * 2, [False] * 2]
    assert [p.truncated.tolist() for p in pieces] == [[False] * 3, [False], [False, True], [False] * 2]
    assert [p.extras["labels"].tolist() for p in pieces] == [[0, 1, 2], [3], [4, 5], [6, 7]]
    assert [p.name for p in pieces] == ["e", "e, from step 3", "e, from step 4", "e, from step 6"]
    assert all(continues(a, b) for a, b in pairwise(pieces))
    again = joined(pieces)
    for name, value in fields_of(whole).items():
        np.testing.assert_array_equal(fields_of(again)[name], value)


def test_an_end_at_the_end_is_one_episode():
    for whole in (episode(3), episode(3, terminated=(2,)), episode(1, truncated=(0,))):
        (piece,) = split_at_ends(whole)
        assert piece is whole
        assert joined([piece]) is whole


def test_what_continues():
    first, second = split_at_ends(episode(4, terminated=(1,)))
    assert continues(first, second)
    assert not continues(second, first)
    front = second.observations["front"].copy()
    front[0, 0, 0, 0] = 8
    assert not continues(first, replace(second, observations=second.observations | {"front": front}))
    assert not continues(first, replace(second, observations={"state": second.observations["state"]}))
