"""What the replay benchmarks measure: our store and its NumPy twin, their data, and that they do the same work."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.replay import transitions
from benchmarks.peers.replay.ours import SerlFast
from benchmarks.peers.replay.store import Store
from benchmarks.peers.replay.transitions import EPISODE, block, fields, named, wrong_fields, wrong_rows
from benchmarks.peers.replay.transitions import Work as Data
from benchmarks.replay_numpy import Twin

OURS, TWIN = "serl_fast", "numpy"
STORES: dict[str, type[Store]] = {OURS: SerlFast, TWIN: Twin}
BEYOND_CACHES = 200 << 20  # bytes
STATM = Path("/proc/self/statm")  # where Linux says how much memory a process has


def require_same_work(stores: dict[str, Store], functions: dict[str, Callable[[], Any]], n_step: int) -> None:
    """Raise unless every function returns the same arrays, with whole rows that were stored, others every time."""
    arrays = {}
    for name, function in functions.items():
        before: list[float] = []
        for _ in range(2):
            batch = function()
            if (numbers := require_stored_rows(name, stores[name], batch, n_step).tolist()) == before:
                raise AssertionError(f"{name} returns the same rows twice")
            before = numbers
        arrays[name] = {key: (array.shape, array.dtype) for key, array in flattened(batch)}
    first, *others = arrays.values()
    if any(other != first for other in others):
        raise AssertionError(f"the stores return other arrays: {arrays}")


def require_stored_rows(name: str, store: Store, batch: dict[str, Any], n_step: int = 1) -> np.ndarray:
    """The numbers [B] of a batch's rows; raise unless it has all fields of them, as they were stored."""
    parts = store.parts(batch)
    if lacking := fields(store.work) - set(parts):
        raise AssertionError(f"{name} returns no {', '.join(sorted(lacking))}")
    wrong = {field: int(rows.sum()) for field, rows in wrong_fields(store.work, parts, n_step).items() if rows.any()}
    if wrong:
        rows = wrong_rows(store.work, parts, n_step)
        raise AssertionError(f"{name} returns {rows} rows that were never stored: {wrong}")
    stored = dict(flattened(store.work.steps))
    for key, array in flattened(batch):
        if key in stored and array.dtype != stored[key].dtype:
            raise AssertionError(f"{name} returns {key} as {array.dtype}, not {stored[key].dtype}")
    return np.array(parts["state"][:, 0])


def require_appends(
    appending: Mapping[str, Callable[[Any], Callable[[], Any]]], source: Data, rows: int, cycle: int
) -> None:
    """Raise unless calls of what ``appending`` makes of an empty store put the next ``rows`` of ``source`` there.

    Args:
        appending: by variant; one that is no store's name is a way to append to ours.
        source: whose first ``cycle`` steps are appended in their order, again and again.
        rows: of a call.
        cycle: see ``source``.
    """
    capacity, number = 2 * EPISODE, named(source.steps["observations"])["state"][:, 0]
    for name, make in appending.items():
        store = STORES.get(name, STORES[OURS])(source, "uniform", capacity)
        function = make(store)
        for appended in range(rows, capacity + 2 * rows, rows):
            function()
            if (held := count(store)) != min(appended, capacity):
                raise AssertionError(f"{name}: {appended} rows were appended, {held} are there")
        found = require_stored_rows(name, store, contents(store))
        expected = number[np.arange(appended - capacity, appended) % cycle]
        if not np.array_equal(found, expected):
            raise AssertionError(f"{name}: other rows than the last {capacity} appended are there")


def require_filled(store: Store, capacity: int) -> None:
    """Raise unless a store is full of rows of its work."""
    if (held := count(store)) != capacity:
        raise AssertionError(f"{type(store).__name__}: {held} rows, not {capacity}")
    require_stored_rows(type(store).__name__, store, contents(store))


def count(store: Any) -> int:
    """Transitions that a store holds."""
    return store.size if isinstance(store, Twin) else len(store.store)


def contents(store: Any) -> dict[str, Any]:
    """Everything that a store holds, the oldest first, as a batch."""
    if isinstance(store, Twin):
        places = (store.next - store.size + np.arange(store.size)) % store.capacity
        return {key: array[places] for key, array in store.arrays.items()}
    return store.sampler.batch_at(np.arange(len(store.store)))


