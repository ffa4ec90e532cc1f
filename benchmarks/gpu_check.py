"""Everything that needs a GPU, in under ten minutes: its tests, then the ladder of executions, then a profile.

make gpu-check

Needs torch, triton, numpy, pytest, pytest-benchmark and the built extension; no network, no simulator. The results go
to a folder of ``benchmarks/results``: results.json and report.md are the suite's (`python -m benchmarks`), check.json
and check.md hold the tests and the profile. The two .json files are written after the tests and after every row, so
that a check that is ended early keeps what it has; `python -m benchmarks report DIR` makes its report. What there was
no time for is said in a row, and so is what failed. Not yet run on a CUDA device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import benchmarks.bench_update  # noqa: F401  # enters its cases
from benchmarks import gpu_share, plots, report
from benchmarks.gpu_profile import Profile, profile
from benchmarks.limits import Yardsticks, measured
from benchmarks.machine import machine, markdown
from benchmarks.measure import Measurements, Outcome, described
from benchmarks.results import FOLDER, Results, new_folder, prepared, write_whole
from benchmarks.suite import REGISTRY, Run
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parent.parent
TESTS_SECONDS = 240.0
ALL_SECONDS = 480.0  # building before it and the case that is under way at its end are to fit into ten minutes
SHARES = 6  # processes that run the tests: tracing keeps one core of each busy
SLOWEST = "test_executions.py"
LATE = 124  # as timeout(1) has it
LAST_WORDS = 20.0  # seconds
SHORTEST_CASE = 60.0  # seconds; with less left none is begun
LADDER = (
    "update/step[state-256-float32]",
    "update/step[pixels-256-bfloat16]",
    "update/step[state-256-tf32]",
    "update/step[hybrid-256-float32]",
    "update/step[pixels_cached-256-bfloat16]",
    "update/step[rlpd-256-tf32]",
    "update/step[hybrid-256-bfloat16]",
)
"""Of benchmarks/bench_update.py, in the order of what is most worth knowing."""
PROFILE_HEADER = (
    "workload",
    "precision",
    "kernels",
    "device busy, us",
    "span, us",
    "gaps > 20 us",
    "longest gap, us",
    "waits",
)
PROFILED = (("state", "float32"), ("pixels", "bfloat16"))


class Deadline:
    """Seconds left of the time that the whole check may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, at least 0."""
        return max(0.0, self._end - time.monotonic())


def gpu_tests() -> list[Path]:
    """The test files in which something is marked as needing a GPU, the one that takes longest at the end."""
    paths = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    return sorted(paths, key=lambda path: path.name == SLOWEST)


def run_tests(seconds: float, shares: int = SHARES) -> dict[str, Any]:
    """Run every GPU test, shared out to processes beside each other; their last lines, and how they ended."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-vv", "-rfEs", "--durations=5"]
    command += ["-p", "no:cacheprovider", "-p", "benchmarks.gpu_share"]
    command += [str(path.relative_to(ROOT)) for path in gpu_tests()]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // shares)),
    }
    start = time.monotonic()
    with contextlib.ExitStack() as files:
        outputs = [files.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(shares)]
        processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment | {gpu_share.VARIABLE: f"{share}/{shares}"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for share, output in enumerate(outputs)
        ]
        status, found, ends = max(ended(processes, seconds)), [], []
        for output in outputs:
            output.seek(0)
            lines = output.read().strip().splitlines() or ["no output"]
            print("\n".join(lines[-60:]), flush=True)
            found += lines[-200:]
            ends.append(lines[-1].strip("= "))
    late = [f"not finished within {seconds:.0f} s"] if status >= LATE else []
    return {"status": status, "seconds": time.monotonic() - start, "output": [*found, "; ".join([*late, *ends])]}


def ended(processes: Sequence[subprocess.Popen[Any]], seconds: float) -> list[int]:
    """How processes ended; :data:`LATE` for one that had to be told to, which has pytest say what it has found."""
    late, end = [], Deadline(seconds)
    for process in processes:
        try:
            process.wait(end.left())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            late.append(process)
    end = Deadline(LAST_WORDS)
    for process in late:
        try:
            process.wait(end.left())
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return [LATE if process in late else abs(process.returncode) for process in processes]


