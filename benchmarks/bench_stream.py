"""Batches drawn ahead beside batches drawn when they are needed: pytest benchmarks/bench_stream.py --benchmark-only.

A round is one batch and the work done with it. "busy" work keeps a core, as an update on the CPU does; "waiting" work
leaves it free, as an update on another device does. Subtract the work from a round to get what a batch costs.
"""

from __future__ import annotations

import time

import pytest

from benchmarks.bench_replay import BATCH, CAMERAS, STATES, filled
from serl_fast.replay import BatchStream, Mixture, ReplayStore


def busy(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


WORK = [
    pytest.param(STATES, busy, 20e-6, id="states, busy for 20 us"),
    pytest.param(STATES, time.sleep, 200e-6, id="states, waiting for 200 us"),
    pytest.param(CAMERAS, busy, 5e-3, id="cameras, busy for 5 ms"),
    pytest.param(CAMERAS, time.sleep, 5e-3, id="cameras, waiting for 5 ms"),
]


@pytest.mark.parametrize(("data", "work", "seconds"), WORK)
@pytest.mark.parametrize("ahead", [False, True], ids=["direct", "ahead"])
def test_batch_and_work(benchmark, request, data, work, seconds, ahead):
    benchmark.group = request.node.callspec.id.split("-")[-1]
    mixture = Mixture([filled(ReplayStore, data)], (1.0,))
    if not ahead:
        batch = mixture.empty_batch(BATCH)

        def step():
            mixture.sample_into(batch)
            work(seconds)

        benchmark.pedantic(step, rounds=300, warmup_rounds=20)
        return
    with BatchStream(mixture, BATCH) as stream:

        def step_ahead():
            taken = stream.next()
            work(seconds)
            return len(taken)

        benchmark.pedantic(step_ahead, rounds=300, warmup_rounds=20)
