"""One package's learner in a process of its own: python -m benchmarks.peers.update.worker NAME THREADS.

Every learner gets the same cores: the process is pinned to as many as it has threads, and ``OMP_NUM_THREADS`` says the
same number, which torch, MKL and oneDNN obey; XLA makes as many threads as the process may use cores. XLA has to be
pinned before it starts; torch is pinned once it has compiled.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

from benchmarks.children import Unsupported, answers_alone, calls_per_second, serve, version
from benchmarks.peers import settings
from benchmarks.peers.update import LIMIT, ONEDNN, learner_kind, task
from benchmarks.peers.update.learner import same_work

LEAST_GFLOP = 0.6
"""What one update takes: 0.609 in products of float32 matrices, of which nobody can leave out a noticeable part."""

WARM_UP = 3


class Worker:
    """The learner and what can be asked of it."""

    def __init__(self, name: str, threads: str) -> None:
        self.name, self.threads = name, int(threads)
        self.kind = learner_kind(name)
        if "jax" in self.kind.modules:
            pin(self.threads)

    def build(self) -> dict[str, Any]:
        """Make it, check that it does the same work, fill its replay and warm it up.

        Raises:
            Unsupported: it does not do the same work.
        """
        learner = self.learner = self.kind()
        package = learner.package
        answer: dict[str, Any] = {"package": package, "version": version(package), "settings": settings(self.kind)}
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
        return answer

    def rate(self, seconds: float) -> dict[str, float]:
        """Updates a second."""
        return {"rate": self.learner.updates * calls_per_second(self.learner.call, seconds)}


def pin(cores: int) -> None:
    """Keep every thread of this process on the first ``cores`` of its cores."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), allowed)


if __name__ == "__main__":
    answers = answers_alone()
    serve(Worker(*sys.argv[1:]), answers)
    os._exit(0)  # compile workers and thread pools would hold the process
