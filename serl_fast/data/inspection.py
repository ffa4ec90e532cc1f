"""What is in a data set: counts, shapes, ranges, how its episodes end, and how its cameras see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.episodes import Array, Dataset, Episode, fields_of
from serl_fast.errors import require

SHEET_ROWS = 6
SHEET_COLUMNS = 8


@dataclass
class FieldRange:
    """A field's form, and the smallest and largest value of every one of its numbers.

    Attributes:
        dtype: as NumPy names it.
        shape: of a step.
        low: smallest values: of a vector those of every dimension, [P], otherwise one.
        high: largest ones, likewise.
    """

    dtype: str
    shape: tuple[int, ...]
    low: Array
    high: Array

    @property
    def constant(self) -> Array:
        """Where every step has the same value, bool like ``low``."""
        return np.asarray(self.low == self.high)


def widen(ranges: dict[str, FieldRange], episode: Episode) -> None:
    """Take an episode into the ranges of its fields.

    Args:
        ranges: by name of the field; changed.
        episode: with fields of the same shapes as those before it.
    """
    for name, value in fields_of(episode).items():
        axes = 0 if value.ndim == 2 or not value.size else None  # a field without values has no smallest one
        low, high = np.asarray(value.min(axes)), np.asarray(value.max(axes))
        known = ranges.get(name)
        if known is None:
            ranges[name] = FieldRange(str(value.dtype), value.shape[1:], low, high)
        else:
            known.low, known.high = np.minimum(known.low, low), np.maximum(known.high, high)


@dataclass
class Summary:
    """What a pass over a data set found.

    Attributes:
        path: of the data set.
        format: its name.
        attributes: of the data set.
        lengths: steps of every episode.
        returns: undiscounted, of every episode.
        ends: episodes by how they end: "terminated", "truncated", or "open" where the data do not say.
        successes: episodes that succeeded.
        told_by: what says so: "their attribute 'success'" or "the last reward is positive".
        idle: steps whose action is zero in every dimension.
        ranges: by name of the field.
        pictures: per camera rows of frames, each of one episode, with its number: for :func:`write_contact_sheet`.
    """

    path: Path
    format: str
    attributes: dict[str, Any]
    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    successes: int = 0
    told_by: str = "the last reward is positive"
    idle: int = 0
    ranges: dict[str, FieldRange] = field(default_factory=dict)
    pictures: list[tuple[int, dict[str, Array]]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Of all episodes."""
        return sum(self.lengths)

    def add(self, episode: Episode) -> None:
        """Take in one episode."""
        self.lengths.append(len(episode))
        self.returns.append(float(episode.rewards.sum(dtype=np.float64)))
        self.ends[end_of(episode)] += 1
        if "success" in episode.attributes:
            self.told_by = "their attribute 'success'"
        self.successes += bool(episode.attributes.get("success", episode.rewards[-1] > 0))
        self.idle += len(idle_steps(episode))
        widen(self.ranges, episode)


def summarize(dataset: Dataset, episodes: Iterable[Episode] | None = None, pictures: bool = False) -> Summary:
    """Go through a data set once.

    Args:
        dataset: any.
        episodes: a pass over it, where it is to be seen by someone else as well.
        pictures: keep some frames of some episodes.
    """
    summary = Summary(dataset.path, dataset.format, dataset.attributes)
    every = 1
    for number, episode in enumerate(dataset if episodes is None else episodes):
        summary.add(episode)
        if pictures and number % every == 0:
            summary.pictures.append((number, _some_frames(episode)))
            if len(summary.pictures) == 2 * SHEET_ROWS:  # how many there will be is not known: thin them out
                summary.pictures, every = summary.pictures[::2], 2 * every
    return summary


def end_of(episode: Episode) -> str:
    """How an episode ends: "terminated", "truncated", or "open" where the data do not say."""
    return "terminated" if episode.terminated[-1] else "truncated" if episode.truncated[-1] else "open"


def idle_steps(episode: Episode) -> Array:
    """Numbers of the steps whose action is zero in every dimension."""
    return np.flatnonzero((episode.actions == 0).all(1))


def _some_frames(episode: Episode) -> dict[str, Array]:
    chosen = np.linspace(0, len(episode), SHEET_COLUMNS).round().astype(int)
    return {key: value[chosen] for key, value in episode.observations.items() if value.ndim == 4}


def write_contact_sheet(summary: Summary, path: str | Path) -> Path:
    """Draw frames of a few episodes, a row for each episode and camera, from its first frame to its last.

    Args:
        summary: with pictures.
        path: the PNG to write.

    Raises:
        ValueError: there are no cameras.
        MissingExtraError: Matplotlib is not installed.
    """
    chosen = np.unique(np.linspace(0, len(summary.pictures) - 1, SHEET_ROWS).round().astype(int))
    rows = [
        (f"episode {number}\n{key}", frames)
        for number, cameras in (summary.pictures[index] for index in chosen if summary.pictures)
        for key, frames in cameras.items()
    ]
    if not rows:
        raise ValueError(f"{summary.path} has no cameras, so there is nothing for a contact sheet")
    height = 1.3 * len(rows) + 0.5
    figure = require("matplotlib.figure", "logging").Figure(figsize=(13, height), dpi=100, layout="constrained")
    for axes, (title, frames) in zip(figure.subplots(len(rows), SHEET_COLUMNS, squeeze=False), rows, strict=True):
        _draw_row(axes, title, frames)
    figure.suptitle(f"{summary.path.name}: {len(summary.lengths)} episodes; from the first frame to the last")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw_row(axes: Sequence[Any], title: str, frames: Array) -> None:
    for axis, frame in zip(axes, frames, strict=True):
        axis.set_xticks([])
        axis.set_yticks([])
        axis.imshow(frame if frame.shape[2] > 1 else frame[..., 0], cmap="gray", vmin=0, vmax=255)
    axes[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
