"""The replay store beside its NumPy twin (benchmarks/replay_numpy.py): the same transitions in, the same batches out.

The twin keeps both observations of every transition and reads by ``numpy.take``, which is how most replay buffers are
written. Before a case that samples is timed, a batch of either is looked at: arrays, shapes, dtypes, and whether each
row is a transition that was stored.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.peers.replay.store import Store
from benchmarks.peers.replay.transitions import BLOCK, EPISODE, N_STEP, block, transition
from benchmarks.peers.replay.transitions import Work as Data
from benchmarks.replay_numpy import Twin
from benchmarks.replay_pair import (
    OURS,
    STATM,
    STORES,
    TWIN,
    Beside,
    data_of,
    filled,
    grown_apart,
    require_appends,
    require_filled,
    require_same_work,
    rotated,
    with_cameras,
)
from benchmarks.row_gather import RowGather
from benchmarks.suite import Run, Work, case, normal
from serl_fast.replay import BatchStream, _native

BATCH = 256
TURN = 8  # transitions that a thread appends between two looks at whether it has to stop
DERIVED_BYTES = 8  # of a row: masks and discounts are written, not read
LARGE = 1 << 20  # bytes of a batch from which ours copies with several threads
CAPACITIES = {"states": 200_000, "cameras": 3_000}  # at every scale: results of different scales are compared
TINY = {"states": 2 * EPISODE, "cameras": EPISODE}
THREADS = [1, 2, *(pytest.param(count, marks=normal) for count in (3, 4, 8, 16))]

of_states_and_cameras = pytest.mark.parametrize("data", ["states", "cameras"])
batches = pytest.mark.parametrize(
    ("batch", "data"), [(BATCH, "states"), (BATCH, "cameras"), pytest.param(4096, "states", marks=normal)]
)


@case("replay", variants=(OURS, "appender", TWIN), baseline=TWIN, title="append one by one, {data}")
@of_states_and_cameras
def append_one(run: Run, data: str) -> Work:
    """An episode of dicts, one call each; "appender" takes arrays by position (``ReplayStore.appender``).

    Cameras' frames come from memory, 200 MB of them in turns. States have no limit: they are in a cache already.
    """
    source, stores = data_of(data), _stores(run, data)
    steps = [transition(each.steps, row) for each in _sources(run, data) for row in range(EPISODE)]

    def by_position(store: Any) -> Callable[[], Any]:
        items = [store.fast_item(step) for step in steps]
        turns = itertools.cycle([items[start : start + EPISODE] for start in range(0, len(items), EPISODE)])
        return lambda: store.append_fast(next(turns))

    makers = dict.fromkeys(STORES, lambda store: _appending(store, steps)) | {"appender": by_position}
    require_appends(makers, source, EPISODE, EPISODE)
    functions = {name: make(stores.get(name, stores[OURS])) for name, make in makers.items()}
    return Work(functions, EPISODE, "transitions", _append_bytes(source, EPISODE), limit=_append_limit(run, data))


@case("replay", variants=tuple(STORES), title=f"append {BLOCK} in one call, {{data}}")
@of_states_and_cameras
def append_many(run: Run, data: str) -> Work:
    """Columns with a leading axis; see ``append_one`` for where they come from."""
    source, stores = data_of(data), _stores(run, data)

    def appending(store: Store) -> Callable[[], Any]:
        starts = range(0, len(source.steps["rewards"]), BLOCK)
        blocks = [store.block(block(each.steps, start, BLOCK)) for each in _sources(run, data) for start in starts]
        turns = itertools.cycle(blocks)
        return lambda: store.extend(next(turns))

    require_appends(dict.fromkeys(STORES, appending), source, BLOCK, len(source.steps["rewards"]))
    functions = {name: appending(store) for name, store in stores.items()}
    return Work(functions, BLOCK, "transitions", _append_bytes(source, BLOCK), limit=_append_limit(run, data))


@case("replay", variants=tuple(STORES), title="fill a new store with {data}; memory of a transition")
@of_states_and_cameras
def fill(run: Run, data: str) -> Work:
    """From nothing to full, which touches every page; what the process grows by is measured in one of its own.

    No limit: what is stored stays in the caches, and the system clears every new page first.
    """
    source, capacity = data_of(data), _capacity(run, data)
    work = Work({}, capacity, "transitions", _append_bytes(source, capacity))
    for name in STORES:
        require_filled(filled(name, source, TINY[data]), TINY[data])
        work.functions[name] = lambda name=name: filled(name, source, capacity)
        if run.timed and STATM.exists():
            work.extra[name] = {"transition_bytes": grown_apart(name, data, capacity)}
    return work


@case("replay", variants=tuple(STORES), title="sample {batch} of {data} into fresh arrays")
@batches
def sample(run: Run, batch: int, data: str) -> Work:
    """Uniform, with replacement; a batch is new memory each time."""
    return _sampling(run, data_of(data), batch, lambda store: store.fresh(batch))


@case("replay", variants=tuple(STORES), title="sample {batch} of {data} into reused arrays")
@batches
def sample_into(run: Run, batch: int, data: str) -> Work:
    """Uniform, with replacement; the same arrays each time."""
    return _sampling(run, data_of(data), batch, lambda store: store.into(batch))


@case("replay", variants=tuple(STORES), title=f"sample {BATCH} of {{data}} into page-locked arrays")
@of_states_and_cameras
def sample_pinned(run: Run, data: str) -> Work:
    """Into memory that a CUDA device reads by itself. Not yet run on a CUDA device."""
    if run.device == "cpu":
        return Work({}, missing=dict.fromkeys(STORES, "page-locked memory needs a CUDA device"))

    def into_locked(store: Store) -> Callable[[], Any]:
        if isinstance(store, Twin):
            return store.into_arrays(_mapped(store.empty(BATCH), page_locked))
        batch = _mapped(store.sampler.empty_batch(BATCH), page_locked)

        def draw() -> dict[str, Any]:
            store.sampler.sample_into(batch)
            return batch

        return draw

    return _sampling(run, data_of(data), BATCH, into_locked)


@case("replay", variants=tuple(STORES), title=f"sample {BATCH} of states with {N_STEP}-step returns")
def sample_n_step(run: Run) -> Work:
    """Rewards summed to the end of the episode or of the n steps, the next observation from there."""
    return _sampling(run, data_of("states"), BATCH, lambda store: store.into(BATCH), order="n_step")


@case("replay", variants=tuple(STORES), title=f"sample {BATCH} states by priority and give them new priorities")
def sample_prioritized(run: Run) -> Work:
    """What an update with prioritised replay asks of the store; the twin's sum tree takes a batch's rows at once."""
    priorities = np.random.default_rng(0).random(BATCH).astype(np.float32)

    def draw_and_update(store: Store) -> Callable[[], Any]:
        draw = store.fresh(BATCH)

        def both() -> Any:
            batch = draw()
            store.prioritise(batch, priorities)
            return batch

        return both

    return _sampling(run, data_of("states"), BATCH, draw_and_update, order="prioritized")


@case("replay", variants=tuple(STORES), title=f"{{side}} {{data}}: one thread samples {BATCH}, another appends")
@of_states_and_cameras
@pytest.mark.parametrize("side", ["sample", "append"])
def concurrent(run: Run, side: str, data: str) -> Work:
    """Both threads at full speed, measured is one; the twin, without a lock, returns torn rows now and then."""
    source, stores = data_of(data), _stores(run, data)
    require_same_work(stores, {name: store.fresh(BATCH) for name, store in stores.items()}, 1)
    steps = [transition(source.steps, row) for row in range(EPISODE)]
    require_appends(dict.fromkeys(STORES, lambda store: _appending(store, steps, TURN)), source, TURN, EPISODE)
    if side == "sample":
        work = Work({}, BATCH, "transitions", BATCH * (2 * source.transition_bytes + DERIVED_BYTES))
    else:
        work = Work({}, TURN, "transitions", _append_bytes(source, TURN))
    for name, store in stores.items():
        extra = work.extra[name] = {}
        sample, append = store.into(BATCH), _appending(store, steps, TURN)
        measured, other, rows = (sample, append, TURN) if side == "sample" else (append, sample, BATCH)
        work.functions[name] = Beside(measured, other, rows, extra)
    return work


@case("replay", variants=("ahead", "direct"), title="a batch of {data} and work that is {work} for {milliseconds} ms")
@pytest.mark.parametrize(
    ("data", "work", "milliseconds"),
    [
        ("states", "busy", 0.02),
        pytest.param("states", "waiting", 0.2, marks=normal),
        pytest.param("cameras", "busy", 5.0, marks=normal),
        ("cameras", "waiting", 5.0),
    ],
)
def drawn_ahead(run: Run, data: str, work: str, milliseconds: float) -> Work:
    """``BatchStream``, which fills the next batch meanwhile, beside drawing it when it is needed.

    The limit is the work alone. "Busy" work keeps a core, as an update on the CPU does; "waiting" work leaves it free,
    as one on a device does.
    """
    rows = BATCH if run.timed else 8
    do = {"busy": busy, "waiting": time.sleep}[work]
    sampler = filled(OURS, data_of(data), _capacity(run, data)).sampler
    batch, stream = sampler.empty_batch(rows), BatchStream(sampler, rows)

    def direct() -> None:
        sampler.sample_into(batch)
        do(milliseconds / 1e3)

    def ahead() -> int:
        taken = stream.next()
        do(milliseconds / 1e3)
        return len(taken)  # held until the work is done

    functions = {"ahead": ahead, "direct": direct}
    for function in functions.values():
        function()
    return Work(functions, 1, "batches", limit=lambda: do(milliseconds / 1e3), close=stream.close)


@case("replay", variants=tuple(STORES), scaling="capacity", title=f"sample {BATCH} states out of {{capacity}}")
@pytest.mark.parametrize(
    "capacity", [1_000, pytest.param(10_000, marks=normal), 100_000, pytest.param(1_000_000, marks=normal)]
)
def by_capacity(run: Run, capacity: int) -> Work:
    """The cost grows with the caches' misses alone: the limit reads rows as long out of as much memory."""
    capacity = capacity if run.timed else 1_000
    return _sampling(run, data_of("states"), BATCH, lambda store: store.into(BATCH), capacity=capacity)


