"""How fast this is here, beside eager mode, NumPy and other packages: a table and pictures from one command.

python -m benchmarks [--quick | --full] [--suite replay,update] [--device cpu] [--only WORDS] [--peers PYTHON]
python -m benchmarks report [DIR] [--readme]     draw report and pictures again, or write the README's table
python -m benchmarks compare A B                 two results side by side
python -m benchmarks repeat --times 3 ...        does every figure repeat within the spread it prints?

Results go to benchmarks/results/<device>_<date>/: results.json, report.md and pictures. docs/guides/benchmarks.md says
how to read them and how to add a case.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks import plots, report
from benchmarks.compare import compare, repetition
from benchmarks.limits import Yardsticks, measured
from benchmarks.machine import busy_cores, machine, quiet_or_caution
from benchmarks.measure import Outcome
from benchmarks.plugin import Plugin, Selection, display, duration, run_pass
from benchmarks.results import (
    FOLDER,
    SUITES,
    Results,
    device_name,
    known_durations,
    new_folder,
    newest,
    prepared,
    write_whole,
)
from benchmarks.suite import Run
from serl_fast.cli import main

ROUNDS = {"quick": (7, 0.03), "normal": (9, 0.2), "full": (15, 0.3)}
"""Rounds of every variant, and seconds of each, by scale."""
INTERRUPTED = 130  # exit status, as shells give it to what Ctrl-C ended
README = Path(__file__).parent.parent / "README.md"


def parser() -> argparse.ArgumentParser:
    """Flags of a run."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--suite", default="", help=f"of {','.join(SUITES)}; by default all that fit")
    found.add_argument("--device", default="auto", help="cpu, cuda, or both with a comma; auto: cuda where it is there")
    scale = found.add_mutually_exclusive_group()
    scale.add_argument("--quick", dest="scale", action="store_const", const="quick", help="the main cases, < 3 minutes")
    scale.add_argument("--full", dest="scale", action="store_const", const="full", help="every case and scaling plot")
    found.set_defaults(scale="normal")
    found.add_argument("--peers", help="Python interpreter with other packages (`make peers`); runs the suite peers")
    found.add_argument("--output", type=Path, help="folder of the results, by default a new one in benchmarks/results")
    found.add_argument("--only", default="", help="cases with this in their id or title")
    found.add_argument("--rounds", type=int, help="of every variant")
    found.add_argument("--seconds", type=float, help="of a round")
    found.add_argument("--passes", type=int, default=1, help="over the whole suite, everything built again in each")
    return found


