"""Updates per second by execution, beside what the update's matrix products alone would allow.

python -m benchmarks.update --output docs/results/update_cpu.md
python -m benchmarks.update --device cuda --executions eager compiled graphed --precisions float32 tf32 bfloat16

All of a table's rows with the same threads and precision are measured in alternating rounds of one process. The limit
runs the matrix products (and convolutions) of one eager call, on the same shapes and memory layouts, and nothing else;
on a CUDA device they are one captured graph. A rate over the limit's is the fraction reached. ``report`` needs nothing
but torch and this repository.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch._inductor.utils import fresh_cache

from benchmarks.interleaved import Rate, interleaved
from benchmarks.machine import machine, markdown
from benchmarks.products import MatrixProducts
from benchmarks.workloads import WORKLOADS, Workload
from serl_fast.cli import main, parse
from serl_fast.engine.config import Execution, Precision

WARM_UP = 3
LIMIT = "matrix products alone"
ONEDNN = "matrix products alone, oneDNN"
NO_GPU = (
    "## On a GPU\n\nNot yet run on a GPU. `python -m benchmarks.update --device cuda --executions eager compiled "
    "graphed --precisions float32 tf32 bfloat16 float16` measures it."
)


@dataclass(frozen=True)
class UpdateBenchmarkConfig:
    """Flags of ``benchmarks.update``.

    Attributes:
        workloads: "state", "rlpd", "pixels", "pixels_cached", "hybrid".
        threads: torch's threads; 0 stands for all cores. Only 0 is measured on a CUDA device.
        executions: "eager", "compiled", "graphed".
        precisions: "float32", "tf32", "bfloat16", "float16".
        device: "cpu" or a CUDA device.
        rounds: of each row.
        seconds: of one round.
        output: Markdown file to write; a JSON file with all rates is put beside it.
    """

    workloads: tuple[str, ...] = tuple(WORKLOADS)
    threads: tuple[int, ...] = (1, 2, 0)
    executions: tuple[str, ...] = ("eager", "compiled")
    precisions: tuple[str, ...] = ("float32",)
    device: str = "cpu"
    rounds: int = 7
    seconds: float = 1.0
    output: Path | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("workloads", WORKLOADS),
            ("executions", get_args(Execution)),
            ("precisions", get_args(Precision)),
        ):
            unknown = set(getattr(self, name)) - set(known)
            if unknown or not getattr(self, name):
                raise ValueError(f"{name} {sorted(unknown)} are not known; choose from {sorted(known)}")
        if self.rounds < 2:
            raise ValueError(f"rounds is {self.rounds}; quartiles need at least 2")


class Row(NamedTuple):
    """A line of a table. Rates count gradient steps; ``missing`` says why there are none."""

    workload: str
    threads: int
    precision: str
    execution: str
    rate: Rate | None = None
    of_eager: float = 0.0
    of_limit: float = 0.0
    gflops: float = 0.0
    compile_seconds: float = 0.0
    missing: str = ""


class Prepared(NamedTuple):
    """What is measured in turns: functions by row name, compile times, reasons for gaps, FLOPs of one call."""

    functions: dict[str, Callable[[], Any]]
    compile_seconds: dict[str, float]
    missing: dict[str, str]
    flops: int


def prepare(workload: Workload, precision: str, config: UpdateBenchmarkConfig) -> Prepared:
    """Engines warmed up and compiled, and the limit recorded."""
    functions: dict[str, Callable[[], Any]] = {}
    compile_seconds: dict[str, float] = {}
    missing: dict[str, str] = {}
    batch = workload.batch(config.device)
    for execution in dict.fromkeys(("eager", *config.executions)):
        start = time.perf_counter()
        try:
            engine = workload.engine(execution, precision, config.device)  # type: ignore[arg-type]
            function = workload.call(engine, batch)
            function()
        except ValueError as error:
            missing[execution] = str(error)
            continue
        if engine.execution != execution:
            missing[execution] = f"fell back to {engine.execution}"
            continue
        functions[execution] = function
        compile_seconds[execution] = 0.0 if execution == "eager" else time.perf_counter() - start
    if "eager" not in functions:
        return Prepared({}, {}, missing, 0)
    products = MatrixProducts()
    with products:
        functions["eager"]()
    if torch.device(config.device).type == "cpu":
        functions |= {LIMIT: products, ONEDNN: products.through_onednn}
    else:
        functions[LIMIT] = products.captured()
    for function in functions.values():
        for _ in range(1 if workload.updates > 1 or workload.image else WARM_UP):
            function()
    return Prepared(functions, compile_seconds, missing, products.flops)


def measure(workload: Workload, threads: int, precision: str, config: UpdateBenchmarkConfig) -> list[Row]:
    """A row for every execution, and the limit's."""
    finish = torch.cuda.synchronize if torch.device(config.device).type == "cuda" else lambda: None
    # Compiled code is made for a number of threads: nothing of an earlier measurement may be reused.
    torch._dynamo.reset()
    with fresh_cache():
        prepared = prepare(workload, precision, config)
        rates = interleaved(prepared.functions, config.rounds, config.seconds, finish) if prepared.functions else {}
    rows = []
    for name, calls in rates.items():
        rate = Rate(*(workload.updates * value for value in calls))
        rows.append(
            Row(
                workload.name,
                threads,
                precision,
                name,
                rate,
                calls.median / rates["eager"].median,
                calls.median / rates[LIMIT].median,
                calls.median * prepared.flops / 1e9,
                prepared.compile_seconds.get(name, 0.0),
            )
        )
    gaps = [Row(workload.name, threads, precision, name, missing=why) for name, why in prepared.missing.items()]
    return rows + gaps


