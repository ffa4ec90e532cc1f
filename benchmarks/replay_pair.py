"""What the replay benchmarks measure: our store and its NumPy twin, their data, and that they do the same work."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.replay import transitions
from benchmarks.peers.replay.ours import SerlFast
from benchmarks.peers.replay.store import Store
from benchmarks.peers.replay.transitions import EPISODE, block, wrong_rows
from benchmarks.peers.replay.transitions import Work as Data
from benchmarks.replay_numpy import Twin

OURS, TWIN = "serl_fast", "numpy"
STORES: dict[str, type[Store]] = {OURS: SerlFast, TWIN: Twin}
STATM = Path("/proc/self/statm")  # where Linux says how much memory a process has


def require_same_work(stores: dict[str, Store], functions: dict[str, Callable[[], Any]], n_step: int) -> None:
    """Raise unless every function returns the same arrays, with rows that were stored."""
    arrays = {}
    for name, function in functions.items():
        batch = function()
        if wrong := wrong_rows(stores[name].parts(batch), n_step):
            raise AssertionError(f"{name} returns {wrong} rows that were never stored")
        arrays[name] = {key: (array.shape, array.dtype) for key, array in flattened(batch)}
    first, *others = arrays.values()
    if any(other != first for other in others):
        raise AssertionError(f"the stores return other arrays: {arrays}")


def flattened(batch: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a nested batch; a plain observation is called "state", as the twin calls it."""
    for key, value in batch.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}/")
        else:
            yield prefix + (f"{key}/state" if key in ("observations", "next_observations") else key), value


class BesideAppends:
    """Calls of ``sample`` in this thread while another one appends.

    Args:
        sample: one call.
        append: one call of the other thread, of ``rows`` rows.
        rows: transitions.
        extra: where "appends_per_second" is put, transitions.
    """

    def __init__(
        self, sample: Callable[[], Any], append: Callable[[], Any], rows: int, extra: dict[str, float | str]
    ) -> None:
        self.sample, self.append, self.rows, self.extra = sample, append, rows, extra
        self.appended, self.seconds = 0, 0.0  # of all rounds

    def seconds_per_call(self, seconds: float) -> float:
        """Of sampling; the other thread runs for as long."""
        stop, calls, start = threading.Event(), 0, time.perf_counter()

        def appending() -> None:
            while not stop.is_set():
                self.append()
                self.appended += self.rows

        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(appending)
            try:
                while calls == 0 or time.perf_counter() - start < seconds:
                    self.sample()
                    calls += 1
                took = time.perf_counter() - start
            finally:
                stop.set()
            other.result()
        self.seconds += took
        self.extra["appends_per_second"] = self.appended / self.seconds
        return took / calls


@functools.cache
def data_of(name: str) -> Data:
    """The transitions of :mod:`benchmarks.peers.replay.transitions`, made once."""
    return transitions.WORKS[name]()


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
    return (resident_bytes() - before) / len(store.arrays["rewards"] if isinstance(store, Twin) else store.store)


def resident_bytes() -> int:
    """Of this process."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
