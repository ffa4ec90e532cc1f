"""What it is worth to an update on the CPU that the process keeps the memory it frees (``serl_fast.engine.memory``).

python -m benchmarks.freed_memory --output docs/results/freed_memory.md

The same compiled update in two processes, asked in turns: one as it is, one in which glibc gives memory back as it does
by itself.
"""

from __future__ import annotations

import contextlib
import resource
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.children import Child, answers_alone, built_children, calls_per_second, serve
from benchmarks.interleaved import Rate, summary, turns
from benchmarks.machine import busy_cores, machine, markdown, quiet_or_caution
from benchmarks.workloads import WORKLOADS, workloads_called
from serl_fast.cli import main, parse

KEPT, GIVEN_BACK = "kept", "given back"
BUILD_LIMIT = 600.0  # seconds for compiling


@dataclass(frozen=True)
class FreedMemoryConfig:
    """Flags of ``benchmarks.freed_memory``.

    Attributes:
        workloads: of benchmarks/workloads.py.
        threads: torch's threads.
        rounds: of each process.
        seconds: of one round.
        output: Markdown file to write.
    """

    workloads: tuple[str, ...] = ("state", "rlpd", "pixels_cached", "pixels")
    threads: tuple[int, ...] = (1, 4)
    rounds: int = 7
    seconds: float = 2.0
    output: Path | None = None


class Worker:
    """One process: a workload's compiled update.

    Args:
        workload: its name.
        threads: torch's.
        memory: ``KEPT`` or ``GIVEN_BACK``.
    """

    def __init__(self, workload: str, threads: int, memory: str) -> None:
        self.workload, self.threads, self.memory = WORKLOADS[workload], threads, memory
        self.call: Callable[[], None] = lambda: None

    def build(self) -> dict[str, Any]:
        torch.set_num_threads(self.threads)
        as_glibc_does = mock.patch("serl_fast.engine.runner.keep_freed_memory")
        with as_glibc_does if self.memory == GIVEN_BACK else contextlib.nullcontext():
            self.call = self.workload.call(self.workload.engine("compiled", strict=True))
            for _ in range(3):
                self.call()
        return {}

    def rate(self, seconds: float) -> dict[str, float]:
        """Updates a second, and page faults of one update."""
        calls = 0

        def counted() -> None:
            nonlocal calls
            self.call()
            calls += 1

        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        rate = calls_per_second(counted, seconds) * self.workload.updates
        used = resource.getrusage(resource.RUSAGE_SELF)
        faults = (used.ru_minflt - before) / (calls * self.workload.updates)
        return {"rate": rate, "faults": faults, "largest": used.ru_maxrss / 1024}


def measure(workload: str, threads: int, config: FreedMemoryConfig) -> str:
    """One row of the table."""
    started = [
        Child(memory, "benchmarks.freed_memory", ["--serve", workload, str(threads), memory], limit=BUILD_LIMIT)
        for memory in (GIVEN_BACK, KEPT)
    ]
    children, why = built_children(started, BUILD_LIMIT)
    try:
        if why:
            raise RuntimeError("; ".join(f"{workload}, memory {name}: {reason}" for name, reason in why.items()))
        answers: dict[str, list[dict[str, float]]] = {child.name: [] for child in children}
        for child in turns(children, config.rounds):
            answer = child.ask("rate", seconds=config.seconds)
            if "missing" in answer:
                raise RuntimeError(f"{workload}, memory {child.name}: {answer['missing']}")
            answers[child.name].append(answer)
    finally:
        for child in children:
            child.close()
    cells = [f"{workload}, {threads} thread{'s' if threads > 1 else ''}"]
    for memory in (GIVEN_BACK, KEPT):
        rate: Rate = summary([answer["rate"] for answer in answers[memory]])
        faults = statistics.median(answer["faults"] for answer in answers[memory])
        cells += [str(rate), f"{faults:.0f}", f"{max(answer['largest'] for answer in answers[memory]):.0f} MB"]
    pairs = zip(answers[KEPT], answers[GIVEN_BACK], strict=True)
    cells.append(f"**{statistics.median(kept['rate'] / given['rate'] for kept, given in pairs):.2f} x**")
    return f"| {' | '.join(cells)} |"


def run(argv: list[str]) -> int:
    """Measure, print and write; the exit status."""
    if argv[:1] == ["--serve"]:
        workload, threads, memory = argv[1:]
        serve(Worker(workload, int(threads), memory), answers_alone())
        return 0
    config = parse(FreedMemoryConfig, argv, description=__doc__ or "")
    workloads_called(config.workloads)
    if config.output is not None and not config.output.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of --output {config.output} is not there; make it first")
    busy = [busy_cores()]
    rows = [
        "| update | given back: updates/s, median (quartiles) | page faults of one | largest process "
        "| kept: updates/s | page faults | largest process | kept over given back |",
        "| --- " * 8 + "|",
    ]
    for workload in config.workloads:
        for threads in config.threads:
            rows.append(measure(workload, threads, config))
            print(rows[-1], flush=True)
    busy.append(busy_cores())
    parts = [
        "# What it is worth that a process keeps the memory it frees",
        f"```\npython -m benchmarks.freed_memory {shlex.join(argv)}\n```",
        markdown(machine() | quiet_or_caution(busy)),
        "\n".join(rows),
        f"Two processes in turns, {config.rounds} rounds of {config.seconds:g} s each; the ratio is the median over "
        "pairs of rounds. A page fault is 4 KB that the system hands out, and clears, once more.",
    ]
    if config.output is not None:
        config.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print(config.output)
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
