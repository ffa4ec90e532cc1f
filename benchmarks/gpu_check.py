"""Everything that needs a GPU, in under ten minutes: its tests, then the ladder of executions, then a profile.

make gpu-check

Needs torch, triton, numpy, pytest and the built extension; no network, no simulator. The results go to
``benchmarks/results/<gpu>_<date>.json`` and ``.md``, and the tables to the terminal. What there was no time for is said
in a row, and so is what failed. Not yet run on a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_profile import Profile, device_limits, profile
from benchmarks.machine import machine, markdown
from benchmarks.update import UpdateBenchmarkConfig, measure_all, table
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parent.parent
TESTS_SECONDS = 270.0
ALL_SECONDS = 560.0
SHORTEST_WORKLOAD = 60.0  # seconds; with less left none is begun
LADDER = (
    ("state", ("eager", "compiled", "graphed"), ("float32", "tf32")),
    ("pixels", ("eager", "graphed"), ("bfloat16",)),
    ("pixels_cached", ("graphed",), ("bfloat16",)),
    ("rlpd", ("eager", "graphed"), ("tf32",)),
    ("hybrid", ("eager", "graphed"), ("float32", "bfloat16")),
)
PROFILE_HEADER = (
    "workload",
    "precision",
    "kernels",
    "device busy, us",
    "span, us",
    "gaps > 20 us",
    "longest gap, us",
    "waits",
    "peak memory, graphed / eager",
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
    """The test files in which something is marked as needing a GPU."""
    return [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]


def run_tests(seconds: float) -> dict[str, Any]:
    """Run every GPU test; its last lines, and how it ended."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfEs", "-p", "no:cacheprovider"]
    command += [str(path.relative_to(ROOT)) for path in gpu_tests()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            timeout=seconds,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, status = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        output, status = f"{output}\nnot finished within {seconds:.0f} s", 124
    lines = output.strip().splitlines()
    print("\n".join(lines[-60:]), flush=True)
    return {"status": status, "seconds": time.monotonic() - start, "output": lines[-200:]}


def run_ladder(deadline: Deadline, device: str, rounds: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Tables and rows of every workload there is time for."""
    parts, rows = [], []
    for name, executions, precisions in LADDER:
        title = f"### {WORKLOADS[name]}"
        if deadline.left() <= SHORTEST_WORKLOAD:
            parts.append(f"{title}\n\nnot run: no time was left")
            continue
        config = UpdateBenchmarkConfig((name,), (0,), executions, precisions, device, rounds, 0.3)
        try:
            found = measure_all(WORKLOADS[name], config)
        except Exception as error:  # the other workloads are still worth knowing
            parts.append(f"{title}\n\nfailed: {first_line(error)}")
            continue
        parts.append("#" + table(WORKLOADS[name], found))
        rows += [row._asdict() for row in found]
    return parts, rows


def run_profiles(deadline: Deadline) -> tuple[list[str], dict[str, Any]]:
    """Kernels, gaps and waits of the graphed step, and its memory beside the eager one's."""
    lines, found = [f"| {' | '.join(PROFILE_HEADER)} |", "|" + " --- |" * len(PROFILE_HEADER)], {}
    for name, precision in PROFILED:
        if deadline.left() < 30:
            lines.append(f"| {name} | {precision} | not run: no time was left |")
            continue
        try:
            graphed, memory = _with_peak(lambda n=name, p=precision: _profiled(n, p))
            eager_memory = _with_peak(lambda n=name, p=precision: _warm(n, "eager", p))[1]
        except Exception as error:
            lines.append(f"| {name} | {precision} | failed: {first_line(error)} |")
            continue
        found[f"{name} {precision}"] = graphed._asdict() | {"peak": memory, "eager peak": eager_memory}
        numbers = (graphed.kernels, 1e6 * graphed.busy, 1e6 * graphed.span, graphed.gaps, 1e6 * graphed.longest_gap)
        cells = [name, precision, *(f"{number:.0f}" for number in numbers), str(graphed.waits)]
        lines.append(f"| {' | '.join(cells)} | {memory / max(eager_memory, 1):.2f} |")
        lines += [f"| | {1e6 * seconds:.1f} us | {kernel[:90]} |" for kernel, seconds in graphed.slowest.items()]
    return ["\n".join(lines)], found


def _profiled(name: str, precision: str) -> Profile:
    return profile(_warm(name, "graphed", precision))


def _warm(name: str, execution: str, precision: str) -> Callable[[], Any]:
    workload = WORKLOADS[name]
    call = workload.call(workload.engine(execution, precision, "cuda"))  # type: ignore[arg-type]
    for _ in range(5):
        call()
    torch.cuda.synchronize()
    return call


def _with_peak(function: Callable[[], Any]) -> tuple[Any, int]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    result = function()
    return result, torch.cuda.max_memory_allocated()


def first_line(error: BaseException) -> str:
    """Of a message that may have hundreds."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]


def gpu_state() -> str:
    """Driver, power limit and clocks, as the driver's own tool reports them; nothing is changed."""
    query = "driver_version,power.limit,clocks.max.sm,clocks.sm,temperature.gpu,memory.total"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def main(argv: list[str] | None = None) -> int:
    """Run the check; 0 if every test passed and every row was measured, 1 if something failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="that all of it may take")
    parser.add_argument("--rounds", type=int, default=5, help="of every row of the ladder")
    parser.add_argument("--skip_tests", action="store_true", help="measure only")
    flags = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(
            "there is no CUDA device (torch.cuda.is_available() is false), so nothing was run and nothing was written"
        )
        return 2
    deadline = Deadline(flags.seconds)
    block = machine("cuda") | {"GPU state": gpu_state()}
    print(markdown(block), flush=True)
    tests = {"status": 0, "skipped": True} if flags.skip_tests else run_tests(min(TESTS_SECONDS, deadline.left()))
    limits = device_limits()
    ladder, rows = run_ladder(deadline, "cuda", flags.rounds)
    profiles, profiled = run_profiles(deadline)
    name = re.sub(r"[^A-Za-z0-9]+", "-", block["GPU"]).strip("-").lower() + "_" + block["date"]
    text = "\n\n".join(
        [
            f"# GPU check: {block['GPU']}",
            "```\nmake gpu-check\n```",
            markdown(block),
            "## Tests",
            "not run" if flags.skip_tests else f"status {tests['status']}, {tests['output'][-1:]}",
            "## What the device reaches",
            "\n".join(f"* {key}: {value:.3g}" for key, value in limits.items()),
            "## Updates per second",
            *ladder,
            "## Profile of the graphed step",
            *profiles,
        ]
    )
    flags.output.mkdir(parents=True, exist_ok=True)
    everything = {"machine": block, "tests": tests, "limits": limits, "ladder": rows, "profiles": profiled}
    (flags.output / f"{name}.json").write_text(json.dumps(everything, indent=1, default=str) + "\n")
    (flags.output / f"{name}.md").write_text(text + "\n")
    print(text)
    failed = tests["status"] != 0 or "failed:" in text or any(row["missing"] for row in rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
