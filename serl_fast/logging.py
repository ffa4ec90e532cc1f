"""What a run leaves behind: metrics as CSV and TensorBoard events, and its settings; and its progress, shown.

Metrics are a flat dict ``"<objective>/<name>": float``. Rich, TensorBoard, Matplotlib and PyAV are
optional: without one of them a run goes on and says in one line which extra brings it.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np

from serl_fast import __version__
from serl_fast.errors import MissingExtraError, require
from serl_fast.figures import EPISODE, FIRST_COLUMNS, complete_rows, plot_progress, read_metrics, write_video
from serl_fast.files import written_whole

__all__ = [
    "RunLogger",
    "metric_aliases",
    "plot_progress",
    "progress",
    "read_metrics",
    "tracked",
    "write_config",
    "write_video",
]

Item = TypeVar("Item")

ALIASES = {
    "critic_loss": ("critic/loss",),
    "grasp_critic_loss": ("grasp_critic/loss",),
    "actor_loss": ("actor/loss", "bc/loss"),
    "alpha_loss": ("actor/temperature_loss", "temperature/loss"),
    "alpha": ("actor/temperature",),
}


def metric_aliases(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics, with the names of SERL's manuals (``critic_loss``, ``alpha``, ...) beside the house's own.

    Names of the environment (``environment/episode/r``, ``l``, ``intervention_count``,
    ``intervention_steps``) are the manuals' already.
    """
    named = dict(metrics)
    for alias, names in ALIASES.items():
        for name in names:
            if name in metrics:
                named.setdefault(alias, metrics[name])
    return named


def progress(parts: Iterable[int], total: int, description: str) -> None:
    """Run through ``parts``, each worth so many of ``total``: a bar on a terminal with rich, else a line now and then.

    Args:
        parts: does the work while it is iterated over.
        total: what they add up to.
        description: what is being done.
    """
    for _ in tracked(parts, total, description, int):
        pass


def tracked(items: Iterable[Item], total: int | None, description: str, worth: Callable[[Item], int]) -> Iterator[Item]:
    """The items, one after the other, and how far they are: as :func:`progress` shows it.

    Args:
        items: any.
        total: what they are worth together; None where nobody knows.
        description: what is being done.
        worth: of an item.
    """
    bar: Any = None
    if sys.stdout.isatty():
        try:
            bar = require("rich.progress", "logging").Progress()
        except MissingExtraError as error:
            print(error)
    done, said = 0, time.monotonic()
    with bar or contextlib.nullcontext():
        task = bar and bar.add_task(description, total=total)
        for item in items:
            part = worth(item)
            yield item
            del item  # the next one is made without this one in memory
            done += part
            if bar:
                bar.update(task, completed=done)
            elif time.monotonic() - said > 10.0 or done == total:
                said = time.monotonic()
                print(f"{description}: {done}" + ("" if total is None else f" of {total}"), flush=True)


