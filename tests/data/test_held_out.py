"""What is held out: whole episodes, some of every class."""

import numpy as np
import pytest

from serl_fast.data.episodes import DatasetError
from serl_fast.data.held_out import count_by_class, split_by_episode
from serl_fast.data.labelled import Frame

CLASSES = ("failure", "success")


def made(*episodes):
    """Frames of episodes given as (class, class, ...)."""
    blank = {"front": np.zeros((4, 6, 3), np.uint8)}
    return [
        Frame(blank, label, f"episode {n}", f"{n}/{step}")
        for n, episode in enumerate(episodes)
        for step, label in enumerate(episode)
    ]


def test_whole_episodes_are_held_out():
    rng = np.random.default_rng(0)
    for seed in range(30):
        episodes = [rng.choice(3, rng.integers(1, 12), p=(0.7, 0.2, 0.1)) for _ in range(40)]
        frames = made(*episodes, (0, 1, 2), (2, 1, 0))
        train, held_out, notes = split_by_episode(frames, 0.25, "abc", seed)
        assert not {f.group for f in train} & {f.group for f in held_out}
        assert sorted(f.name for f in (*train, *held_out)) == sorted(f.name for f in frames)
        assert not notes
        shares = np.array(count_by_class(held_out, 3)) / count_by_class(frames, 3)
        assert (shares > 0.08).all()
        assert (shares < 0.6).all()
        assert 0.15 < len(held_out) / len(frames) < 0.4


def test_the_split_follows_the_seed():
    frames = made(*[(0, 0, 1)] * 20)
    first, again, other = (split_by_episode(frames, 0.2, "ab", seed)[1] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(first) == 12


def test_two_episodes_of_a_class_are_one_on_each_side():
    train, held_out, notes = split_by_episode(made((0,) * 50, (0,) * 10, (1,), (1,)), 0.2, "ab")
    assert count_by_class(train, 2) == [50, 1]
    assert count_by_class(held_out, 2) == [10, 1]
    assert not notes


def test_a_single_episode_is_cut_in_time():
    frames = made((0,) * 10, (1,) * 4, (1,) * 4, (1,) * 4)
    train, held_out, (note,) = split_by_episode(frames, 0.2, CLASSES)
    assert [frame.name for frame in held_out if frame.label == 0] == ["0/8", "0/9"]
    assert count_by_class(train, 2) == [8, 8]
    assert "class 'failure' comes from one episode; its last 2 of 10 frames are held out" in note


def test_a_class_needs_two_frames():
    with pytest.raises(DatasetError, match=r"class 'success' has 1 frame\(s\); it needs at least 2"):
        split_by_episode(made((0, 0, 1)), 0.2, CLASSES)
    train, held_out, _ = split_by_episode(made((0, 0, 1, 1)), 0.9, CLASSES)
    assert count_by_class(train, 2) == count_by_class(held_out, 2) == [1, 1]
