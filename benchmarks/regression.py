"""This tree beside another revision of it: a loss of speed beyond the noise fails.

make bench-compare REF=main        or        python -m benchmarks regression --ref main [--suite replay,update]

Both are built as wheels and installed into an environment of their own under build/compare, which sees the packages of
this environment, so that nothing is downloaded. A child for each revision builds this tree's cases and measures the
variants that are the project's own, in turns. What seems lost is measured again by fresh children, and counts if it is
lost again.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.children import Child
from benchmarks.interleaved import turns
from benchmarks.machine import commit
from benchmarks.plugin import display
from benchmarks.report import table, times
from benchmarks.spread import FASTER, SLOWER, Figure, Ratio, speed_up
from benchmarks.suite import REGISTRY, Instance, Run

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "compare"
LOSS = 0.10
TWINS = frozenset({"numpy", "reference"})  # what the project's own variants are measured beside
BUILD_LIMIT, ANSWER_LIMIT = 600.0, 120.0  # seconds


@dataclass(frozen=True)
class Side:
    """A revision as it is measured.

    Attributes:
        name: "this" or the revision that was asked for.
        revision: its commit.
        python: of the environment it is installed in.
        package: where that has it; a child that imports another serl_fast is no measurement.
    """

    name: str
    revision: str
    python: Path
    package: Path


@dataclass(frozen=True)
class Row:
    """A variant on both sides.

    Attributes:
        gain: how many times faster this tree is; None where ``why`` says that one of them could not be measured.
        first, second: seconds per call of the reference and of this tree.
        why: the note of the row.
        broken: whether this tree lacks, or fails at, what the reference can do.
    """

    case: str
    variant: str
    gain: Ratio | None = None
    first: float = 0.0
    second: float = 0.0
    why: str = ""
    broken: bool = False

    @property
    def lost(self) -> bool:
        """Slower by more than :data:`LOSS` in the median, and slower at all in 95 of 100 such measurements."""
        return self.gain is not None and 1 / self.gain.median > 1 + LOSS and self.gain.verdict == SLOWER


# --- two revisions, installed --------------------------------------------------------------------------------------


def reference(ref: str) -> Side:
    """Another revision, checked out and installed; what an earlier call built is used again."""
    revision = _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if revision is None:
        raise ValueError(f"{ref!r} is no revision of {ROOT}; accepted: a branch, a tag or a commit, for example main")
    source = FOLDER / revision[:12]
    _git("worktree", "prune")
    if not source.exists() and _git("worktree", "add", "--detach", str(source), revision) is None:
        raise ValueError(f"git could not check {ref!r} out into {source}; `git worktree list` says what is there")
    return installed(ref, source, FOLDER / f"{revision[:12]}-env", revision[:12], again=False)


def this() -> Side:
    """The tree as it is, with changes that are not committed."""
    return installed("this", ROOT, FOLDER / "this-env", commit(ROOT), again=True)


def installed(name: str, source: Path, environment: Path, revision: str, again: bool) -> Side:
    """Build ``source`` and install it into ``environment``.

    The environment has nothing of its own. A ``.pth`` file shows it the packages of this one, after its own. The
    ``.pth`` files there are not read: the finder of an editable installation would put this tree before any other.
    """
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    ready = environment / "ready"
    if not ready.exists():
        shutil.rmtree(environment, ignore_errors=True)
        _do([sys.executable, "-m", "venv", "--without-pip", str(environment)], "make an environment")
    paths = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("platlib", "venv" if "venv" in sysconfig.get_scheme_names() else None, paths))
    seen = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(source / "robots")]
    (packages / "seen.pth").write_text("\n".join(dict.fromkeys(seen)) + "\n")
    if again or not ready.exists():
        shutil.rmtree(packages / "serl_fast", ignore_errors=True)
        built = FOLDER / f"{environment.name}-build"
        command = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
        ]
        command += ["--no-build-isolation", "--force-reinstall", "--disable-pip-version-check"]
        _do([*command, f"--config-settings=build-dir={built}", str(source)], f"build {name}")
        ready.touch()
    return Side(name, revision, python, packages / "serl_fast")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _do(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise ValueError(f"could not {what} ({' '.join(command)}):\n{done.stdout[-3000:]}")


def harness() -> Path:
    """A folder with this tree's benchmarks and no serl_fast: children run there, where nothing shadows their own."""
    folder = FOLDER / "harness"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=ignored)
    return folder