class RunLogger:
    """Writes metrics of one run and shows its progress; may be called from several threads.

    Args:
        run_dir: receives ``metrics.csv`` and ``tensorboard/``; a file that is there is continued.
        tensorboard: write TensorBoard events too, where the package is installed.
        stream: where progress is shown; a terminal gets a live table, anything else lines.
        seconds_between_lines: lines of losses come no faster than this.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        tensorboard: bool = True,
        stream: TextIO | None = None,
        seconds_between_lines: float = 1.0,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._stream = stream
        self._table = _MetricsTable(self.run_dir / "metrics.csv")
        self._started = time.monotonic() - self._table.last_time
        self._events = self._open_events() if tensorboard else None
        self._seconds_between_lines, self._last_line = seconds_between_lines, -math.inf
        self._live = False
        self._status: dict[str, Any] = {}
        self._newest: dict[str, float] = {}

    def log(self, metrics: Mapping[str, float], *, step: int, environment_steps: int = 0) -> None:
        """Write one row of metrics.

        Args:
            metrics: flat, ``"<objective>/<name>"`` to a number; aliases are added.
            step: gradient steps so far, the abscissa of TensorBoard.
            environment_steps: environment steps so far.
        """
        values = {name: float(value) for name, value in metric_aliases(metrics).items()}
        with self._lock:
            row = {"step": step, "environment_steps": environment_steps, "time": round(self._elapsed(), 3)}
            self._table.append({**row, **values})
            if self._events is not None:
                for name, value in values.items():
                    self._events.add_scalar(name, value, step)
            self._newest.update(values)
            self._print_line(values, step, environment_steps)

    def progress(self, **status: Any) -> None:
        """Say where the run stands; cheap enough for every gradient step.

        Args:
            status: any of ``environment_steps``, ``updates``, ``max_updates``, ``utd_ratio``,
                ``success_rate`` (of the newest evaluation, 0 to 1), ``training_success_rate``, ``episodes``,
                ``interventions``.
        """
        self._status = status  # one assignment: the display's thread reads the old dict or the new one

    @contextlib.contextmanager
    def display(self) -> Iterator[None]:
        """Show a live table while the block runs, if the stream is a terminal and rich is installed."""
        stream = self._stream or sys.stdout
        if not stream.isatty():
            yield
            return
        try:
            console_module, live_module = require("rich.console", "logging"), require("rich.live", "logging")
        except MissingExtraError as error:
            self._say(str(error))
            yield
            return
        console = console_module.Console(file=stream)
        with live_module.Live(get_renderable=self.progress_table, console=console, refresh_per_second=4):
            self._live = True
            try:
                yield
            finally:
                self._live = False

    def progress_table(self) -> Any:
        """The live table, a ``rich.table.Table`` of names and values."""
        table = require("rich.table", "logging").Table(show_header=False, title=str(self.run_dir))
        table.add_column(justify="right", style="dim")
        table.add_column(justify="left", min_width=24)
        for name, text in self.progress_entries().items():
            table.add_row(name, text)
        return table

    def progress_entries(self) -> dict[str, str]:
        """What the live table shows, as text."""
        with self._lock:
            status, newest = self._status, dict(self._newest)
        updates, limit, elapsed = status.get("updates", 0), status.get("max_updates"), self._elapsed()
        entries = {
            "environment steps": f"{status.get('environment_steps', 0):,}",
            "updates": f"{updates:,}" + (f" of {limit:,} ({updates / limit:.0%})" if limit else ""),
            "updates per second": _text(newest.get("learner/updates_per_second"), ".1f"),
            "UTD ratio": _text(status.get("utd_ratio"), ".2f"),
            "success rate, evaluation": _text(status.get("success_rate"), ".0%"),
            "success rate, training": _text(status.get("training_success_rate"), ".0%"),
            "episodes": f"{status.get('episodes', 0):,}",
            "interventions": f"{status.get('interventions', 0):,}",
            **{name: f"{newest[name]:.4g}" for name in ALIASES if name in newest},
            "elapsed": _clock(elapsed),
        }
        speed = newest.get("learner/updates_per_second", 0.0)
        if limit and speed > 0:
            entries["elapsed"] += f", about {_clock((limit - updates) / speed)} to the step limit"
        return entries

    def write_config(self, config: Mapping[str, Any]) -> Path:
        """:func:`write_config` into this run's folder."""
        return write_config(self.run_dir, config)

    def close(self) -> None:
        """Flush and close the files; logging afterwards opens the CSV file again."""
        with self._lock:
            self._table.close()
            if self._events is not None:
                self._events.close()
                self._events = None

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _open_events(self) -> Any:
        try:
            return require("torch.utils.tensorboard", "logging").SummaryWriter(str(self.run_dir / "tensorboard"))
        except MissingExtraError as error:
            self._say(str(error))
            return None

    def _print_line(self, values: Mapping[str, float], step: int, environment_steps: int) -> None:
        """Outside the live table: a line for each evaluation and, not too often, for losses."""
        shown = {name: value for name, value in values.items() if not name.startswith(EPISODE)}
        if self._live or not shown:
            return
        evaluated = {name: v for name, v in shown.items() if name.endswith(("success_rate", "evaluation/return"))}
        now = time.monotonic()
        if not evaluated:
            if now - self._last_line < self._seconds_between_lines:
                return
            self._last_line = now
        losses = {name: value for name, value in shown.items() if name in ALIASES}
        parts = [f"{name} {value:.4g}" for name, value in (evaluated or losses or shown).items()]
        status = {"updates/s": shown.get("learner/updates_per_second"), "UTD": self._status.get("utd_ratio")}
        parts += [f"{name} {value:.4g}" for name, value in status.items() if value is not None]
        steps = f"step {step}" + (f", environment steps {environment_steps}" if environment_steps else "")
        self._say(f"{steps}: " + ", ".join(parts))

    def _say(self, text: str) -> None:
        print(text, file=self._stream or sys.stdout, flush=True)


class _MetricsTable:
    """A CSV file with one column per metric; a new metric rewrites the file with one column more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = list(FIRST_COLUMNS)
        self.last_time = 0.0
        self._file: TextIO | None = None
        if path.exists():
            rows = read_metrics(path)
            self.columns = list(rows)
            times = rows.get("time", np.zeros(0))
            self.last_time = float(times[-1]) if len(times) and math.isfinite(times[-1]) else 0.0
            self._rewrite(())  # a crash may have left half a line

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is in the file when this returns."""
        added = [name for name in row if name not in self.columns]
        if added or not self.path.exists():
            self._rewrite(added)
        if self._file is None:
            self._file = open(self.path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        csv.writer(self._file).writerow([row.get(name, "") for name in self.columns])
        self._file.flush()

    def close(self) -> None:
        """Close the file; the next row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rewrite(self, added: Sequence[str]) -> None:
        self.close()
        rows: list[list[str]] = []
        if self.path.exists():
            rows = complete_rows(self.path)[1:]
        width = len(self.columns)
        self.columns += added
        with written_whole(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(row + [""] * len(added) for row in rows if len(row) == width)


def write_config(run_dir: str | Path, config: Mapping[str, Any]) -> Path:
    """Write ``config.json``: the settings, versions, platform, command line and git commit of a run.

    Args:
        run_dir: the run's folder.
        config: settings; paths, tuples and dataclasses become text, lists and dicts.

    Returns:
        The file's path.
    """
    content = {
        **config,
        "command": sys.argv,
        "versions": _versions(),
        "platform": platform.platform(),
        "git": _git_state(Path(__file__).parent),
    }
    path = Path(run_dir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=_plain) + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    """JSON's form of what JSON does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "serl_fast": __version__}
    for package in ("torch", "numpy", "gymnasium", "mujoco", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that ``folder`` is at and whether files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