@case("replay", variants=tuple(STORES), scaling="cameras", title=f"sample {BATCH} of {{cameras}} camera(s)")
@pytest.mark.parametrize("cameras", [1, 2, pytest.param(3, marks=normal), pytest.param(4, marks=normal)])
def by_cameras(run: Run, cameras: int) -> Work:
    """Images of 128 x 128 and 14 numbers of state, into reused arrays."""
    # As many bytes whatever the number is, far more than the caches hold.
    capacity = _capacity(run, "cameras") * 2 // cameras
    return _sampling(run, with_cameras(cameras), BATCH, lambda store: store.into(BATCH), capacity=capacity)


@case("replay", variants=tuple(STORES), scaling="threads", title=f"sample {BATCH} of cameras, {{threads}} thread(s)")
@pytest.mark.parametrize("threads", THREADS)
def by_threads(run: Run, threads: int) -> Work:
    """Ours copies with so many threads; the twin, NumPy, always with one."""
    if threads > (before := _native.threads()):
        pytest.skip(f"the store has {before} thread(s) here")
    _native.set_threads(threads)
    work = _sampling(run, data_of("cameras"), BATCH, lambda store: store.into(BATCH))
    work.close = lambda: _native.set_threads(before)
    return work


def _sampling(
    run: Run,
    source: Data,
    rows: int,
    make: Callable[[Any], Callable[[], Any]],
    *,
    order: str = "uniform",
    capacity: int | None = None,
) -> Work:
    """Work that draws ``rows`` transitions by what ``make`` makes of a store; batches are compared first."""
    capacity = capacity or _capacity(run, source.name)
    stores = {name: filled(name, source, capacity, order) for name in STORES}
    functions = {name: make(store) for name, store in stores.items()}
    require_same_work(stores, functions, N_STEP if order == "n_step" else 1)
    read, written = source.transition_bytes, source.transition_bytes + DERIVED_BYTES
    if order == "n_step":
        read += (N_STEP - 1) * 6  # reward, terminated and truncated of the other steps
    if order == "prioritized":
        written += 12 + 4  # ids, weights, and the new priority
    work = Work(functions, rows, "transitions", rows * (read + written))
    if source.name == "cameras":
        work.limit = _host_limit(run, "row_gather")
    else:
        threads = (1,) if rows * written < LARGE else (1, _native.threads())
        # Each frame is kept once: a row is read out of as many bytes as that takes.
        stride = source.transition_bytes - source.observation_bytes
        work.limit = RowGather(source.transition_bytes, stride, rows, capacity, threads)
    return work