def measure_all(workload: Workload, config: UpdateBenchmarkConfig) -> list[Row]:
    """Every number of threads and precision, one after the other: some precisions are set for the whole process."""
    cores = torch.get_num_threads()
    counts = config.threads if config.device == "cpu" else (0,)
    rows = []
    try:
        for threads in dict.fromkeys(count or cores for count in counts):
            torch.set_num_threads(threads)
            for precision in config.precisions:
                found = measure(workload, threads, precision, config)
                rows += found
                print("\n".join(f"{workload.name} | {' | '.join(cells(row))}" for row in found), flush=True)
    finally:
        torch.set_num_threads(cores)
    return rows


def cells(row: Row) -> tuple[str, ...]:
    """A row as text; see ``table``."""
    name = (str(row.threads), row.precision, row.execution)
    if row.rate is None:
        return (*name, row.missing, "", "", "", "")
    compiled = f"{row.compile_seconds:.0f} s" if row.compile_seconds else ""
    return (*name, str(row.rate), f"{row.of_eager:.2f} x", f"{row.of_limit:.0%}", f"{row.gflops:.3g}", compiled)


def table(workload: Workload, rows: list[Row]) -> str:
    """The rows of a workload under its title."""
    header = (
        "threads",
        "precision",
        "",
        "updates/s, median (quartiles)",
        "of eager",
        "of the limit",
        "GFLOP/s",
        "compile time",
    )
    lines = [header, ("---",) * len(header), *(cells(row) for row in rows)]
    measured = [row for row in rows if row.rate is not None]
    work = measured[0].gflops / measured[0].rate.median if measured else 0.0
    text = f"## {workload}\n\n{work:.3g} GFLOP of matrix products for an update"
    if workload.updates > 1:
        text += f", on average. A call is a block of {workload.updates}; rates count critic updates, not blocks"
    return text + ".\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(config: UpdateBenchmarkConfig, command: str) -> str:
    """Measure everything, write ``config.output``, and return the page."""
    block = machine(config.device)
    parts = ["# Update rate", f"```\n{command}\n```", markdown(block)]
    found: list[Row] = []
    for name in config.workloads:
        rows = measure_all(WORKLOADS[name], config)
        found += rows
        parts.append(table(WORKLOADS[name], rows))
    if config.device == "cpu":
        parts.append(NO_GPU)
    parts.append(
        f"Medians and quartiles of {config.rounds} rounds of {config.seconds:g} s, rows with the same threads and "
        "precision in turns in one process. The limit runs the matrix products and convolutions of one eager call "
        "and nothing else, as torch itself computes them, which on the CPU is by MKL; the columns after the rate "
        "divide by it and count its FLOPs. The same products by oneDNN show what the processor can do where MKL does "
        "not know it. One update is a critic, grasp critic, actor, temperature and target step, as far as the agent "
        "has them, on a batch that is already there. Warm-up and compile time are not part of the rates; the latter "
        "starts from an empty cache."
    )
    text = "\n\n".join(parts)
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(text + "\n", encoding="utf-8")
        everything: dict[str, Any] = {
            "machine": block,
            "config": asdict(config),
            "rows": [row._asdict() for row in found],
        }
        config.output.with_suffix(".json").write_text(json.dumps(everything, indent=1, default=str) + "\n")
        print(config.output)
    return text


def run(argv: list[str]) -> int:
    """Measure, print and write; the exit status."""
    config = parse(UpdateBenchmarkConfig, argv, description=__doc__ or "")
    print(report(config, f"python -m benchmarks.update {' '.join(argv)}".rstrip()))
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
