"""A run's metrics read back and drawn, and its episodes filmed."""

from __future__ import annotations

import contextlib
import csv
import importlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.errors import MissingExtraError, require
from serl_fast.files import written_whole

FIRST_COLUMNS = ("step", "environment_steps", "time")
EPISODE = "environment/episode/"

_ROLLING_EPISODES = 20
_COLOURS = {"evaluation": "#1f77b4", "training": "#9a9a9a", "intervention": "#d1495b"}


def complete_rows(path: Path) -> list[list[str]]:
    """All rows that end with a newline."""
    text = path.read_text(encoding="utf-8")
    return list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))


def read_metrics(path: str | Path) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """The columns of a ``metrics.csv``, float64 [rows]; NaN where a row has no value.

    Raises:
        OSError: the file cannot be read.
    """
    rows = complete_rows(Path(path)) or [list(FIRST_COLUMNS)]
    header, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    values = [[float(cell) if cell else math.nan for cell in row] for row in body]
    table = np.array(values, dtype=np.float64).reshape(len(body), len(header))
    return {name: table[:, index] for index, name in enumerate(header)}


def plot_progress(metrics_csv: str | Path, png: str | Path) -> Path | None:
    """Draw success and intervention rates over environment steps; over gradient steps where there were none of them.

    Args:
        metrics_csv: a run's ``metrics.csv``.
        png: the file to write.

    Returns:
        The file's path; None where there is nothing to draw or Matplotlib is not installed (said in one
        line).
    """
    if not Path(metrics_csv).exists():
        return None
    columns = read_metrics(metrics_csv)
    curves = {
        "evaluation": _curve(columns, "evaluation/success_rate"),
        "training": _rolling(_curve(columns, f"{EPISODE}succeed")),
        "intervention": _rolling(_curve(columns, f"{EPISODE}intervention_rate")),
    }
    if not any(len(steps) for steps, _ in curves.values()):
        return None
    try:
        figure = require("matplotlib.figure", "logging").Figure(figsize=(8, 6.5), dpi=150, layout="constrained")
    except MissingExtraError as error:
        print(error)
        return None
    success, intervention = figure.subplots(2, 1, sharex=True)
    rolling = f"mean of the last {_ROLLING_EPISODES} episodes"
    drawn = {
        "training": (success, "-", f"training, with interventions: {rolling}"),
        "evaluation": (success, "o-", "evaluation, policy alone"),
        "intervention": (intervention, "-", rolling),
    }
    for name, (axes, marks, label) in drawn.items():
        if len(curves[name][0]):
            axes.plot(*curves[name], marks, markersize=4, color=_COLOURS[name], label=label)
    success.set_ylabel("success rate (% of episodes)")
    intervention.set_ylabel("intervention rate (% of steps)")
    intervention.set_xlabel("environment steps" if np.any(columns["environment_steps"]) else "gradient steps")
    for axes in (success, intervention):
        axes.set_ylim(-3, 103)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(png)
    return Path(png)


def plot_q_values(metrics_csv: str | Path, png: str | Path) -> Path | None:
    """Draw what the critics say beside what the data achieved, and how far the policy is from the data.

    Args:
        metrics_csv: a run's ``metrics.csv``, of ``train_offline``.
        png: the file to write.

    Returns:
        The file's path; None where there is nothing to draw or Matplotlib is not installed (said in one line).
    """
    columns = read_metrics(metrics_csv) if Path(metrics_csv).exists() else {}
    names = ("q_policy", "q_data", "mc_return", "action_distance", "saturated", "saturated_data")
    curves = {name: _by_step(columns, f"offline/{name}") for name in names}
    if not len(curves["action_distance"][0]):
        return None
    try:
        figure = require("matplotlib.figure", "logging").Figure(figsize=(8, 6.5), dpi=150, layout="constrained")
    except MissingExtraError as error:
        print(error)
        return None
    values, actions = figure.subplots(2, 1, sharex=True)
    drawn = {
        "q_policy": (values, "o-", "Q of the policy's actions", _COLOURS["intervention"]),
        "q_data": (values, "o-", "Q of the data's actions", _COLOURS["evaluation"]),
        "mc_return": (values, "--", "what the data returned", _COLOURS["training"]),
        "action_distance": (actions, "o-", "(policy - data)², mean over coordinates", _COLOURS["intervention"]),
        "saturated": (actions, "-", "part of the policy's coordinates beyond ±0.99", _COLOURS["evaluation"]),
        "saturated_data": (actions, "--", "the same of the data", _COLOURS["training"]),
    }
    for name, (axes, marks, label, colour) in drawn.items():
        if len(curves[name][0]):
            size = 7 if name == "q_policy" else 4  # it shows behind what it is equal to
            axes.plot(*curves[name], marks, markersize=size, color=colour, label=label)
    values.set_ylabel("discounted return")
    actions.set_ylabel("per coordinate of an action")
    actions.set_ylim(bottom=0)
    actions.set_xlabel("gradient steps")
    for axes in (values, actions):
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize="small")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(png)
    return Path(png)


