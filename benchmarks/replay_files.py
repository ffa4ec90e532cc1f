"""How long stores on disk take: ``python benchmarks/replay_files.py FOLDER [TRANSITIONS]``; not run by pytest.

Needs 49 KB a transition in FOLDER. With the right to drop the system's file cache, opening is also timed without it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from serl_fast.replay import ReplayStore, Schema

FRAMES = np.random.default_rng(0).integers(0, 256, (50, 128, 128, 3), np.uint8)
STATES = np.arange(50 * 14, dtype=np.float32).reshape(50, 14)
ACTION = np.zeros(7, np.float32)


def schema() -> Schema:
    """One camera and a state."""
    observation = {"front": FRAMES[0], "state": STATES[0]}
    return Schema.from_example(
        {
            "observations": observation,
            "next_observations": observation,
            "actions": ACTION,
            "rewards": 0.0,
            "terminated": False,
            "truncated": False,
        }
    )


def fill(store: ReplayStore, transitions: int) -> None:
    """Append that many, one by one."""
    append = store.appender()
    for at in range(transitions):
        now, after = at % 50, (at + 1) % 50
        append(FRAMES[now], STATES[now], FRAMES[after], STATES[after], ACTION, float(at), False, False)


def timed(what: str, work: Callable[[], object]) -> None:
    """Print what some work takes."""
    start = time.perf_counter()
    work()
    print(f"{what}: {1e3 * (time.perf_counter() - start):.0f} ms", flush=True)


def in_child(work: Callable[[], object]) -> None:
    """Do it in a process that ends at once afterwards, as a killed one does."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    os.waitpid(child, 0)


def drop_cache() -> bool:
    """Whether the system has forgotten what is in files."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def reopen(path: Path, where: str) -> None:
    """Time opening and the first batch, for reading and for writing."""
    for mode in ("r", "a"):
        if where == "cold" and not drop_cache():
            return
        stores: list[ReplayStore] = []
        timed(f"open, mode {mode}, {where}", lambda: stores.append(ReplayStore.open(path, mode=mode)))  # noqa: B023
        timed(f"first batch of 256, mode {mode}, {where}", lambda: stores[0].sample(256))  # noqa: B023
        stores[0].close()


def main() -> None:
    """Fill a store, end without closing it, open it again; snapshots of a store in memory."""
    folder, transitions = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200_000
    path = folder / "replay_files"
    shutil.rmtree(path, ignore_errors=True)
    in_child(
        lambda: timed(
            f"append {transitions} transitions",
            lambda: fill(ReplayStore.open(path, schema(), transitions), transitions),
        )
    )
    for where in ("warm", "cold"):  # the files are in memory after they were written
        in_child(lambda: reopen(path, where))  # noqa: B023
    shutil.rmtree(path)
    memory = ReplayStore(schema(), 21_845)
    fill(memory, 21_845)
    for _ in range(3):
        timed(f"snapshot of {memory.nbytes / 1e9:.2f} GB", lambda: memory.snapshot(path))
    timed("load it", lambda: ReplayStore.load(path))
    shutil.rmtree(path)


if __name__ == "__main__":
    main()
