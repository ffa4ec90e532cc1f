"""The replay store beside its NumPy twin: pytest benchmarks/bench_replay.py --benchmark-only.

Every group holds the same work done by both. The twin keeps each observation twice and reads by fancy indexing,
which is how most replay buffers are written.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from serl_fast.replay import ReplayStore, Schema
from serl_fast.replay.reference import NumpyReplayStore

BATCH = 256
STATES = {"observations": (32,), "capacity": 200_000}
CAMERAS = {"observations": {"front": (128, 128, 3), "wrist": (128, 128, 3), "state": (14,)}, "capacity": 3_000}
STORES = pytest.mark.parametrize("kind", [ReplayStore, NumpyReplayStore], ids=["native", "numpy"])


def arrays(shape, time):
    if isinstance(shape, dict):
        return {key: arrays(child, time) for key, child in shape.items()}
    return np.full(shape, time % 200, np.uint8 if len(shape) == 3 else np.float32)


def episode(work, length):
    seen = [arrays(work["observations"], time) for time in range(length + 1)]
    return [
        {
            "observations": seen[time],
            "next_observations": seen[time + 1],
            "actions": np.full(7, time, np.float32),
            "rewards": 0.0,
            "terminated": False,
            "truncated": time == length - 1,
        }
        for time in range(length)
    ]


def filled(kind, work):
    transitions = episode(work, 100)
    store = kind(Schema.from_example(transitions[0]), work["capacity"], 0)
    for transition in itertools.islice(itertools.cycle(transitions), work["capacity"]):
        store.append(transition)
    return store


@pytest.mark.parametrize("work", [STATES, CAMERAS], ids=["states", "cameras"])
@STORES
def test_append_one(benchmark, kind, work):
    benchmark.group = f"append one, {'cameras' if work is CAMERAS else 'states'}"
    store = filled(kind, {**work, "capacity": 2_000})  # every page has been touched once
    transitions = itertools.cycle(episode(work, 100))
    benchmark(lambda: store.append(next(transitions)))


@STORES
def test_sample_states(benchmark, kind):
    benchmark.group = f"sample {BATCH} of states"
    store = filled(kind, STATES)
    benchmark(store.sample, BATCH)


@pytest.mark.parametrize("work", [STATES, CAMERAS], ids=["states", "cameras"])
@STORES
def test_sample_into(benchmark, kind, work):
    benchmark.group = f"sample_into {BATCH} of {'cameras' if work is CAMERAS else 'states'}"
    store = filled(kind, work)
    batch = store.empty_batch(BATCH)
    store.sample_into(batch)
    benchmark(store.sample_into, batch)
    if benchmark.stats is None:  # --benchmark-disable
        return
    bytes_written = BATCH * sum(column.nbytes for column in store.sampler().layout.wanted)
    benchmark.extra_info["gigabytes_per_second"] = bytes_written / benchmark.stats["median"] / 1e9
    benchmark.extra_info["transitions_per_second"] = BATCH / benchmark.stats["median"]
