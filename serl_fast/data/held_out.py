"""Labelled frames to train on, and frames of other episodes to judge by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.data.episodes import DatasetError
from serl_fast.data.labelled import Frame


def split_by_episode(
    frames: Sequence[Frame], fraction: float, classes: Sequence[str], seed: int = 0
) -> tuple[list[Frame], list[Frame], list[str]]:
    """Hold out whole episodes, about ``fraction`` of every class.

    Frames of an episode look alike: were they on both sides, the held-out ones would be known already. Where a class
    comes from a single episode, the last part of it in time is held out, which is said.

    Args:
        frames: in order of time within an episode.
        fraction: in (0, 1).
        classes: names of the classes.
        seed: of the choice.

    Returns:
        Frames to train on, held-out frames, and what is to be said about them.

    Raises:
        DatasetError: a class has fewer than two frames.
    """
    groups, notes = [frame.group for frame in frames], []
    lengths = Counter(groups)
    labels = np.array([frame.label for frame in frames])
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise DatasetError(f"class {name!r} has {len(rows)} frame(s); it needs at least 2, some to be held out")
        if len({groups[row] for row in rows}) > 1:
            notes += _loose(name, [lengths[group] for group in {groups[row] for row in rows}])
            continue
        cut = len(rows) - min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        for row in rows[cut:]:
            groups[row] += f", last part ({name})"
        notes.append(
            f"class {name!r} comes from one episode; its last {len(rows) - cut} of {len(rows)} frames are held out, "
            "which look like those before: its figures flatter"
        )
    held_out = _held_out(groups, labels, fraction, len(classes), seed)
    train = [frame for frame, group in zip(frames, groups, strict=True) if group not in held_out]
    return train, [frame for frame, group in zip(frames, groups, strict=True) if group in held_out], notes


def _loose(name: str, lengths: Sequence[int]) -> list[str]:
    """What is to be said of a class, from the number of frames of each of its episodes."""
    single = sum(length == 1 for length in lengths)
    if 2 * single <= len(lengths):
        return []
    return [
        f"{single} of {len(lengths)} episodes of class {name!r} are a single frame; if some were taken one after the "
        "other, near copies of training frames are held out and the figures flatter: put those of each series into a "
        "folder of their own"
    ]


def join_episodes(frames: Sequence[Frame]) -> tuple[list[Frame], int]:
    """Make one episode of those whose frames follow each other.

    A recorder that puts successes and failures into files of their own cuts an episode wherever the label changes. A
    transition that begins with the pictures with which another one ended is of the same episode, and so is an equal
    one. One in which nothing moved is followed by none: a simulation at rest shows the same in every episode.

    Args:
        frames: with ``before`` and ``after`` where that is known.

    Returns:
        The frames, in their order, and how many episodes were joined to another.
    """
    parents = {frame.group: frame.group for frame in frames}

    def root(group: str) -> str:
        while parents[group] != group:
            parents[group] = group = parents[parents[group]]
        return group

    ended: dict[bytes, set[str]] = {}
    for frame in frames:
        if frame.after and frame.before and frame.after != frame.before:
            ended.setdefault(frame.after, set()).add(frame.group)
            ended.setdefault(frame.before + frame.after, set()).add(frame.group)
    for frame in frames:
        for key in (frame.before, frame.before + frame.after):
            for other in ended.get(key, ()):
                parents[root(other)] = root(frame.group)
            if key in ended:  # all of them are one now
                ended[key] = {frame.group}
    joined = sum(parent != group for group, parent in parents.items())
    return [replace(frame, group=root(frame.group)) for frame in frames], joined


def _held_out(groups: Sequence[str], labels: npt.NDArray[Any], fraction: float, classes: int, seed: int) -> set[str]:
    """Groups to hold out: of every class as near to ``fraction`` as whole groups allow, and some are left."""
    counts: dict[str, npt.NDArray[Any]] = {}
    for group, label in zip(groups, labels, strict=True):
        counts.setdefault(group, np.zeros(classes, np.int64))[label] += 1
    names = list(counts)
    order = [names[n] for n in np.random.default_rng(seed).permutation(len(names))]
    left, taken = np.bincount(labels, minlength=classes), np.zeros(classes, np.int64)
    goals, chosen = fraction * left, set()

    def take(group: str) -> None:
        nonlocal left, taken
        chosen.add(group)
        left, taken = left - counts[group], taken + counts[group]

    for label in np.argsort(left, kind="stable"):  # the rarest class first
        candidates = [group for group in order if counts[group][label] and group not in chosen]
        for group in candidates:
            # Half of a group beyond the goal is nearer to it than none of it.
            fits = taken[label] + counts[group][label] / 2 <= goals[label]
            if fits and ((left - counts[group]) > 0).all():
                take(group)
        if not taken[label]:
            possible = [group for group in candidates if ((left - counts[group]) > 0).all()]
            if possible:
                take(min(possible, key=lambda group: counts[group][label]))
    return chosen


def count_by_class(frames: Iterable[Frame], classes: int) -> list[int]:
    """Frames of every class."""
    return np.bincount([frame.label for frame in frames], minlength=classes).tolist()
