"""One package's learner in a process of its own: python -m benchmarks.peers.worker NAME THREADS.

``update_peers`` starts it and writes and reads its lines. Every learner gets the same cores: the process is pinned to
as many as it has threads, and ``OMP_NUM_THREADS`` says the same number, which torch, MKL and oneDNN obey; XLA makes as
many threads as the process may use cores. XLA has to be pinned before it starts; torch is pinned once it has compiled.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import os
import sys
import time
from typing import Any

from benchmarks.children import Unsupported, answers_alone, serve
from benchmarks.interleaved import calls_per_second
from benchmarks.peers import task
from benchmarks.peers.learner import Learner, same_work

LIMIT = "matrix products alone"
ONEDNN = "matrix products alone, oneDNN"
LEARNERS = {
    "serl_fast, compiled": "ours:SerlFast",
    "serl_fast, eager": "ours:Eager",
    LIMIT: "ours:Products",
    ONEDNN: "ours:ProductsOneDnn",
    "Stable-Baselines3": "sb3:StableBaselines3",
    "TorchRL": "torchrl_sac:TorchRL",
    "TorchRL, compiled": "torchrl_sac:TorchRLCompiled",
    "minimal JAX": "minimal_jax_sac:MinimalJax",
    "minimal JAX, 20 updates a call": "minimal_jax_sac:MinimalJaxScan",
    "SBX": "sbx_sac:Sbx",
    "SBX, 20 updates a call": "sbx_sac:SbxMany",
}
"""Name -> module of this package and class."""

LEAST_GFLOP = 0.6
"""What one update takes: 0.609 in products of float32 matrices, of which nobody can leave out a noticeable part."""

WARM_UP = 3


class Worker:
    """The learner and what can be asked of it."""

    def __init__(self, name: str, threads: str) -> None:
        self.name, self.threads = name, int(threads)
        if "JAX" in name or "SBX" in name:
            pin(self.threads)

    def build(self) -> dict[str, Any]:
        """Make it, check that it does the same work, fill its replay and warm it up.

        Raises:
            Unsupported: it does not do the same work.
        """
        start = time.perf_counter()
        learner = self.learner = make(self.name)
        answer: dict[str, Any] = {"package": learner.package, "version": version(learner.package), "note": learner.note}
        if self.name not in (LIMIT, ONEDNN):
            check = same_work(learner, LEAST_GFLOP)
            if check.wrong:
                raise Unsupported(f"not the same work: {'; '.join(check.wrong[:3])}")
            answer |= {"parameters": check.parameters, "critic_loss": check.critic_loss, "gflop": check.gflop}
            learner.fill(task.transitions())
        for _ in range(WARM_UP):
            learner.call()
        pin(self.threads)
        gc.freeze()
        return answer | {"seconds": time.perf_counter() - start}

    def rate(self, seconds: float) -> dict[str, float]:
        """Updates a second."""
        gc.collect()
        gc.disable()
        try:
            return {"rate": self.learner.updates * calls_per_second(self.learner.call, seconds)}
        finally:
            gc.enable()


def make(name: str) -> Learner:
    """A learner of :data:`LEARNERS`."""
    module, _, kind = LEARNERS[name].partition(":")
    return getattr(importlib.import_module(f"benchmarks.peers.{module}"), kind)()


def pin(cores: int) -> None:
    """Keep every thread of this process on the first ``cores`` of its cores."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), allowed)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of this repository"


if __name__ == "__main__":
    answers = answers_alone()
    serve(Worker(*sys.argv[1:]), answers)
    os._exit(0)  # compile workers and thread pools would hold the process
