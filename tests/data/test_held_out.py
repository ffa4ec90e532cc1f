"""What is held out: whole episodes, some of every class."""

import numpy as np
import pytest

from serl_fast.data.episodes import DatasetError
from serl_fast.data.held_out import count_by_class, join_episodes, split_by_episode
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
    assert len(notes) == 1
    assert notes[0].startswith("2 of 2 episodes of class 'b' are a single frame")


def test_loose_frames_are_noted():
    assert not split_by_episode(made((0, 0), (0, 1), (1, 1), (0,)), 0.2, CLASSES)[2]  # one success of many frames
    (note,) = split_by_episode(made((0,), (0,), (0, 0), (1, 1), (1, 1)), 0.2, CLASSES)[2]
    assert "2 of 3 episodes of class 'failure' are a single frame" in note
    assert "put those of each series into a folder of their own" in note


def seen(*frames):
    """Frames given as (group, before, after)."""
    return [Frame({}, 0, group, "", "", before, after) for group, before, after in frames]


def joined(*frames):
    found, count = join_episodes(seen(*frames))
    names = list(dict.fromkeys(frame.group for frame in found))
    return [names.index(frame.group) for frame in found], count


def test_frames_that_follow_each_other_are_of_one_episode():
    assert joined(("a", b"1", b"2"), ("b", b"5", b"6"), ("c", b"2", b"3"), ("d", b"3", b"4")) == ([0, 1, 0, 0], 2)
    assert joined(("a", b"2", b"3"), ("b", b"1", b"2")) == ([0, 0], 1)  # in any order
    assert joined(("a", b"1", b"2"), ("b", b"1", b"2"), ("c", b"1", b"3")) == ([0, 0, 1], 1)  # the same twice
    assert joined(("a", b"", b""), ("b", b"", b"")) == ([0, 1], 0)
    # At rest all episodes look the same; what moved on from there does not.
    assert joined(("a", b"0", b"0"), ("a", b"0", b"1"), ("b", b"0", b"0"), ("b", b"0", b"2")) == ([0, 0, 1, 1], 0)
    assert joined(("a", b"1", b"9"), ("b", b"2", b"9"), ("c", b"9", b"3"), ("d", b"9", b"4")) == ([0] * 4, 3)


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