def child(side: Side, run: Run, folder: Path) -> Child:
    """A worker of one side, which has said where its serl_fast comes from.

    Raises:
        ValueError: it imports another one, or does not start.
    """
    worker = (side.name, "benchmarks.regression_worker", [run.device, run.scale], str(side.python))
    started = Child(*worker, {"PYTHONPATH": ""}, ANSWER_LIMIT, folder)
    started.send("where")
    said = started.answer(BUILD_LIMIT)
    if "missing" in said or Path(said["package"]).resolve() != side.package.resolve():
        started.close()
        raise ValueError(f"the child of {side.name} was to import {side.package}; it answered {said}")
    return started


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(pair: Sequence[Any], instance: Instance, run: Run) -> list[Row]:
    """The project's own variants of a case by both children, the reference's first, in turns."""
    for each in pair:
        each.send("build", module=instance.builder.__module__, case=instance.id)
    built = [each.answer(BUILD_LIMIT) for each in pair]
    try:
        return _rows(pair, built, instance, run)
    finally:
        for each in pair:
            each.ask("free")


def _rows(pair: Sequence[Any], built: list[dict[str, Any]], instance: Instance, run: Run) -> list[Row]:
    if any("missing" in answer for answer in built):
        return [_lacking(instance.id, "all", pair, [answer.get("missing") for answer in built])]
    rows = []
    for variant in own_variants(instance):
        lacks = [answer["without"].get(variant) for answer in built]
        lacking = any(why is not None for why in lacks)
        rows.append(_lacking(instance.id, variant, pair, lacks) if lacking else _row(pair, instance.id, variant, run))
    return rows


def _lacking(case: str, variant: str, pair: Sequence[Any], lacks: Sequence[str | None]) -> Row:
    """A row without times, of what each of the pair lacks, the reference first."""
    why = "; ".join(f"{each.name}: {lack}" for each, lack in zip(pair, lacks, strict=True) if lack is not None)
    return Row(case, variant, why=why, broken=lacks[0] is None)


def _row(pair: Sequence[Any], case: str, variant: str, run: Run) -> Row:
    found: list[list[float]] = [[] for _ in pair]
    for place in turns(range(len(pair)), run.rounds):
        answer = pair[place].ask("time", variant=variant, seconds=run.seconds)
        if "missing" in answer:
            return _lacking(case, variant, pair, [answer["missing"] if place == index else None for index in range(2)])
        found[place].append(answer["seconds"])
    first, second = found
    return Row(case, variant, speed_up([second], [first]), statistics.median(first), statistics.median(second))


def own_variants(instance: Instance) -> list[str]:
    """Those that are not a twin in NumPy or a reference."""
    return [name for name in instance.variants if name not in TWINS]


def chosen(suites: Sequence[str], only: str, run: Run) -> list[Instance]:
    """The cases to measure."""
    for path in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        importlib.import_module(f"benchmarks.{path.stem}")
    return [
        each
        for each in REGISTRY.values()
        if each.suite in suites and run.includes(each.scale) and only.lower() in f"{each.id} {each.title}".lower()
    ]


def compared(sides: tuple[Side, Side], instances: Sequence[Instance], run: Run, shown: Any) -> list[Row]:
    """Every case once, and what seems lost again by fresh children."""
    folder = harness()
    rows: dict[str, list[Row]] = {}
    for again in (False, True):
        waiting = [each for each in instances if not again or any(row.lost for row in rows[each.id])]
        if not waiting:
            break
        pair: list[Any] = [None, None]
        try:
            for index, instance in enumerate(waiting):
                shown.show(index, len(waiting), ("again: " if again else "") + instance.title, None)
                try:
                    renew(pair, sides, run, folder)
                    found = measure(pair, instance, run)
                except ValueError as error:  # a child that does not start
                    if not again:
                        raise
                    found = [Row(instance.id, "all", why=str(error))]
                rows[instance.id] = repeated(rows[instance.id], found) if again else found
        finally:
            for each in filter(None, pair):
                each.close()
    return [row for instance in instances for row in rows[instance.id]]


