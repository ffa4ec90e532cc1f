"""Updates per second by execution, beside what the update's matrix products alone would allow.

python -m benchmarks --suite update

A call takes a workload's gradient steps on a batch that is already there: critic, grasp critic, actor, temperature and
target, as far as the agent has them. Its variants are the ladder of executions. The limit runs the matrix products and
convolutions of one eager call on the same shapes and memory layouts, and nothing else: on a CUDA device as one captured
graph, on the CPU by the faster of the two libraries that torch brings along; its row says what the other one takes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._inductor.utils import fresh_cache

from benchmarks.measure import LIMIT, described
from benchmarks.memory import peak_bytes
from benchmarks.products import MatrixProducts
from benchmarks.suite import SCALES, Run, Work, case, full, normal
from benchmarks.workloads import WORKLOADS, Workload
from serl_fast.engine import default_execution
from serl_fast.engine.compiling import ExecutionError
from serl_fast.engine.config import Execution, Precision

EXECUTIONS: tuple[Execution, ...] = ("eager", "compiled", "graphed")
GPU = torch.cuda.is_available()
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
BATCHES = (128, 256, 512, 1024)
THREADS = sorted({1, 2, 4, 8, 16, CORES} & set(range(1, CORES + 1)))
slow = normal if GPU else full
"""Mark of convolutions and 16-bit types, which a CPU takes seconds for."""

STEPS = [
    pytest.param("state", 256, "float32"),
    pytest.param("hybrid", 256, "float32"),
    pytest.param("rlpd", 256, "float32", marks=normal),
    pytest.param("pixels_cached", 64, "float32", marks=normal),
    pytest.param("pixels", 64, "float32", marks=slow),
    pytest.param("pixels_trained", 64, "float32", marks=slow),
    pytest.param("state", 256, "bfloat16", marks=slow),
]
STEPS_OF_A_GPU = [
    *(pytest.param("state", 256, precision, marks=normal) for precision in ("tf32", "float16")),
    *(pytest.param(name, 256, "bfloat16", marks=normal) for name in ("hybrid", "rlpd", "pixels", "pixels_cached")),
    *(pytest.param(name, 256, "tf32", marks=full) for name in ("hybrid", "rlpd", "pixels", "pixels_trained")),
    *(pytest.param(name, 256, "float16", marks=full) for name in ("hybrid", "pixels", "pixels_cached")),
]


@case("update", variants=EXECUTIONS, baseline="eager", title="{workload}, batch {batch}, {precision}")
@pytest.mark.parametrize(("workload", "batch", "precision"), STEPS + STEPS_OF_A_GPU * GPU)
def step(run: Run, workload: str, batch: int, precision: Precision) -> Work:
    """Every agent; RLPD's call is a block of 20 updates."""
    compiles_from = "tiny" if workload == "state" else "normal"  # one is enough to see that it can be compiled
    return learner(run, replace(WORKLOADS[workload], batch_size=batch), precision, compiles_from=compiles_from)


@case("update", variants=EXECUTIONS, baseline="eager", title="state, batch {batch}", scaling="batch")
@pytest.mark.parametrize("batch", [64, *(pytest.param(b, marks=normal if b in (256, 1024) else full) for b in BATCHES)])
def by_batch(run: Run, batch: int) -> Work:
    """SAC from states over the batch size."""
    return learner(run, replace(WORKLOADS["state"], batch_size=batch))


@case("update", variants=EXECUTIONS, baseline="eager", title="one RLPD update, {critics} critics", scaling="critics")
@pytest.mark.parametrize("critics", [2, *(pytest.param(count, marks=full) for count in (5, 10))])
def by_ensemble(run: Run, critics: int) -> Work:
    """RLPD's single update, with its actor, over the size of the ensemble."""
    return learner(run, replace(WORKLOADS["rlpd"], updates=1).changed(critic_ensemble_size=critics))


@case("update", variants=EXECUTIONS, baseline="eager", title="state, batch 256, {threads} thread(s)", scaling="threads")
@pytest.mark.parametrize("threads", [1, *(pytest.param(count, marks=full) for count in THREADS[1:])])
def by_threads(run: Run, threads: int) -> Work:
    """SAC from states over torch's threads."""
    if run.device != "cpu":
        pytest.skip("threads are the CPU's")
    return learner(run, WORKLOADS["state"], threads=threads)


