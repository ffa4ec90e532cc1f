"""One replay store in a process of its own, measured on request: python -m benchmarks.replay_worker NAME WORK ORDER.

Requests and answers are lines of JSON on standard input and output; ``replay_peers`` writes and reads them. A process
of its own keeps the stores' libraries, thread pools and memory apart.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import replay_adapters_arrays as arrays
from benchmarks import replay_adapters_frameworks as frameworks
from benchmarks.children import Unsupported, answers_alone, serve
from benchmarks.replay_adapters import NumPy, NumPyRows, SerlFast, Store, one_thread
from benchmarks.replay_work import BLOCK, EPISODE, N_STEP, WORKS, block, transition, wrong_rows

# Names before a comma are looked up here; what follows the comma is how the store is run.
STORES: dict[str, type[Store]] = {
    "serl_fast": SerlFast,
    "NumPy": NumPy,
    "NumPy rows": NumPyRows,
    "rlox": arrays.Rlox,
    "cpprb": arrays.Cpprb,
    "Stable-Baselines3": arrays.StableBaselines3,
    "LeRobot": arrays.LeRobot,
    "Tianshou": frameworks.Tianshou,
    "TorchRL": frameworks.TorchRL,
    "flashbax": frameworks.Flashbax,
    "Reverb": frameworks.Reverb,
}
MANY_ENVIRONMENTS = (arrays.StableBaselines3, frameworks.Tianshou)  # their append of many goes to another store
TURN = 8  # transitions between two looks at the clock or the stop signal
SMALL = 512  # rows of the store in which readers and the writer meet often


class Worker:
    """The store, the data and what can be measured."""

    def __init__(self, name: str, work: str, order: str) -> None:
        self.name, self.order = name, order
        self.kind = STORES[name.partition(",")[0]]
        self.work = WORKS[work]()
        self.n_step = N_STEP if order == "n_step" else 1

    def build(self, capacity: int) -> dict[str, Any]:
        """Make the store, fill it, check a batch; bytes of resident memory per transition."""
        kind = self.kind
        capacity = min(capacity, kind.fill_limit)
        if kind is SerlFast and self.name.endswith("1 thread"):
            one_thread()
        self.items = self._prepared(kind)  # makes a store: imports and first calls are not the measured one's memory
        before, start = resident_bytes(), time.perf_counter()
        self.store = kind(self.work, self.order, capacity)
        with one_torch_thread():
            self._fill(self.store, capacity)
        bytes_per_row = (resident_bytes() - before) / capacity
        seconds = time.perf_counter() - start
        gc.freeze()  # the libraries' objects need not be looked through before every round
        self.turns = itertools.cycle(self.items)
        return {
            "version": version(kind.package),
            "note": kind.note,
            "capacity": capacity,
            "bytes": bytes_per_row,
            "seconds": seconds,
            "wrong": self._wrong(self.store, 16),
        }

    def rate(self, task: str, rows: int, seconds: float) -> dict[str, float]:
        """Rows a second."""
        return {"rate": rows * calls_per_second(self.function(task, rows), seconds)}

    def concurrent(self, rows: int, seconds: float) -> dict[str, float]:
        """Rows a second of one thread that appends and one that samples, both at full speed."""
        self._require_shared()
        try:
            sample = self.function("into", rows)
        except Unsupported:
            sample = self.function("fresh", rows)
        with Appender(self.store, self.turns) as appender:
            sampled = calls_per_second(sample, seconds)
        return {"append": appender.rate, "sample": rows * sampled}

    def torn(self, seconds: float) -> dict[str, float]:
        """The share of sampled rows that were never stored, alone and while another thread appends."""
        self._require_shared()
        store = self.kind(self.work, self.order, SMALL)
        self._fill(store, SMALL)
        alone = self._wrong(store, 200)
        sample, wrong, calls = store.fresh(256), 0, 0
        with Appender(store, itertools.cycle(self.items)):
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                wrong += wrong_rows(store.parts(sample()), self.n_step)
                calls += 1
        return {"alone": alone, "concurrent": wrong / (256 * calls), "rows": 256 * calls}

    def _require_shared(self) -> None:
        if self.kind is frameworks.Flashbax:
            raise Unsupported("its state is a value that one thread passes on")

    def _prepared(self, kind: type[Store]) -> list[Any]:
        store = kind(self.work, self.order, TURN)
        rows = len(self.work.steps["rewards"])
        return [
            [store.item(transition(self.work.steps, row)) for row in range(start, start + EPISODE)]
            for start in range(0, rows, EPISODE)
        ]

    def _fill(self, store: Store, capacity: int) -> None:
        # Whole episodes until nothing is empty: every page has been written then.
        episodes = -(-capacity // EPISODE)
        try:
            if self.kind in MANY_ENVIRONMENTS:
                raise Unsupported("adds many as one step of many environments")
            # Never more than it holds: a call that writes a place twice leaves it to the library which comes last.
            rows = min(len(self.work.steps["rewards"]), capacity // EPISODE * EPISODE or capacity)
            everything = store.block(block(self.work.steps, 0, rows))
            for _ in range(-(-capacity // rows)):
                store.extend(everything)
        except Unsupported:
            for part in itertools.islice(itertools.cycle(self.items), episodes):
                store.append(part)

    def _starts(self) -> range:
        return range(0, len(self.work.steps["rewards"]), BLOCK)

    def _wrong(self, store: Store, batches: int) -> float | None:
        sample = store.fresh(256)
        try:
            return sum(wrong_rows(store.parts(sample()), self.n_step) for _ in range(batches)) / (256 * batches)
        except Unsupported:
            return None

    def function(self, task: str, rows: int) -> Callable[[], Any]:
        """What a task calls, made once: batches are reused between rounds."""
        key = f"_{task}_{rows}"
        if key not in self.__dict__:
            self.__dict__[key] = function = self._made(task, rows)
            for _ in range(3):
                function()
        return self.__dict__[key]

    def _made(self, task: str, rows: int) -> Callable[[], Any]:
        if task == "append":
            return lambda: self.store.append(next(self.turns))
        if task == "append_fast":
            starts = range(0, len(self.work.steps["rewards"]), EPISODE)
            episodes = [[self.store.fast_item(transition(self.work.steps, s + t)) for t in range(rows)] for s in starts]
            turns = itertools.cycle(episodes)
            return lambda: self.store.append_fast(next(turns))
        if task == "extend":
            blocks = itertools.cycle([self.store.block(block(self.work.steps, s, rows)) for s in self._starts()])
            if self.kind in MANY_ENVIRONMENTS:
                for _ in range(self.store.capacity // BLOCK):
                    self.store.extend(next(blocks))
            return lambda: self.store.extend(next(blocks))
        if task == "prioritise":
            sample, priorities = self.function("fresh", rows), np.random.default_rng(0).random(rows).astype(np.float32)
            return lambda: self.store.prioritise(sample(), priorities)
        return {"fresh": self.store.fresh, "into": self.store.into}[task](rows)


class Appender(threading.Thread):
    """Appends episodes from ``turns`` until the block is left; then ``rate`` holds its rows a second."""

    def __init__(self, store: Store, turns: Any) -> None:
        super().__init__(daemon=True)
        self.store, self.turns = store, turns
        self.stop, self.error, self.rate = threading.Event(), None, 0.0

    def run(self) -> None:
        rows, start = 0, time.perf_counter()
        try:
            while not self.stop.is_set():
                items = next(self.turns)
                for first in range(0, len(items), TURN):
                    self.store.append(items[first : first + TURN])
                    rows += TURN
                    if self.stop.is_set():  # a slow store must not append on alone
                        break
        except Exception as error:
            self.error = error
        self.rate = rows / (time.perf_counter() - start)

    def __enter__(self) -> Appender:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop.set()
        self.join()
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Stores are filled all at once: threads that spin for each other would make that take minutes."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    if torch:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(threads)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of this repository"


def calls_per_second(function: Callable[[], Any], seconds: float) -> float:
    gc.collect()
    gc.disable()
    try:
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            function()
            calls += 1
        return calls / elapsed
    finally:
        gc.enable()


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    answers = answers_alone()
    serve(Worker(*sys.argv[1:]), answers)
    os._exit(0)  # servers and prefetching threads would hold the process