def run_ladder(
    deadline: Deadline,
    run: Run,
    ids: Sequence[str] = LADDER,
    yardsticks: Yardsticks | None = None,
    keep: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """The suite's cases of these ids, as far as there is time.

    Args:
        deadline: of the whole check.
        run: what is measured.
        ids: of the cases.
        yardsticks: taken before every case and after the last.
        keep: is called with every outcome.
    """
    found: list[Outcome] = []
    measurements = Measurements(run)
    for name in ids:
        instance = REGISTRY[name]
        if deadline.left() <= SHORTEST_CASE:
            found.append(Outcome.of(instance))
            found[-1].missing = dict.fromkeys(instance.variants, "not run: no time was left")
        else:
            if yardsticks is not None:
                yardsticks.take()
            found.append(measurements.outcome(instance))
            print(f"{name}: {found[-1].took:.0f} s", flush=True)
        keep(found[-1])
    if yardsticks is not None:
        yardsticks.take()
    return found


def run_profiles(deadline: Deadline) -> tuple[str, dict[str, Any]]:
    """Kernels, gaps and waits of the graphed step: a table, and its numbers."""
    lines, found = [f"| {' | '.join(PROFILE_HEADER)} |", "|" + " --- |" * len(PROFILE_HEADER)], {}
    for name, precision in PROFILED:
        if deadline.left() < 30:
            lines.append(f"| {name} | {precision} | not run: no time was left |")
            continue
        try:
            graphed = _profiled(name, precision)
        except Exception as error:  # the rest is still worth knowing
            lines.append(f"| {name} | {precision} | {described(error)} |")
            continue
        found[f"{name} {precision}"] = graphed._asdict()
        numbers = (graphed.kernels, 1e6 * graphed.busy, 1e6 * graphed.span, graphed.gaps, 1e6 * graphed.longest_gap)
        lines.append(f"| {' | '.join([name, precision, *(f'{n:.0f}' for n in numbers), str(graphed.waits)])} |")
        lines += [f"| | {1e6 * seconds:.1f} us | {kernel[:90]} |" for kernel, seconds in graphed.slowest.items()]
    return "\n".join(lines), found


def _profiled(name: str, precision: str) -> Profile:
    workload = WORKLOADS[name]
    call: Callable[[], Any] = workload.call(workload.engine("graphed", precision, "cuda"))  # type: ignore[arg-type]
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    return profile(call)


def has_failed(cases: Sequence[Outcome]) -> bool:
    """Whether a case or a variant is missing because of an error."""
    return any(case.failed or any(why.startswith("failed: ") for why in case.missing.values()) for case in cases)


def save(results: Results, check: dict[str, Any], folder: Path) -> None:
    """What is known so far: results.json and check.json."""
    results.save(folder)
    write_whole(folder / "check.json", json.dumps(check, indent=1, default=str) + "\n")


def write(results: Results, check: dict[str, Any], profiles: str, folder: Path) -> str:
    """The suite's files and the check's own; the pages, for the terminal."""
    save(results, check, folder)
    try:
        pictures = plots.draw(results, folder)
    except ImportError as error:
        pictures = []
        print(error)
    page = report.report(results, pictures)
    write_whole(folder / "report.md", page)
    tests = check["tests"]
    own = "\n\n".join(
        [
            f"# GPU check: {results.machine['GPU']}",
            f"```\n{results.command}\n```",
            markdown(results.machine),
            "## Tests",
            f"status {tests['status']}: {tests['output'][-1]}" if tests["output"] else "not run",
            "## Profile of the graphed step",
            profiles,
            "Rates, limits and memory are in [the report](report.md).",
        ]
    )
    write_whole(folder / "check.md", own + "\n")
    return f"{page}\n{own}\n\n{folder}"


def main(argv: list[str] | None = None) -> int:
    """Run the check; 0 if every test passed and no case failed, 1 if something failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder that gets the folder of the results")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="that all of it may take")
    parser.add_argument("--rounds", type=int, default=7, help="of every row of the ladder")
    parser.add_argument("--skip_tests", action="store_true", help="measure only")
    flags = parser.parse_args(argv)
    if flags.rounds < 2:
        parser.error(f"--rounds is {flags.rounds}; accepted: 2 and more")
    if not torch.cuda.is_available():
        print(
            "there is no CUDA device (torch.cuda.is_available() is false), so nothing was run and nothing was written"
        )
        return 2
    start, deadline = time.monotonic(), Deadline(flags.seconds)
    run = Run("cuda", "normal", flags.rounds, 0.2)
    results = Results(machine("cuda"), asdict(run), "make gpu-check")
    try:
        folder = prepared(new_folder(results.machine, flags.output))
    except ValueError as error:
        parser.error(str(error))
    print(markdown(results.machine), flush=True)
    tests: dict[str, Any] = {"status": 0, "output": []}
    if not flags.skip_tests:
        tests = run_tests(min(TESTS_SECONDS, deadline.left()))
    check: dict[str, Any] = {"tests": tests, "profiles": {}}
    save(replace(results, interrupted=True), check, folder)  # until the end is reached
    results.limits = {each.name: each.as_json() for each in measured("cuda", quick=True)}
    yardsticks = Yardsticks("cuda")
    results.yardsticks = yardsticks.times

    def keep(outcome: Outcome) -> None:
        results.add_pass([outcome])
        results.seconds = time.monotonic() - start
        save(replace(results, interrupted=True), check, folder)

    run_ladder(deadline, run, yardsticks=yardsticks, keep=keep)
    profiles, check["profiles"] = run_profiles(deadline)
    results.seconds = time.monotonic() - start
    print(write(results, check, profiles, folder))
    return int(tests["status"] != 0 or has_failed(results.cases) or "failed: " in profiles)


if __name__ == "__main__":
    sys.exit(main())
