"""Updates per second, eager and compiled, beside what the update's matrix products alone would allow.

python -m benchmarks.update --output docs/results/update_cpu.md

All three are measured in alternating rounds of one process. The limit runs the matrix products (and convolutions) of
one eager update, on the same shapes and memory layouts, and nothing else; an update's rate over the limit's is the
fraction reached.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._inductor.utils import fresh_cache

from benchmarks.interleaved import Rate, interleaved
from benchmarks.machine import machine, markdown
from benchmarks.products import MatrixProducts
from benchmarks.workloads import WORKLOADS, Workload
from serl_fast.cli import main, parse

HEADER = ("threads", "", "updates/s, median (quartiles)", "of eager", "of the limit", "GFLOP/s", "compile time")
WARM_UP = 3


@dataclass(frozen=True)
class UpdateBenchmarkConfig:
    """Flags of ``benchmarks.update``.

    Attributes:
        workloads: "state", "pixels".
        threads: torch's threads; 0 stands for all cores.
        rounds: of each of the three.
        seconds: of one round.
        output: Markdown file to write.
    """

    workloads: tuple[str, ...] = tuple(WORKLOADS)
    threads: tuple[int, ...] = (1, 2, 0)
    rounds: int = 9
    seconds: float = 1.0
    output: Path | None = None

    def __post_init__(self) -> None:
        unknown = set(self.workloads) - set(WORKLOADS)
        if unknown:
            raise ValueError(f"workloads {sorted(unknown)} are not known; choose from {sorted(WORKLOADS)}")
        if self.rounds < 2:
            raise ValueError(f"rounds is {self.rounds}; quartiles need at least 2")


def measure(workload: Workload, rounds: int, seconds: float) -> tuple[dict[str, Rate], int, float]:
    """Rates by name, FLOPs of one update's products, and the seconds that compiling took."""
    batch = workload.batch()
    eager, compiled = workload.engine("eager"), workload.engine("compiled")
    # Compiled code is made for a number of threads: nothing of an earlier measurement may be reused.
    torch._dynamo.reset()
    with fresh_cache():
        start = time.perf_counter()
        compiled.update(batch)
        compile_time = time.perf_counter() - start
        eager.update(batch)
        with MatrixProducts() as products:
            eager.update(batch)
        functions = {
            "eager": lambda: eager.update(batch),
            "compiled": lambda: compiled.update(batch),
            "limit": products,
        }
        for function in functions.values():
            for _ in range(WARM_UP):
                function()
        return interleaved(functions, rounds, seconds), products.flops, compile_time


def table(workload: Workload, config: UpdateBenchmarkConfig) -> str:
    """Measure ``workload`` for every number of threads."""
    cores = torch.get_num_threads()
    rows = []
    for threads in dict.fromkeys(count or cores for count in config.threads):
        torch.set_num_threads(threads)
        rates, flops, compile_time = measure(workload, config.rounds, config.seconds)
        for name, rate in rates.items():
            cells = (
                str(threads),
                "matrix products alone" if name == "limit" else name,
                str(rate),
                f"{rate.median / rates['eager'].median:.2f} x",
                f"{rate.median / rates['limit'].median:.0%}",
                f"{rate.median * flops / 1e9:.3g}",
                f"{compile_time:.0f} s" if name == "compiled" else "",
            )
            rows.append(cells)
            print(" | ".join(cells), flush=True)
    torch.set_num_threads(cores)
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    title = f"## {workload}\n\n{flops / 1e9:.3g} GFLOP of matrix products an update."
    return title + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run(argv: list[str]) -> int:
    """Measure, print and write; the exit status."""
    config = parse(UpdateBenchmarkConfig, argv, description=__doc__ or "")
    parts = [
        "# Update rate on the CPU",
        f"```\npython -m benchmarks.update {' '.join(argv)}\n```".replace(" \n", "\n"),
        markdown(machine()),
    ]
    print(parts[-1], flush=True)
    parts += [table(WORKLOADS[name], config) for name in config.workloads]
    parts.append(
        f"Medians and quartiles of {config.rounds} rounds of {config.seconds:g} s, the three in turns in one process. "
        "The limit runs the matrix products and convolutions of one eager update and nothing else; the last "
        "columns divide by its rate and count its FLOPs. One update is a critic, grasp critic, actor, temperature "
        "and target step. Warm-up and compile time are not part of the rates; the latter starts from an empty cache."
    )
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print(config.output)
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
