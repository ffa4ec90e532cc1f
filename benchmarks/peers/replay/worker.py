"""One replay store in a process of its own: python -m benchmarks.peers.replay.worker NAME WORK ORDER.

Requests and answers are lines of JSON on standard input and output, see :mod:`benchmarks.children`.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import Unsupported, answers_alone, calls_per_second, serve, version
from benchmarks.peers import settings
from benchmarks.peers.replay import store_kind
from benchmarks.peers.replay.check import ROWS, check, check_append, check_extend, delivered
from benchmarks.peers.replay.store import Store
from benchmarks.peers.replay.transitions import BLOCK, EPISODE, N_STEP, WORKS, block, transition, wrong_rows

TURN = 8  # transitions between two looks at the clock or the stop signal
SMALL = 512  # rows of the store in which readers and the writer meet often


class Worker:
    """The store, the data and what can be measured."""

    def __init__(self, name: str, work: str, order: str) -> None:
        self.name, self.order = name, order
        self.kind = store_kind(name, order)
        self.work = WORKS[work]()
        self.n_step = N_STEP if order == "n_step" else 1
        self.functions: dict[tuple[str, int], Callable[[], Any]] = {}

    def build(self, capacity: int) -> dict[str, Any]:
        """Make the store, fill it and look at what it delivers; bytes of resident memory per transition.

        Raises:
            Unsupported: it does other work.
        """
        kind = self.kind
        capacity = min(capacity, kind.fill_limit)
        if self.name == "serl_fast, 1 thread":
            from benchmarks.peers.replay.ours import one_thread

            one_thread()
        self.items = self._prepared()  # makes a store: imports and first calls are not the measured one's memory
        before = resident_bytes()
        self.store = kind(self.work, self.order, capacity)
        with one_torch_thread():
            self._fill(self.store, capacity)
            bytes_per_row = (resident_bytes() - before) / capacity
            found = check(self.store, self.n_step)
            if self.order == "uniform":
                check_append(self._small(), "append", self.items)
        lacks = kind.lacks.get(self.order, ())
        gc.freeze()  # the libraries' objects need not be looked through before every round
        self.turns = itertools.cycle(self.items)
        return {
            "package": kind.package,
            "version": version(kind.package),
            "settings": settings(kind) + (f" Its batches hold no {', '.join(lacks)}." if lacks else ""),
            "capacity": capacity,
            "bytes": bytes_per_row,
            "wrong": found.wrong,
        }

    def prepare(self, task: str, rows: int) -> dict[str, Any]:
        """Warm a task up; one that is not offered, or fails, is found out here and not while it is measured."""
        with one_torch_thread():
            if task == "append_fast":
                check_append(self._small(), task, self._fast_items())
            if task == "extend":
                check_extend(self._small(), self._blocks(rows))
            self.rate(task, rows, 0.0)
        return {}

    def rate(self, task: str, rows: int, seconds: float) -> dict[str, float]:
        """Rows a second; of "concurrent" those of one thread that appends and one that samples, both at full speed."""
        if task != "concurrent":
            return {"rate": rows * calls_per_second(self.function(task, rows), seconds)}
        self._require_shared()
        try:
            sample = self.function("into", rows)
        except Unsupported:
            sample = self.function("fresh", rows)
        with Appender(self.store, self.turns) as appender:
            sampled = calls_per_second(sample, max(seconds, 0.05))
        return {"append": appender.rate, "sample": rows * sampled}

    def torn(self, seconds: float) -> dict[str, float]:
        """The share of sampled rows that were never stored, alone and while another thread appends."""
        self._require_shared()
        store = self.kind(self.work, self.order, SMALL)
        self._fill(store, SMALL)
        sample, wrong, calls = store.fresh(ROWS), 0, 0
        alone = delivered(store, sample, self.n_step).wrong
        with Appender(store, itertools.cycle(self.items)):
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                wrong += wrong_rows(self.work, store.parts(sample()), self.n_step)
                calls += 1
        return {"alone": alone, "concurrent": wrong / (ROWS * calls), "rows": ROWS * calls}

    def _require_shared(self) -> None:
        if self.kind.one_thread:
            raise Unsupported("its state is a value that one thread passes on")

    def _small(self) -> Store:
        return self.kind(self.work, self.order, 2 * EPISODE)

    def _episodes(self) -> range:
        return range(0, len(self.work.steps["rewards"]), EPISODE)

    def _prepared(self) -> list[Any]:
        store, steps = self.kind(self.work, self.order, TURN), self.work.steps
        return [
            [store.item(transition(steps, row)) for row in range(start, start + EPISODE)] for start in self._episodes()
        ]

    def _fast_items(self) -> list[Any]:
        steps = self.work.steps
        return [
            [self.store.fast_item(transition(steps, row)) for row in range(start, start + EPISODE)]
            for start in self._episodes()
        ]

    def _blocks(self, rows: int) -> list[Any]:
        starts = range(0, len(self.work.steps["rewards"]), BLOCK)
        return [self.store.block(block(self.work.steps, start, rows)) for start in starts]

    def _fill(self, store: Store, capacity: int) -> None:
        # Whole episodes until nothing is empty: every page has been written then.
        episodes = -(-capacity // EPISODE)
        try:
            if self.kind.many_environments:
                raise Unsupported("adds many as one step of many environments")
            # Never more than it holds: a call that writes a place twice leaves it to the library which comes last.
            rows = min(len(self.work.steps["rewards"]), capacity // EPISODE * EPISODE or capacity)
            everything = store.block(block(self.work.steps, 0, rows))
            for _ in range(-(-capacity // rows)):
                store.extend(everything)
        except Unsupported:
            for part in itertools.islice(itertools.cycle(self.items), episodes):
                store.append(part)

    def function(self, task: str, rows: int) -> Callable[[], Any]:
        """What a task calls, made once: batches are reused between rounds."""
        key = (task, rows)
        if key not in self.functions:
            function = self._made(task, rows)
            for _ in range(3):
                function()
            self.functions[key] = function
        return self.functions[key]

    def _made(self, task: str, rows: int) -> Callable[[], Any]:
        if task == "append":
            return lambda: self.store.append(next(self.turns))
        if task == "append_fast":
            turns = itertools.cycle(self._fast_items())
            return lambda: self.store.append_fast(next(turns))
        if task == "extend":
            blocks = itertools.cycle(self._blocks(rows))
            if self.kind.many_environments:
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
            while not (rows and self.stop.is_set()):  # some at least, however late this thread begins
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


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    answers = answers_alone()
    serve(Worker(*sys.argv[1:]), answers)
    os._exit(0)  # servers and prefetching threads would hold the process