def _by_step(columns: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """(gradient steps, value) of the rows that have this metric."""
    values = columns.get(name, np.zeros(0))
    present = np.isfinite(values)
    return _that_stand((columns["step"][: len(values)][present] if len(values) else values), values[present])


def _curve(columns: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """(environment steps or, without any, gradient steps; percent) of the rows that have this metric."""
    values = columns.get(name, np.zeros(0))
    present = np.isfinite(values)
    steps = columns["environment_steps"] if np.any(columns["environment_steps"]) else columns["step"]
    return _that_stand(steps[: len(values)][present], 100 * values[present])


def _that_stand(steps: Any, values: Any) -> tuple[Any, Any]:
    """Without what a resumed run did anew: steps after its checkpoint, which were reported before it ended."""
    stands = np.minimum.accumulate(steps[::-1])[::-1] >= steps
    return steps[stands], values[stands]


def _rolling(curve: tuple[Any, Any]) -> tuple[Any, Any]:
    """Mean over the last episodes; at the start over as many as there are."""
    steps, values = curve
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - _ROLLING_EPISODES, 0)
    return steps, (sums[ends] - sums[starts]) / (ends - starts)


class Film:
    """An MP4 that every player and browser shows, H.264 yuv420p, written while its frames come.

    In a ``with`` block, which gives the file its name when it ends without an error; no file without frames.

    Args:
        path: the file.
        fps: frames per second.

    Attributes:
        frames: how many came.
        written: whether there is a file when the block has ended; not where PyAV is not installed (said in one line).
    """

    def __init__(self, path: str | Path, fps: float = 10) -> None:
        self.path, self.frames, self.written = Path(path), 0, False
        self._fps, self._shape = fps, (0, 0, 3)
        self._open = contextlib.ExitStack()
        self._writer: Any = None

    def add(self, frame: Any) -> None:
        """Take the next frame.

        Args:
            frame: uint8 [H, W, 3], all of one size; an odd height or width grows by one repeated line.

        Raises:
            ValueError: it has another shape, size or dtype.
        """
        picture = np.asarray(frame)
        if not self.frames and picture.ndim == 3:
            self._shape = (*picture.shape[:2], 3)
        if picture.dtype != np.uint8 or picture.shape != self._shape:
            raise ValueError(
                f"{self.path}: frame {self.frames} is {picture.dtype} {picture.shape}; "
                "accepted: uint8 (height, width, 3), all alike"
            )
        if not self.frames:
            self._begin()
        self.frames += 1
        if self._writer is not None:
            odd = [(0, size % 2) for size in self._shape[:2]]  # yuv420p halves the colour planes
            self._writer.add(np.pad(picture, (*odd, (0, 0)), mode="edge"))

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)
        self.written = self._writer is not None

    def _begin(self) -> None:
        video = importlib.import_module("serl_fast.data.video")  # when asked for: it needs torch
        try:
            with contextlib.ExitStack() as opened:
                temporary = opened.enter_context(written_whole(self.path))
                self._writer = opened.enter_context(video.VideoWriter(temporary, self._fps, gop=12))
                self._open = opened.pop_all()
        except MissingExtraError as error:
            print(error)


def write_video(path: str | Path, frames: Iterable[Any], fps: float = 10) -> Path | None:
    """Write a :class:`Film` of ``frames``.

    Returns:
        The file's path; None where PyAV is not installed (said in one line).

    Raises:
        ValueError: no frames, or frames of another shape, size or dtype.
    """
    with Film(path, fps) as film:
        for frame in frames:
            film.add(frame)
    if not film.frames:
        raise ValueError(f"{path}: there are no frames")
    return film.path if film.written else None