def _appending(store: Store, steps: list[Any], rows: int = EPISODE) -> Callable[[], None]:
    """A function that appends the next ``rows`` of an episode's steps, one at a time."""
    items = [store.item(step) for step in steps]
    turns = itertools.cycle([items[start : start + rows] for start in range(0, len(items), rows)])
    return lambda: store.append(next(turns))


def _mapped(batch: dict[str, Any], function: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    return {k: _mapped(v, function) if isinstance(v, dict) else function(v) for k, v in batch.items()}


def page_locked(array: np.ndarray) -> np.ndarray:
    """An array like ``array`` in page-locked memory."""
    import torch

    return torch.empty(array.shape, dtype=torch.from_numpy(array[:0]).dtype, pin_memory=True).numpy()


def busy(seconds: float) -> None:
    """Keep a core for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _capacity(run: Run, data: str) -> int:
    return (CAPACITIES if run.timed else TINY)[data]


def _stores(run: Run, data: str) -> dict[str, Store]:
    return {name: filled(name, data_of(data), _capacity(run, data)) for name in STORES}


def _append_bytes(source: Data, rows: int) -> int:
    """Read and written: every frame once, and the rest of the step."""
    return 2 * rows * (source.transition_bytes - source.observation_bytes)


def _sources(run: Run, data: str) -> list[Data]:
    return rotated(data) if run.timed else [data_of(data)]


def _append_limit(run: Run, data: str) -> str | None:
    return _host_limit(run, "copy") if data == "cameras" else None


def _host_limit(run: Run, name: str) -> str | None:
    """A limit of the host's memory; on another device the suite measures that device's."""
    return name if run.device == "cpu" else None
