"""``train_hybrid`` in a process of its own, paused and measured through the metrics that it writes."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from serl_fast.figures import read_metrics

ROOT = Path(__file__).parent.parent
ENVIRONMENT = "serl_robots/PickCube-v0"
PATIENCE = 300.0  # seconds in which something has to happen
LONGEST_RUN = 3600.0  # seconds
FIRST_UPDATES = 100  # that a process takes before it is measured; compiling is over by then
Flags = Mapping[str, "str | tuple[str, ...]"]


def needed() -> str:
    """What is missing to train in the simulation; empty if nothing is."""
    if not hasattr(signal, "SIGSTOP"):
        return "this system can not pause a process (SIGSTOP)"
    names = ("mujoco", "gymnasium", "tyro", "serl_robots")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed; the extra 'sim' brings them" if missing else ""


def make_train(device: str, episodes: int) -> dict[str, str | tuple[str, ...]]:
    """The flags of ``make train``, without what comes after training.

    Args:
        device: "cpu" or "cuda".
        episodes: demonstrations to record for it.
    """
    return {
        "env": ENVIRONMENT, "demo_paths": str(demonstrations(episodes)), "operator": "scripted", "device": device,
        "training_starts": "300", "random_steps": "0", "max_steps": "60000", "min_utd_ratio": "1",
        "eval_interval": "500", "stop_success_rate": "0.95", "final_eval_episodes": "0", "video_episodes": "0",
        "save_interval": "0", "save_replay": "false",
    }  # fmt: skip


@functools.cache
def demonstrations(episodes: int) -> Path:
    """A file with scripted demonstrations, removed when this process ends."""
    path = Path(_folder().name) / f"{episodes}.pkl"
    command = ["serl_fast.record_demos", "--env", ENVIRONMENT, "--num_demos", str(episodes), "--output", str(path)]
    finished(command, PATIENCE)
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bench_loop_")


def finished(command: Sequence[str], limit: float) -> float:
    """Run a module and its arguments to the end; the seconds it took.

    Raises:
        RuntimeError: it failed, or took longer than ``limit`` seconds.
    """
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = _start(command, output)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{command[0]} did not finish within {limit:.0f} s") from None
        finally:
            process.kill()
            process.wait()
        if status:
            output.seek(0)
            raise RuntimeError(f"{command[0]} failed: {last_line(output.read())}")
    return time.monotonic() - begin


def last_line(text: str) -> str:
    """Of what a command said."""
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]


def _start(command: Sequence[str], output: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True
    )


def _train_hybrid(flags: Flags) -> list[str]:
    given = ([f"--{name}", *([value] if isinstance(value, str) else value)] for name, value in flags.items())
    return ["serl_fast.train_hybrid", *(part for parts in given for part in parts)]


class Row(NamedTuple):
    """Where a run stood when it logged."""

    seconds: float
    updates: float
    environment_steps: float


class Training:
    """A run that goes on until it is closed.

    Args:
        folder: receives what the run writes.
        flags: of ``train_hybrid``.
        shortest: seconds of a measurement, at least.
    """

    def __init__(self, folder: Path, flags: Flags, shortest: float) -> None:
        self._folder, self._shortest = folder / "run", shortest
        self._environment_steps: list[float] = []
        folder.mkdir(parents=True)
        self._output = (folder / "output.txt").open("w+")
        self._began = time.monotonic()
        self._process = _start(_train_hybrid({**flags, "save_dir": str(self._folder)}), self._output)

    def start_up(self) -> float:
        """Wait for the first updates, compilation included; seconds since the start. The run is paused then."""
        last = self._row_after(0)
        while last.updates < FIRST_UPDATES:
            last = self._row_after(len(self._rows()))
        self._process.send_signal(signal.SIGSTOP)
        return time.monotonic() - self._began

    def seconds_per_call(self, seconds: float) -> float:
        """Seconds per update, between two rows of the log so far apart, at least; 0: between neighbours.

        The run goes on for it. The first row after a pause is where counting begins: its own interval has the pause.
        """
        written = len(self._rows())
        self._process.send_signal(signal.SIGCONT)
        try:
            begin = self._row_after(written)
            time.sleep(max(seconds, self._shortest) if seconds else 0.0)
            end = self._row_after(len(self._rows()))
        finally:
            self._process.send_signal(signal.SIGSTOP)
        took = end.seconds - begin.seconds
        self._environment_steps.append((end.environment_steps - begin.environment_steps) / took)
        return took / (end.updates - begin.updates)

    def note(self) -> str:
        """How fast the environment went."""
        if not self._environment_steps:
            return ""
        return f"{statistics.median(self._environment_steps):.3g} environment steps/s"

    def close(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._output.close()

    def _row_after(self, written: int) -> Row:
        """The newest row as soon as there are more than ``written``.

        Raises:
            RuntimeError: the process ended, or writes nothing.
        """
        limit = time.monotonic() + PATIENCE
        while len(rows := self._rows()) <= written:
            if self._process.poll() is not None or time.monotonic() > limit:
                self._output.seek(0)
                state = "writes nothing" if self._process.returncode is None else "ended"
                raise RuntimeError(f"train_hybrid {state}: {last_line(self._output.read())}")
            time.sleep(0.05)
        return rows[-1]

    def _rows(self) -> list[Row]:
        """The learner's, so far."""
        names = ("time", "step", "environment_steps", "learner/updates_per_second")
        path = self._folder / "metrics.csv"
        columns = read_metrics(path) if path.exists() else {}
        if any(name not in columns for name in names):
            return []
        rows = zip(*(columns[name] for name in names), strict=True)
        return [Row(*row[:3]) for row in rows if row[3] == row[3]]  # the actor's rows have NaN there


def run_to_success(flags: Flags) -> tuple[float, bool]:
    """Seconds of a whole run, and whether an evaluation ended it before its last update."""
    with tempfile.TemporaryDirectory(prefix="bench_loop_") as folder:
        run = Path(folder) / "run"
        took = finished(_train_hybrid({**flags, "save_dir": str(run)}), LONGEST_RUN)
        updates = read_metrics(run / "metrics.csv")["step"].max()
    return took, bool(updates < float(str(flags["max_steps"])))
