"""Other packages beside this one: replay stores and one SAC update, each in a process of its own.

    python -m benchmarks --peers peers/bin/python

Every package is fed and read as its own documentation shows (:mod:`benchmarks.peers`) and is measured only when it
does the same work: a store delivers what was stored, a learner ends where plain NumPy ends. All of a case are alive at
once and asked in turns. A package that is missing, or does not offer something, is a row that says so.

``--peers`` takes several interpreters with ":" between them; a package runs in the first that has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import pytest

from benchmarks.children import Asked, Child
from benchmarks.peers.processes import Group, close_all, learners, stores
from benchmarks.peers.replay import STORES
from benchmarks.peers.replay.transitions import EPISODE
from benchmarks.peers.update import LEARNERS, LIMIT
from benchmarks.suite import Run, Work, case, normal

OURS = "serl_fast"
THREADED = (OURS, "LeRobot", "TorchRL")  # they split their copies among all threads unless told otherwise
PROCESSES = tuple(each for name in STORES for each in ((name, f"{name}, 1 thread") if name in THREADED else (name,)))
# How a variant is measured when it is not by the case's own task: ending of its name -> task.
CALLS = {", reused arrays": "into", ", positional call": "append_fast"}
APPEND = {1: "append", 64: "extend"}
REUSING = [f"{name}, reused arrays" for name in (OURS, f"{OURS}, 1 thread", "NumPy")]
APPENDING = (f"{OURS}, positional call", *PROCESSES)
SAMPLING = tuple(each for name in PROCESSES for each in (name, f"{name}, reused arrays") if each in (name, *REUSING))
TINY = (OURS, "NumPy", "Stable-Baselines3")
SMALLER, ONE_AT_A_TIME = "not at this scale", "takes one transition at a time"  # gaps of what is ours
CAPACITIES = {"tiny": (1_024, 256), "quick": (100_000, 400)}  # of states, of cameras; else 1 000 000 and 4 000


@pytest.fixture(scope="module", autouse=True)
def _processes_end_with_the_cases() -> Iterator[None]:
    yield
    close_all()


def measured(
    run: Run, variants: tuple[str, ...], task: str, rows: int, stored: str = "states", order: str = "uniform"
) -> Work:
    """A task of the replay stores.

    Args:
        run: of the suite.
        variants: of the case.
        task: "append", "extend", "fresh", "prioritise", or "concurrent append" and "concurrent sample": one side of a
            thread that appends beside one that samples.
        rows: of one call; an "append" stores one transition, and is asked for in episodes of 128.
        stored: "states" or "cameras".
        order: "uniform", "n_step" or "prioritized".
    """
    on_the_cpu(run)
    states, cameras = CAPACITIES.get(run.scale, (1_000_000, 4_000))
    names = PROCESSES if run.timed else TINY
    group = stores(run, names, stored, order, cameras if stored == "cameras" else states)
    task, _, side = task.partition(" ")
    asked_rows, units = (EPISODE, 1.0) if task == "append" else (rows, float(rows))
    functions: dict[str, Asked] = {}
    missing: dict[str, str] = {}
    for variant in variants:
        process, call = process_and_call(variant, task)
        if process not in group.children:
            missing[variant] = group.why[process] if process in names else SMALLER
            continue
        if task == "extend" and call == "append_fast":
            missing[variant] = ONE_AT_A_TIME
            continue
        child = group.children[process]
        answer = child.ask("prepare", task=call, rows=asked_rows)
        if "missing" in answer:
            missing[variant] = answer["missing"]
        else:
            functions[variant] = Asked(child, {"task": call, "rows": asked_rows}, units, side or "rate")
    require_ours(missing)
    extra = {variant: figures(variant, asked.child, task) for variant, asked in functions.items()}
    if side == "sample" and stored == "states":
        torn(run, group, extra)
    return Work(dict(functions), units, "transitions", missing=missing, extra=extra)


def process_and_call(variant: str, task: str) -> tuple[str, str]:
    """Name of the process that a variant asks, and the task that it asks for."""
    for ending, instead in CALLS.items():
        if variant.endswith(ending):
            return variant.removesuffix(ending), instead
    return variant, task


def on_the_cpu(run: Run) -> None:
    """Skip the case elsewhere: the processes are pinned to cores and their packages set to the CPU."""
    if run.device != "cpu":
        pytest.skip("other packages are measured on the CPU")


def require_ours(missing: Mapping[str, str]) -> None:
    """A package of others may be missing; this project's own part may not.

    Raises:
        RuntimeError: it is.
    """
    for variant, why in missing.items():
        if variant.startswith((OURS, "NumPy", "matrix products")) and why not in (SMALLER, ONE_AT_A_TIME):
            raise RuntimeError(f"{variant}: {why}")


def figures(variant: str, child: Child, task: str) -> dict[str, float | str]:
    """What a store said when it was filled, each in the cases where it says something."""
    said = child.built
    found: dict[str, float | str] = {"capacity": said["capacity"]}
    if task == "append" and variant in STORES:
        found |= {"version": f"{said['package']} {said['version']}", "note": said["settings"]}
    if task in ("append", "fresh"):
        found["transition_bytes"] = said["bytes"]
    if task == "fresh" and said["wrong"]:
        found["rows_never_stored"] = f"{said['wrong']:.2%}"
    return found


def torn(run: Run, group: Group, extra: Mapping[str, dict[str, float | str]]) -> None:
    """Rows that were never stored, from a store of 512 so that readers meet the writer often: alone and beside it."""
    for variant, found in extra.items():
        answer = group.children[variant].ask("torn", seconds=1.0 if run.timed else 0.1)
        if "missing" not in answer:
            found["torn_rows_alone"] = f"{answer['alone']:.2%}"
            found["torn_rows_beside_the_appending_thread"] = f"{answer['concurrent']:.2%} of {answer['rows']:,}"


# Cases of the same data stand together: the stores are filled once for all of them.


@case("peers", variants=APPENDING, baseline="NumPy", title="append {rows} states a call")
@pytest.mark.parametrize("rows", [1, 64])
def append_states(run: Run, rows: int) -> Work:
    """One transition at a time, and 64 in one call, to a full store."""
    return measured(run, APPENDING, APPEND[rows], rows)


@case("peers", variants=SAMPLING, baseline="NumPy", title="sample {batch} states")
@pytest.mark.parametrize("batch", [256, pytest.param(4096, marks=normal)])
def sample_states(run: Run, batch: int) -> Work:
    """32 float32 observed, action 7."""
    return measured(run, SAMPLING, "fresh", batch)


@case("peers", variants=PROCESSES, baseline="NumPy", title="{side} states: one thread samples 256, another appends")
@normal
@pytest.mark.parametrize("side", ["sample", "append"])
def concurrent_states(run: Run, side: str) -> Work:
    """A thread that appends beside one that samples, both at full speed."""
    return measured(run, PROCESSES, f"concurrent {side}", 256)


@case("peers", variants=APPENDING, baseline="NumPy", title="append {rows} of two cameras a call")
@normal
@pytest.mark.parametrize("rows", [1, 64])
def append_cameras(run: Run, rows: int) -> Work:
    """Two 128 x 128 x 3 uint8 images and 14 float32 observed, action 7."""
    return measured(run, APPENDING, APPEND[rows], rows, "cameras")


@case("peers", variants=SAMPLING, baseline="NumPy", title="sample 256 of two cameras")
def sample_cameras(run: Run) -> Work:
    """Two 128 x 128 x 3 uint8 images and 14 float32 observed, action 7."""
    return measured(run, SAMPLING, "fresh", 256, "cameras")


@case(
    "peers",
    variants=PROCESSES,
    baseline="NumPy",
    title="{side} two cameras: one thread samples 256, another appends",
)
@normal
@pytest.mark.parametrize("side", ["sample", "append"])
def concurrent_cameras(run: Run, side: str) -> Work:
    """A thread that appends beside one that samples, both at full speed."""
    return measured(run, PROCESSES, f"concurrent {side}", 256, "cameras")


@case("peers", variants=SAMPLING, baseline="NumPy", title="sample 256 states with 3-step returns")
def sample_n_step(run: Run) -> Work:
    """cpprb and TorchRL make the returns while appending, so that sampling them costs nothing there."""
    return measured(run, SAMPLING, "fresh", 256, order="n_step")


@case("peers", variants=SAMPLING, baseline="NumPy", title="sample 256 states by priority")
def sample_prioritized(run: Run) -> Work:
    """Proportional priorities, alpha 0.6, beta 0.4."""
    return measured(run, SAMPLING, "fresh", 256, order="prioritized")


@case("peers", variants=PROCESSES, baseline="NumPy", title="sample 256 and give them new priorities")
def prioritise(run: Run) -> Work:
    """Proportional priorities, alpha 0.6, beta 0.4."""
    return measured(run, PROCESSES, "prioritise", 256, order="prioritized")


@case(
    "peers",
    variants=tuple(LEARNERS),
    baseline="Stable-Baselines3",
    title="one SAC update from the replay, batch 256, threads {threads} (0: all)",
)
@pytest.mark.parametrize("threads", [1, pytest.param(0, id="all", marks=normal)])
def update(run: Run, threads: int) -> Work:
    """Draw 256 of 100 000 transitions, then critics, actor, temperature and targets.

    State 32, action 7, 2 critics and the actor of 2 x 256, relu, float32, Adam 3e-4, discount 0.99, tau 0.005, target
    entropy -7, entropy in the target. Every learner took one update from the same weights on the same transition
    before: the number of parameters, the critics' loss, every weight of the critics after it, the targets and the size
    of every other network's step agree with NumPy.
    """
    on_the_cpu(run)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = tuple(LEARNERS) if run.timed else ("serl_fast, eager", "Stable-Baselines3")
    group = learners(run, names, min(threads or cores, cores))
    extra: dict[str, dict[str, float | str]] = {}
    for name, child in group.children.items():
        said = child.built
        extra[name] = {"version": f"{said['package']} {said['version']}", "note": said["settings"]}
        if name.startswith(LIMIT):
            extra[name]["floor"] = "yes"
        if said.get("gflop") is not None:
            extra[name]["gflop_counted"] = said["gflop"]
    missing = group.why | {name: SMALLER for name in LEARNERS if name not in names}
    require_ours(missing)
    functions = {name: Asked(child, {}) for name, child in group.children.items()}
    return Work(functions, 1.0, "updates", flops=0.609e9, missing=missing, extra=extra, close=close_all)