def checked(argv: Sequence[str], of: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags of a run.

    Raises:
        ValueError: a number is out of range, or pytest-benchmark is missing.
    """
    flags = of.parse_args(argv)
    if importlib.util.find_spec("pytest_benchmark") is None:
        raise ValueError("the cases need pytest-benchmark, which is not installed (pip install pytest-benchmark)")
    for name, least in (("rounds", 2), ("passes", 1), ("times", 2)):
        given = getattr(flags, name, None)
        if given is not None and given < least:
            raise ValueError(f"--{name} is {given}; accepted: {least} and more")
    if flags.seconds is not None and not flags.seconds > 0:
        raise ValueError(f"--seconds is {flags.seconds:g}; accepted: more than 0")
    return flags


def devices(asked: str) -> list[str]:
    """Those to run on, of what ``--device`` says."""
    found = ["cuda" if torch.cuda.is_available() else "cpu"] if asked == "auto" else asked.split(",")
    for name in found:
        if name not in ("cpu", "cuda"):
            raise ValueError(f"device is {name!r}; accepted: cpu, cuda, cpu,cuda, auto")
        if name == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda', but torch.cuda.is_available() is false; --device cpu measures the CPU")
    return found


def selection(flags: argparse.Namespace) -> Selection:
    """Which cases run, of what the flags say."""
    suites = [name for name in flags.suite.split(",") if name]
    unknown = sorted(set(suites) - set(SUITES))
    if unknown:
        raise ValueError(f"suites {', '.join(unknown)} are not known; accepted: {','.join(SUITES)}")
    if "peers" in suites and not flags.peers:
        raise ValueError("the suite peers needs an interpreter with the other packages: --peers PYTHON")
    if not suites:
        suites = [name for name in SUITES if name != "peers" or flags.peers]
    return Selection(suites, flags.only)


def begun(flags: argparse.Namespace, device: str, command: str) -> Results:
    """Results of a run that has measured nothing yet."""
    rounds, seconds = ROUNDS[flags.scale]
    run = Run(device, flags.scale, flags.rounds or rounds, flags.seconds or seconds, interpreters(flags.peers))
    return Results(machine(device), asdict(run), command)


def measure(results: Results, chosen: Selection, passes: int = 1, folder: Path | None = None) -> None:
    """Run the cases and fill ``results``, which ``folder`` gets after every case."""
    run, start, busy = Run(**results.run), time.monotonic(), [busy_cores(0.5)]
    known = known_durations(FOLDER, device_name(results.machine), run.scale)
    try:
        results.limits = {each.name: each.as_json() for each in measured(run.device, quick=run.scale == "quick")}
        yardsticks = Yardsticks(run.device)
        results.yardsticks = yardsticks.times
        with display() as shown:
            for _ in range(passes):
                _one_pass(results, Plugin(run, chosen, known, shown, yardsticks), start, folder)
                known = {each.id: each.took for each in results.cases}
                if results.interrupted:
                    break
        yardsticks.take()
    except KeyboardInterrupt:
        results.interrupted = True
    if results.interrupted:
        print("interrupted; the report has what was measured so far")
    results.seconds = time.monotonic() - start
    results.machine |= quiet_or_caution([*busy, busy_cores(0.5)])
    if not results.cases and not results.failures and not results.interrupted:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()
        suites = ",".join(chosen.suites)
        raise ValueError(f"no case fits --suite {suites} --only {chosen.only!r} at the scale {run.scale}")


def _one_pass(results: Results, plugin: Plugin, start: float, folder: Path | None) -> None:
    earlier = results.failures

    def keep(outcome: Outcome) -> None:
        results.add_pass([outcome])
        results.failures = [*earlier, *plugin.failures]
        results.seconds = time.monotonic() - start
        if folder is not None:
            replace(results, interrupted=True).save(folder)  # if it is the last that this process does

    plugin.kept = keep
    run_pass(plugin)
    results.failures = [*earlier, *plugin.failures]
    results.interrupted = plugin.interrupted


def interpreters(pythons: str | None) -> str | None:
    """Full paths of the interpreters that ``--peers`` names."""
    given = pythons.split(os.pathsep) if pythons else []
    found = [shutil.which(python) for python in given]
    for python, path in zip(given, found, strict=True):
        if path is None:
            raise ValueError(f"--peers is {python!r}, which can not be run; give the path of a Python interpreter")
    return os.pathsep.join(filter(None, found)) or None


def write(results: Results, folder: Path) -> str:
    """Save, draw and report; what the terminal is to show."""
    results.save(folder)
    try:
        pictures, note = plots.draw(results, folder), ""
    except ImportError as error:
        pictures, note = [], f"\n{error}"
    page = report.report(results, pictures)
    write_whole(folder / "report.md", page)
    return f"{page}{note}\n{folder / 'report.md'}"


def run(argv: Sequence[str]) -> int:
    """Measure, write and print: 0 if no case failed, 130 after Ctrl-C."""
    flags = checked(argv, parser())
    chosen, failed = selection(flags), False
    for device in devices(flags.device):
        results = begun(flags, device, f"python -m benchmarks {shlex.join(argv)}".rstrip())
        several = flags.output and "," in flags.device
        folder = prepared(flags.output / device if several else flags.output or new_folder(results.machine))
        measure(results, chosen, flags.passes, folder)
        print(write(results, folder))
        print(f"{len(results.cases)} cases in {duration(results.seconds)}")
        failed |= bool(results.failures)
        if results.interrupted:
            return INTERRUPTED
    return int(failed)


def redraw(argv: Sequence[str]) -> int:
    """``report``: pictures and page from results.json alone; the README's table with ``--readme``."""
    parsed = argparse.ArgumentParser(prog="python -m benchmarks report", description=redraw.__doc__)
    parsed.add_argument("folder", type=Path, nargs="?", help="of the results; by default the newest")
    parsed.add_argument("--readme", action="store_true", help="write table and pictures into the README as well")
    parsed.add_argument("--page", type=Path, default=README, help="that stands for the README")
    flags = parsed.parse_args(argv)
    folder = flags.folder or newest()
    if folder is None:
        raise ValueError(f"there are no results in {FOLDER}; `python -m benchmarks` makes some")
    results = Results.load(folder)
    print(write(results, folder))
    if flags.readme:
        page = flags.page.resolve()
        inside = folder.resolve().is_relative_to(page.parent)
        where = str(folder.resolve().relative_to(page.parent)) if inside else str(folder)
        block = report.readme_block(results, where, sorted(folder.glob("*.svg")))
        page.write_text(report.replace_block(page.read_text(encoding="utf-8"), block), encoding="utf-8")
        print(page)
    return 0


def side_by_side(argv: Sequence[str]) -> int:
    """``compare``: results of different runs as one table."""
    parsed = argparse.ArgumentParser(prog="python -m benchmarks compare", description=side_by_side.__doc__)
    parsed.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="two or more")
    folders = parsed.parse_args(argv).folders
    if len(folders) < 2:
        raise ValueError("compare needs two or more folders of results")
    found = [Results.load(folder) for folder in folders]
    print(compare(found, [folder.name for folder in folders]))
    if len(found) > 2:
        print(f"\n{repetition(found)[0]}")
    return 0


def repeat(argv: Sequence[str]) -> int:
    """``repeat``: run the suite several times; 0 if every figure differs by less than the spread it prints."""
    parsed = parser()
    parsed.prog = "python -m benchmarks repeat"
    parsed.add_argument("--times", type=int, default=3, help="that all of it is run")
    flags = checked(argv, parsed)
    chosen, device, found = selection(flags), devices(flags.device)[0], []
    for index in range(flags.times):
        results = begun(flags, device, f"python -m benchmarks repeat {shlex.join(argv)}")
        folder = prepared(flags.output / str(index + 1)) if flags.output else None
        measure(results, chosen, flags.passes, folder)
        if folder is not None:
            write(results, folder)
        if results.interrupted:
            return INTERRUPTED
        found.append(results)
    text, repeated = repetition(found)
    print(text)
    return int(not repeated)


def regression(argv: Sequence[str]) -> int:
    """``regression``: this revision beside another; see benchmarks/regression.py."""
    return importlib.import_module("benchmarks.regression").run(argv)


COMMANDS = {"report": redraw, "compare": side_by_side, "repeat": repeat, "regression": regression}


def command(argv: Sequence[str]) -> int:
    """One of :data:`COMMANDS`, or a run."""
    try:
        if argv and argv[0] in COMMANDS:
            return COMMANDS[argv[0]](argv[1:])
        return run(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    main(lambda: command(sys.argv[1:]))
