"""Replay stores in processes of their own, asked in turns."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.children import Child, built_children

FILL_LIMIT = 400.0  # seconds


def filled_children(
    names: Sequence[str], pythons: dict[str, str], work: str, order: str, capacity: int
) -> tuple[list[Child], dict[str, str]]:
    """Processes with a filled store each, and why the others have none."""
    started = []
    for name in names:
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3"} | ({"OMP_NUM_THREADS": "1"} if name.endswith("1 thread") else {})
        python = pythons.get(name, sys.executable)
        started.append(Child(name, "benchmarks.replay_worker", [name, work, order], python, environment))
    return built_children(started, FILL_LIMIT, capacity=capacity)
