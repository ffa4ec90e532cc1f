"""Everything that is wrong or odd about a data set, by episode and transition; not the first problem alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.episodes import Array, Dataset, DatasetError, Episode, ReadOptions, episode_problems, first_step
from serl_fast.data.formats import format_module, open_dataset
from serl_fast.data.inspection import FieldRange, end_of, idle_steps, widen

RANGES_SHOWN = 8
IDLE_SHARE = 0.1
"""Part of an episode's steps whose actions may be zero."""


@dataclass(frozen=True)
class Finding:
    """One thing about a data set.

    Attributes:
        is_error: it can not be used as it is; otherwise it is worth a look.
        where: file, and episode or transition.
        message: what it is.
    """

    is_error: bool
    where: str
    message: str

    def __str__(self) -> str:
        """One line."""
        return f"{'error  ' if self.is_error else 'warning'} {self.where}: {self.message}"


def validate(path: str | Path, options: ReadOptions | None = None, format: str | None = None) -> Iterator[Finding]:
    """Read a data set to its end.

    Args:
        path: file or folder.
        options: what of it is looked at.
        format: of ``serl_fast.data.formats.FORMATS``; None to find out.

    Raises:
        FileNotFoundError: there is nothing.
        MissingExtraError: a package that reads it is not installed.
    """
    options = options or ReadOptions()
    try:
        dataset = open_dataset(path, options, format)
    except DatasetError as error:
        yield Finding(True, str(path), _without(str(error), str(path)))
        return
    found: list[Finding] = []
    first: Episode | None = None
    ranges: dict[str, FieldRange] = {}
    number = -1
    try:
        for number, episode in enumerate(_episodes(dataset, options, found)):
            yield from found
            found.clear()
            where = f"{dataset.path}, {episode.name or f'episode {number}'}"
            problems = list(episode_problems(episode, first))
            yield from (Finding(True, where, problem) for problem in problems)
            if not problems:
                first = first or first_step(episode)
                widen(ranges, episode)
                yield from (Finding(False, where, oddity) for oddity in oddities(episode))
    except (DatasetError, OSError) as error:
        message = _without(str(error), str(path))
        found.append(Finding(True, str(path), f"{message} (nothing behind that was looked at)"))
    yield from found
    if number < 0 and not found:
        yield Finding(True, str(path), "there are no episodes")
    yield from (Finding(False, str(path), message) for message in _constant(ranges))


def oddities(episode: Episode) -> Iterator[str]:
    """What is worth a look about an episode that has no problems."""
    outside = np.abs(episode.actions) > 1
    if outside.any():
        worst = episode.actions.flat[np.abs(episode.actions).argmax()]
        yield f"actions beyond [-1, 1], up to {worst:g}, at {_steps(np.flatnonzero(outside.any(1)))}"
    idle = idle_steps(episode)
    if len(idle) > IDLE_SHARE * len(episode):
        yield f"the action is zero at {_steps(idle)}, {len(idle) / len(episode):.0%} of the episode"
    for key, value in episode.observations.items():
        if value.ndim == 4:
            flat = value.reshape(len(value), -1)
            same = np.flatnonzero([np.array_equal(one, other) for one, other in itertools.pairwise(flat)])
            if episode.terminated[-1]:  # formats without an observation behind the end repeat the last one
                same = same[same != len(episode) - 1]
            if len(same):
                yield f"camera '{key}' shows the same frame before and after {_steps(same)}"
    if end_of(episode) == "open":
        yield "it has no end: its last step is neither terminated nor truncated"


def _episodes(dataset: Dataset, options: ReadOptions, found: list[Finding]) -> Iterator[Episode]:
    """The episodes; of formats that go on after a problem, with all their problems in ``found``."""
    survey: Any = getattr(format_module(dataset.format), "survey", None)
    if survey is None:
        yield from dataset.read()
    else:
        yield from survey(
            dataset.path, options, lambda where, message: found.append(Finding(True, where, _without(message, where)))
        )


def _constant(ranges: dict[str, FieldRange]) -> Iterator[str]:
    for name, known in ranges.items():
        if name in ("terminated", "truncated"):
            continue
        if known.constant.all():
            values = np.unique(known.low)
            yield f"field '{name}' never changes" + (f": it is {values[0]:g}" if len(values) == 1 else "")
        elif known.constant.any():
            yield f"field '{name}' never changes in dimension {', '.join(map(str, np.flatnonzero(known.constant)))}"


def _steps(steps: Array) -> str:
    """``steps 3-7, 12 (6 in all)``."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    parts = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)
    shown = [f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts[:RANGES_SHOWN]]
    more = ", …" if len(parts) > RANGES_SHOWN else ""
    return f"steps {', '.join(shown)}{more} ({len(steps)} in all)"


def _without(message: str, place: str) -> str:
    """The message without the place that stands before it anyway."""
    return message.removeprefix(place).lstrip(":, ") if message.startswith(place) else message
