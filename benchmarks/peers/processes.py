"""The processes that a case measures in turns: which interpreter each gets, what was built, why some are missing."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.children import Child, built_children, interpreter
from benchmarks.peers.replay import store_kind
from benchmarks.peers.update import learner_kind
from benchmarks.suite import Run

FILL_LIMIT, BUILD_LIMIT = 400.0, 600.0  # seconds; all of a case fill or compile at once
OURS = ("serl_fast", "NumPy", "matrix products alone")


@dataclass
class Group:
    """Children that are alive together.

    Attributes:
        children: by name, those that were built.
        why: by name, the reason of the others.
        scratch: folder that is removed with them.
    """

    children: dict[str, Child]
    why: dict[str, str]
    scratch: Path | None = None
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def close(self) -> None:
        for child in self.children.values():
            child.close()
        self.children.clear()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


_open: dict[Hashable, Group] = {}


def close_all() -> None:
    """End every process."""
    while _open:
        _open.popitem()[1].close()


atexit.register(close_all)


def pythons(run: Run) -> list[str]:
    """Interpreters in the order in which a package is looked for: ``--peers`` (several by ":"), then this one."""
    given = [] if run.peers_python is None else run.peers_python.split(os.pathsep)
    return [*given, sys.executable]


def stores(run: Run, names: Sequence[str], work: str, order: str, capacity: int) -> Group:
    """Filled replay stores. They stay for the next case of the same kind: filling takes longer than measuring."""
    key = ("replay", tuple(names), work, order, capacity, run.peers_python)
    if key not in _open:
        close_all()
        kinds = {name: (store_kind(name, order).modules, [name, work, order]) for name in names}
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
        environments = {name: quiet | ({"OMP_NUM_THREADS": "1"} if name.endswith("1 thread") else {}) for name in names}
        _open[key] = _started(run, "benchmarks.peers.replay.worker", kinds, environments, FILL_LIMIT, capacity=capacity)
    return _open[key]


def learners(run: Run, names: Sequence[str], threads: int) -> Group:
    """Learners that are pinned to as many cores as they have threads, checked and warmed up."""
    close_all()
    scratch = Path(tempfile.mkdtemp())  # compiled code is made for a number of threads
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch),
        "JAX_PLATFORMS": "cpu",
    }
    kinds = {name: (learner_kind(name).modules, [name, str(threads)]) for name in names}
    environments = dict.fromkeys(names, environment)
    group = _started(run, "benchmarks.peers.update.worker", kinds, environments, BUILD_LIMIT)
    group.scratch = scratch
    _open["update", threads] = group
    return group


def _started(
    run: Run,
    module: str,
    kinds: Mapping[str, tuple[Sequence[str], list[str]]],
    environments: Mapping[str, Mapping[str, str]],
    limit: float,
    **request: Any,
) -> Group:
    started, why = [], {}
    for name, (modules, arguments) in kinds.items():
        python = interpreter(modules, [sys.executable] if name.startswith(OURS) else pythons(run))
        if python is None:
            why[name] = f"not installed ({' and '.join(modules)} not found together in {_said(run)})"
        else:
            started.append(Child(name, module, arguments, python, environments[name]))
    alive, failed = built_children(started, limit, **request)
    return Group({child.name: child for child in alive}, why | failed)


def _said(run: Run) -> str:
    return "an interpreter of --peers or this one" if run.peers_python else "this interpreter; --peers names another"
