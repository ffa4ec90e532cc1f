"""What each rewrite of the compiled step is worth on the CPU, measured in turns in one process.

python -m benchmarks.cpu_passes --output docs/results/cpu_passes.md

Rows add one change after the other: the step as torch compiles it; with the sooner library for every product, loops for
small ones and a quotient for tanh (``engine.cpu_passes``); with products in pieces, one for each thread
(``engine.pieces``); with what a whole loop shares computed before it (``engine.hoisting``); without dynamo's look at
every module before a call, and with C++ in place of Python calling the kernels (``engine.compiling``).
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._inductor.utils import fresh_cache
from torch.fx import Graph

from benchmarks.interleaved import interleaved
from benchmarks.machine import busy_cores, machine, markdown, quiet_or_caution
from benchmarks.products import MatrixProducts
from benchmarks.workloads import Workload, workloads_called
from serl_fast.cli import main, parse
from serl_fast.engine.cpu_passes import CpuPasses, relative_times


class Without(CpuPasses):
    """Without parts of it.

    Args:
        pieces: products may be cut into pieces (``engine.pieces``).
    """

    def __init__(self, *, pieces: bool) -> None:
        super().__init__()
        self._pieces = pieces

    def __call__(self, graph: Graph) -> None:
        passes = "serl_fast.engine.cpu_passes"
        whole = contextlib.nullcontext() if self._pieces else mock.patch(f"{passes}._pieces", return_value=1)
        relative_times.cache_clear()  # knows the ways that were open
        with mock.patch(f"{passes}.hoist"), whole:
            super().__call__(graph)
        relative_times.cache_clear()

    def uuid(self) -> Any:
        return super().uuid() + b"pieces" * self._pieces + b"alone"


VARIANTS: dict[str, dict[str, Any]] = {
    "as torch compiles it": {"guard_filter_fn": None, "post_grad_custom_post_pass": None, "cpp_wrapper": False},
    "+ rewritten operations": {
        "guard_filter_fn": None,
        "cpp_wrapper": False,
        "post_grad_custom_post_pass": Without(pieces=False),
    },
    "+ products in pieces": {
        "guard_filter_fn": None,
        "cpp_wrapper": False,
        "post_grad_custom_post_pass": Without(pieces=True),
    },
    "+ computed before loops": {"guard_filter_fn": None, "cpp_wrapper": False},
    "+ no look at modules": {"cpp_wrapper": False},
    "+ called from C++ (as it is)": {},
}


@dataclass(frozen=True)
class CpuPassesConfig:
    """Flags of ``benchmarks.cpu_passes``.

    Attributes:
        workloads: of benchmarks/workloads.py.
        threads: torch's threads.
        rounds: of each row.
        seconds: of one round.
        output: Markdown file to write.
    """

    workloads: tuple[str, ...] = ("state", "rlpd", "pixels_cached")
    threads: tuple[int, ...] = (1, 2, 4)
    rounds: int = 9
    seconds: float = 0.5
    output: Path | None = None


def changed(changes: dict[str, Any]) -> Callable[..., Any]:
    """``torch.compile`` with other options; None leaves one out."""
    plain = torch.compile

    def compile_with(function: Any, *, options: dict[str, Any], **named: Any) -> Any:
        together = {name: value for name, value in {**options, **changes}.items() if value is not None}
        return plain(function, **named, options=together or None)

    return compile_with


def measure(workload: Workload, threads: int, config: CpuPassesConfig) -> list[str]:
    """The rows of one table."""
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    batch, functions = workload.batch(), {}
    with fresh_cache():
        for name, changes in VARIANTS.items():
            with mock.patch("serl_fast.engine.compiling.torch.compile", changed(changes)):
                engine = workload.engine("compiled")
                functions[name] = workload.call(engine, batch)
                functions[name]()
            if engine.execution != "compiled":
                raise RuntimeError(f"{name}: the step did not compile")
        functions["eager"] = workload.call(workload.engine("eager"), batch)
        products = MatrixProducts()
        with products:
            functions["eager"]()
        functions |= {"matrix products alone": products, "matrix products alone, oneDNN": products.through_onednn}
        for function in functions.values():
            for _ in range(3):
                function()
        rates = interleaved(functions, config.rounds, config.seconds)
    first = rates[next(iter(VARIANTS))].median
    return [f"| {name} | {rate} | {rate.median / first:.2f} x |" for name, rate in rates.items()]


def run(argv: list[str]) -> int:
    """Measure, print and write; the exit status."""
    config = parse(CpuPassesConfig, argv, description=__doc__ or "")
    cores, busy = torch.get_num_threads(), [busy_cores()]
    parts = []
    for workload in workloads_called(config.workloads):
        for threads in config.threads:
            title = f"## {workload}, {threads} thread{'s' if threads > 1 else ''}"
            header = "| | updates/s, median (quartiles) | over the first |\n| --- | --- | --- |"
            parts.append(f"{title}\n\n{header}\n" + "\n".join(measure(workload, threads, config)))
            print(parts[-1], flush=True)
    torch.set_num_threads(cores)
    busy.append(busy_cores())
    head = [
        "# What the rewrites of the compiled step are worth on the CPU",
        f"```\npython -m benchmarks.cpu_passes {shlex.join(argv)}\n```",
        markdown(machine() | quiet_or_caution(busy)),
    ]
    tail = (
        f"Medians and quartiles of {config.rounds} rounds of {config.seconds:g} s, the rows of a table in turns in one "
        "process. Each row has the changes of the rows above it."
    )
    if config.output is not None:
        config.output.write_text("\n\n".join([*head, *parts, tail]) + "\n", encoding="utf-8")
        print(config.output)
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