def flattened(batch: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a nested batch; a plain observation is called "state", as the twin calls it."""
    for key, value in batch.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}/")
        else:
            yield prefix + (f"{key}/state" if key in ("observations", "next_observations") else key), value


class Beside:
    """Calls of ``function`` in this thread while another one calls ``other``, both at full speed.

    Args:
        function: what is measured.
        other: what the other thread does.
        rows: transitions of a call of ``other``.
        extra: where "other_thread_per_second" is put, transitions.
    """

    def __init__(
        self, function: Callable[[], Any], other: Callable[[], Any], rows: int, extra: dict[str, float | str]
    ) -> None:
        self.function, self.other, self.rows, self.extra = function, other, rows, extra
        self.moved, self.seconds = 0, 0.0  # by the other thread, of all rounds

    def seconds_per_call(self, seconds: float) -> float:
        """Of ``function``; the other thread runs for as long."""
        stop, calls, start = threading.Event(), 0, time.perf_counter()

        def others() -> None:
            while True:  # once at least, however late this thread begins
                self.other()
                self.moved += self.rows
                if stop.is_set():
                    return

        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(others)
            try:
                while calls == 0 or time.perf_counter() - start < seconds:
                    self.function()
                    calls += 1
                took = time.perf_counter() - start
            finally:
                stop.set()
            other.result()
        self.seconds += took
        self.extra["other_thread_per_second"] = self.moved / self.seconds
        return took / calls


@functools.cache
def data_of(name: str) -> Data:
    """The transitions of :mod:`benchmarks.peers.replay.transitions`, made once."""
    return transitions.WORKS[name]()


@functools.cache
def rotated(name: str) -> list[Data]:
    """The transitions of ``name`` so often that, appended in turns, no cache holds them when their turn comes again.

    Cameras alone: a caller's states are in a cache when it appends them.
    """
    source = data_of(name)
    bytes_once = len(source.steps["rewards"]) * (source.transition_bytes - source.observation_bytes)
    copies = -(-BEYOND_CACHES // bytes_once) if name == "cameras" else 1
    return [source, *(transitions.WORKS[name]() for _ in range(copies - 1))]


def with_cameras(count: int) -> Data:
    """The transitions with so many cameras; beyond two, they see what the first two see."""
    source = data_of("cameras")

    def seen(observations: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        frames = [observations["front"], observations["wrist"]]
        names = ("front", "wrist", "third", "fourth")
        return {name: frames[k % 2] for k, name in enumerate(names[:count])} | {"state": observations["state"]}

    steps = {key: seen(column) if isinstance(column, dict) else column for key, column in source.steps.items()}
    return Data("cameras", steps, sum(array[0].nbytes for array in steps["observations"].values()))


def filled(name: str, source: Data, capacity: int, order: str = "uniform") -> Any:
    """A store in which every place has been written."""
    store = STORES[name](source, order, capacity)
    rows = min(len(source.steps["rewards"]), capacity // EPISODE * EPISODE or capacity)
    everything = store.block(block(source.steps, 0, rows))
    for _ in range(-(-capacity // rows)):
        store.extend(everything)
    return store


def grown_apart(name: str, data: str, capacity: int) -> float:
    """:func:`grown` in a process of its own, whose memory nobody used before."""
    code = "import sys; from benchmarks.replay_pair import grown; print(grown(*sys.argv[1:3], int(sys.argv[3])))"
    given = [sys.executable, "-c", code, name, data, str(capacity)]
    root = Path(__file__).parents[1]
    return float(subprocess.run(given, cwd=root, capture_output=True, text=True, check=True).stdout.split()[-1])


def grown(name: str, data: str, capacity: int) -> float:
    """Bytes of resident memory that a transition of a full store takes."""
    filled(name, data_of(data), EPISODE)  # imports and first calls are not the store's memory
    before = resident_bytes()
    store = filled(name, data_of(data), capacity)
    return (resident_bytes() - before) / count(store)


def resident_bytes() -> int:
    """Of this process."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
