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
import importlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import plots, report
from benchmarks.compare import compare, repetition
from benchmarks.limits import Yardsticks, measured
from benchmarks.machine import busy_cores, machine, quiet_or_caution
from benchmarks.plugin import Plugin, Selection, display, duration, run_pass
from benchmarks.results import FOLDER, SUITES, Results, device_name, known_durations, new_folder, newest
from benchmarks.suite import Run
from serl_fast.cli import main

ROUNDS = {"quick": (7, 0.03), "normal": (9, 0.2), "full": (15, 0.3)}
"""Rounds of every variant, and seconds of each, by scale."""
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


def measure(flags: argparse.Namespace, device: str, command: str, show: Callable[..., None] = print) -> Results:
    """All of the suite on one device."""
    chosen = selection(flags)
    rounds, seconds = ROUNDS[flags.scale]
    run = Run(device, flags.scale, flags.rounds or rounds, flags.seconds or seconds, interpreters(flags.peers))
    start, busy = time.monotonic(), [busy_cores(0.5)]
    results = Results(machine(device), asdict(run), command)
    results.limits = {each.name: each.as_json() for each in measured(device, quick=flags.scale == "quick")}
    yardsticks = Yardsticks(device)
    known = known_durations(FOLDER, device_name(results.machine), flags.scale)
    with display() as shown:
        for _ in range(flags.passes):
            plugin = Plugin(run, chosen, known, shown, yardsticks)
            run_pass(plugin)
            results.add_pass(plugin.outcomes.values())
            results.failures += plugin.failures
            known = {each.id: each.took for each in results.cases}
            if plugin.interrupted:
                show("interrupted; the report has what was measured so far")
                break
    yardsticks.take()
    results.yardsticks = yardsticks.times
    results.seconds = time.monotonic() - start
    results.machine |= quiet_or_caution([*busy, busy_cores(0.5)])
    return results


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
    (folder / "report.md").write_text(page, encoding="utf-8")
    return f"{page}{note}\n{folder / 'report.md'}"


def run(argv: Sequence[str]) -> int:
    """Measure, write and print: 0 if no case failed."""
    flags = parser().parse_args(argv)
    failed = False
    for device in devices(flags.device):
        command = f"python -m benchmarks {' '.join(argv)}".rstrip()
        results = measure(flags, device, command)
        if not results.cases and not results.failures:
            raise ValueError(f"no case fits --suite {flags.suite or 'all'} --only {flags.only!r} at this scale")
        several = flags.output and "," in flags.device
        folder = flags.output / device if several else flags.output or new_folder(results.machine)
        print(write(results, folder))
        print(f"{len(results.cases)} cases in {duration(results.seconds)}")
        failed |= bool(results.failures)
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
    flags = parsed.parse_args(argv)
    if flags.times < 2:
        raise ValueError(f"--times is {flags.times}; accepted: 2 and more")
    device = devices(flags.device)[0]
    found = []
    for index in range(flags.times):
        results = measure(flags, device, f"python -m benchmarks repeat {' '.join(argv)}")
        if flags.output:
            write(results, flags.output / str(index + 1))
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
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    return run(argv)


if __name__ == "__main__":
    main(lambda: command(sys.argv[1:]))
