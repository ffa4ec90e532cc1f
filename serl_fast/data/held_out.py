"""Labelled frames to train on, and frames of other episodes to judge by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    labels = np.array([frame.label for frame in frames])
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise DatasetError(f"class {name!r} has {len(rows)} frame(s); it needs at least 2, some to be held out")
        if len({groups[row] for row in rows}) > 1:
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