def renew(pair: list[Any], sides: tuple[Side, Side], run: Run, folder: Path) -> None:
    """Start the children that are not there or answer no more."""
    for place, each in enumerate(pair):
        if each is None or each.broken:
            pair[place] = None
            if each is not None:
                each.close()
            pair[place] = child(sides[place], run, folder)


def repeated(first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    """The rows of a case after what seemed lost was measured again: the better of both, or the first and a note."""
    again = {row.variant: row for row in second}
    found = []
    for row in first:
        other = again.get(row.variant) or again.get("all")
        if row.gain is None or not row.lost:
            found.append(row)
        elif other is None or other.gain is None:
            found.append(replace(row, why=f"could not be repeated{f': {other.why}' if other else ''}"))
        else:
            found.append(other if other.gain.median > row.gain.median else row)
    return found


def report(rows: Sequence[Row], ref: Side, mine: Side) -> str:
    """A line for every variant."""
    lines = [("case", "variant", ref.name, "this", "this is", "")]
    for row in rows:
        if row.gain is None:
            lines.append(
                (row.case, row.variant, "", "", "", f"{'**broken**' * row.broken or 'not compared'}: {row.why}")
            )
            continue
        interval = f"[{row.gain.lower:.3g}, {row.gain.upper:.3g}]"
        clear = row.gain.verdict in (FASTER, SLOWER)
        said = f"{row.gain.median:.3g} x as fast {interval}" if clear else f"no difference {interval}"
        both = [times(Figure(each, each, each)).partition(" [")[0] for each in (row.first, row.second)]
        notes = [f"**lost more than {LOSS:.0%}**"] * row.lost + [row.why] * bool(row.why)
        lines.append((row.case, row.variant, *both, said, ", ".join(notes)))
    return f"{ref.name} is {ref.revision}, this is {mine.revision}.\n\n{table(lines)}"


def run(argv: Sequence[str]) -> int:
    """Build, measure, print: 1 where something is lost or broken, or nothing was compared at all, 0 otherwise."""
    parsed = argparse.ArgumentParser(
        prog="python -m benchmarks regression",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsed.add_argument("--ref", default="main", help="revision to compare with")
    parsed.add_argument("--suite", default="replay,update", help="suites, with commas")
    parsed.add_argument("--only", default="", help="cases with this in their id or title")
    parsed.add_argument("--scale", default="quick", choices=("quick", "normal", "full"))
    parsed.add_argument("--device", default="cpu")
    parsed.add_argument("--rounds", type=int, default=15, help="of every variant on each side, at least 6")
    parsed.add_argument("--seconds", type=float, default=0.05, help="of a round")
    flags = parsed.parse_args(argv)
    if flags.rounds < 6:
        raise ValueError(
            f"--rounds is {flags.rounds}; accepted: 6 and more, fewer show no difference in 95 of 100 cases"
        )
    if not flags.seconds > 0:
        raise ValueError(f"--seconds is {flags.seconds:g}; accepted: more than 0")
    asked = Run(flags.device, flags.scale, flags.rounds, flags.seconds)
    instances = chosen(flags.suite.split(","), flags.only, asked)
    if not instances:
        raise ValueError(f"no case fits --suite {flags.suite} --only {flags.only!r} at the scale {flags.scale}")
    sides = reference(flags.ref), this()
    with display() as shown:
        rows = compared(sides, instances, asked, shown)
    print(report(rows, *sides))
    text, failed = verdict(rows)
    print(f"\n{text}")
    return int(failed)


def verdict(rows: Sequence[Row]) -> tuple[str, bool]:
    """The last line, and whether the comparison fails."""
    lost, broken = sum(row.lost for row in rows), sum(row.broken for row in rows)
    said = [f"{lost} of {len(rows)} variants lost more than {LOSS:.0%}."]
    if broken:
        said.append(f"{broken} that the reference can do this tree can not.")
    nothing = all(row.gain is None for row in rows)
    if nothing:
        said.append("Nothing could be compared.")
    return " ".join(said), bool(lost or broken or nothing)