def learner(
    run: Run,
    workload: Workload,
    precision: Precision = "float32",
    *,
    threads: int | None = None,
    compiles_from: str = "normal",
) -> Work:
    """The workload's call by execution, warmed up, and its limit.

    Args:
        run: its smallest scale takes a small workload.
        workload: what a call computes.
        precision: of forward and backward passes.
        threads: torch's; by default as many as it has.
        compiles_from: scale; a shorter run leaves out what has to be compiled, and says so.
    """
    workload = workload if run.timed else workload.small()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    # Compiled code is made for a number of threads: nothing of an earlier measurement may be reused.
    torch._dynamo.reset()

    work = Work({}, units=workload.updates, unit="updates")

    def close() -> None:
        torch.set_num_threads(before)
        torch._dynamo.reset()
        work.functions.clear()
        work.limit = None
        gc.collect()  # engines are in cycles, and the next case needs their memory

    work.close = close
    try:
        batch = workload.batch(run.device)
        with fresh_cache() if run.timed else contextlib.nullcontext():
            for execution in EXECUTIONS:
                if execution != "eager" and SCALES.index(run.scale) < SCALES.index(compiles_from):
                    work.missing[execution] = f"compiled from the scale {compiles_from} on"
                    continue
                try:
                    work.functions[execution], work.extra[execution] = built(workload, execution, precision, batch, run)
                except (ValueError, ExecutionError) as error:
                    work.missing[execution] = why(error, execution)
        if "eager" in work.functions:
            try:
                add_limit(work, precision, run)
            except RuntimeError as error:  # the variants are still worth knowing
                work.missing[LIMIT] = described(error)
    except BaseException:
        close()
        raise
    return work


def built(
    workload: Workload, execution: Execution, precision: Precision, batch: Any, run: Run
) -> tuple[Callable[[], Any], dict[str, float | str]]:
    """A call that has run twice, how long it took to come to the first result, and its memory.

    A captured call finds the compiled step in the cache: its time is that of tracing and capturing.

    Raises:
        ValueError: the device does not offer this.
        ExecutionError: it does, and failed.
    """
    found: dict[str, float | str] = {}
    calls: list[Callable[[], Any]] = []

    def build() -> tuple[Callable[[], Any], Any]:
        start = time.perf_counter()
        engine = workload.engine(execution, precision, run.device, strict=True)
        calls.append(workload.call(engine, batch))
        calls[0]()
        if run.device != "cpu":
            torch.cuda.synchronize()
        if execution != "eager":
            found["compile_s" if execution == "compiled" else "capture_s"] = time.perf_counter() - start
        return calls[0], engine.state_dict()

    found["peak_bytes"] = peak_bytes(build, run.device)
    return calls[0], found


def why(error: ValueError | ExecutionError, execution: Execution) -> str:
    """The reason for a gap; a step that does not compile where there is a compiler is a failure."""
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, ValueError):
        return reason
    if execution == "compiled" and default_execution() == "eager":
        return "there is no C++ compiler"
    return f"failed: {reason}"


def add_limit(work: Work, precision: Precision, run: Run) -> None:
    """The products of one eager call: their FLOPs and the limit, on the CPU with what the slower library takes."""
    products = MatrixProducts()
    with products:
        work.functions["eager"]()  # type: ignore[operator]
    work.flops = products.flops
    if run.device != "cpu" or precision != "float32":
        work.limit = products if run.device == "cpu" else products.captured()
        return
    libraries: dict[str, Callable[[], Any]] = {"MKL" if torch.backends.mkl.is_available() else "BLAS": products}
    if torch.backends.mkldnn.is_available():
        libraries["oneDNN"] = products.through_onednn
    taken = {name: seconds(function) for name, function in libraries.items()}
    fastest = min(taken, key=taken.__getitem__)
    others = [f"; by {n} {t / taken[fastest]:.2f} times as long" for n, t in taken.items() if n != fastest]
    work.limit = libraries[fastest]
    work.extra[LIMIT] = {"note": f"matrix products alone, by {fastest}{''.join(others)}"}


def seconds(function: Callable[[], Any]) -> float:
    """Of the fastest of three calls, after one."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])
