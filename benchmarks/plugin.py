"""What ``python -m benchmarks`` adds to pytest: which cases run, progress with the time left, and the outcomes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from benchmarks.limits import Yardsticks
from benchmarks.measure import Outcome
from benchmarks.suite import Instance, Run

NAME = "serl_fast_benchmarks"
FOLDER = Path(__file__).parent
BUILDING = 2.0  # seconds that building a case takes, until one has been seen
SECONDS_BETWEEN_LINES = 10.0


class Display(Protocol):
    """Where progress is shown."""

    def show(self, done: int, total: int, what: str, left: float | None) -> None: ...
    def close(self) -> None: ...


@dataclass
class Selection:
    """Which instances run.

    Attributes:
        suites: empty: all.
        only: part of the id or title; empty: any.
    """

    suites: Sequence[str] = ()
    only: str = ""

    def __contains__(self, instance: Instance) -> bool:
        said = f"{instance.id} {instance.title}".lower()
        return (not self.suites or instance.suite in self.suites) and self.only.lower() in said


@dataclass(eq=False)
class Plugin:
    """Of one pass over the suite.

    Attributes:
        run: what this run is.
        selection: which instances run.
        known: seconds that an instance took in an earlier run, by id.
        display: of progress.
        yardsticks: taken before every instance; None: not.
        outcomes: of the instances that are done, by id.
        failures: of pytest, with their tracebacks.
        interrupted: by Ctrl-C.
        kept: is called with every outcome that is done.
    """

    run: Run
    selection: Selection = field(default_factory=Selection)
    known: Mapping[str, float] = field(default_factory=dict)
    display: Display | None = None
    yardsticks: Yardsticks | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False
    kept: Callable[[Outcome], None] = lambda outcome: None
    _waiting: dict[str, Instance] = field(default_factory=dict)
    _total: int = 0
    _spent: dict[str, float] = field(default_factory=dict)

    def wants(self, instance: Instance | None) -> bool:
        """Whether an item of pytest runs; ordinary tests do not."""
        return instance is not None and instance in self.selection and self.run.includes(instance.scale)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        instances = [item.callspec.params["instance"] for item in session.items]  # type: ignore[attr-defined]
        self._waiting = {instance.id: instance for instance in instances}
        self._total = len(self._waiting)

    def pytest_runtest_setup(self, item: Any) -> None:
        instance = item.callspec.params["instance"]
        if instance.id not in self._waiting:
            return
        if self.display is not None:
            done = self._total - len(self._waiting)
            self.display.show(done, self._total, f"{instance.suite}: {instance.title}", self.left())
        del self._waiting[instance.id]
        if self.yardsticks is not None:
            self.yardsticks.take()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failures.append(f"{report.nodeid}\n{report.longreprtext}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(f"{report.nodeid}\n{report.longreprtext}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        self.interrupted = True

    def keep(self, outcome: Outcome) -> None:
        self.outcomes[outcome.id] = outcome
        self._spent[outcome.id] = outcome.took
        self.kept(outcome)

    def left(self) -> float | None:
        """Seconds that what waits will take: as in an earlier run, else in proportion to what was planned."""
        if not self._waiting:
            return 0.0
        unknown = [each for each in self._waiting.values() if each.id not in self.known]
        if unknown and not self._spent:
            return None
        mean = sum(self._spent.values()) / len(self._spent) if self._spent else 0.0
        return sum(self.known.get(each, mean) for each in self._waiting)


def run_pass(plugin: Plugin, folder: Path = FOLDER) -> None:
    """One pass of pytest over the cases of a folder, in this process; what it prints is kept if it could not run."""
    files = sorted(str(path) for path in folder.glob("bench_*.py"))
    arguments = [*files, "--benchmark-enable", "-p", "no:timeout", "-p", "no:cacheprovider", "-p", "no:xdist"]
    arguments += ["--continue-on-collection-errors"]
    arguments += ["--rootdir", str(FOLDER.parent), "-c", str(FOLDER.parent / "pyproject.toml"), "--tb=short"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            status = int(pytest.main(arguments, plugins=[_Named(plugin)]))
        except Exception:
            if plugin.interrupted:  # pytest fails to say where Ctrl-C came, if that has no line in a source
                return
            raise
    if status in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
        plugin.failures.append(said.getvalue())


class _Named:
    """Registers the plugin under the name that benchmarks/conftest.py asks for."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.register(self._plugin, NAME)


@contextlib.contextmanager
def display() -> Iterator[Display]:
    """A bar on a terminal with rich, else a line now and then; on a copy of standard error that pytest can not take."""
    stream = os.fdopen(os.dup(sys.stderr.fileno()), "w") if _has_descriptor(sys.stderr) else sys.stderr
    shown: Display = Lines(stream)
    if stream.isatty():
        with contextlib.suppress(ImportError):
            shown = Bar(stream)
    try:
        yield shown
    finally:
        shown.close()
        if stream is not sys.stderr:
            stream.close()


class Lines:
    """A line for every few cases."""

    def __init__(self, stream: Any, every: float = SECONDS_BETWEEN_LINES) -> None:
        self._stream, self._every, self._said = stream, every, -float("inf")

    def show(self, done: int, total: int, what: str, left: float | None) -> None:
        now = time.monotonic()
        if now - self._said >= self._every:
            self._said = now
            print(f"{done} of {total}, {duration(left)} left: {what}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class Bar:
    """A bar of rich."""

    def __init__(self, stream: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            MofNCompleteColumn(), BarColumn(20), TimeElapsedColumn(), TextColumn("{task.fields[left]} left"),
            TextColumn("{task.description}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=Console(file=stream), redirect_stdout=False, redirect_stderr=False)
        self._task = self._progress.add_task("", total=None, left="?")
        self._progress.start()

    def show(self, done: int, total: int, what: str, left: float | None) -> None:
        self._progress.update(self._task, completed=done, total=total, description=what, left=duration(left))

    def close(self) -> None:
        self._progress.stop()


def duration(seconds: float | None) -> str:
    """``"1 min 20 s"``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True
