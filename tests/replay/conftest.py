"""Transitions whose every number can be told from their time."""

from __future__ import annotations

import numpy as np
import pytest

from serl_fast.replay import ReplayStore
from serl_fast.replay.reference import NumpyReplayStore


def observation(time: int) -> dict[str, np.ndarray]:
    return {"front": np.full((4, 5, 3), time % 256, np.uint8), "state": np.full(6, time, np.float32)}


def make_step(time: int, terminated: bool = False, truncated: bool = False, **changes):
    step = {
        "observations": observation(time),
        "next_observations": observation(time + 1),
        "actions": np.full(2, time, np.float32),
        "rewards": float(time),
        "terminated": terminated,
        "truncated": truncated,
    }
    return {**step, **changes}


@pytest.fixture
def step():
    """step(time, terminated, truncated, **changes): the transition from `time` to `time` + 1."""
    return make_step


@pytest.fixture
def check():
    """check(batch, times): every row of the batch is the transition from times[row]."""

    def check_batch(batch, times):
        times = np.asarray(times)
        np.testing.assert_array_equal(batch["rewards"], times)
        for key, shift in (("observations", 0), ("next_observations", 1)):
            for row, time in enumerate(times + shift):
                for name, wanted in observation(time).items():
                    np.testing.assert_array_equal(batch[key][name][row], wanted, f"{key}/{name} at {time}")
        np.testing.assert_array_equal(batch["actions"], np.stack([times, times], 1))
        np.testing.assert_array_equal(batch["masks"], 1.0 - batch["terminated"])

    return check_batch


@pytest.fixture(params=["native", "numpy"])
def make(request):
    """make(capacity, times, ends, **kwargs): a store of the steps at these times; reward = time."""

    def filled(capacity, times=(), terminated=(), truncated=(), seed=0, **kwargs):
        store = ReplayStore.from_example(make_step(0), capacity, seed, **kwargs)
        if request.param == "numpy":
            store = NumpyReplayStore(store.schema, capacity, seed)
        for time in times:
            store.append(make_step(time, terminated=time in terminated, truncated=time in truncated))
        return store

    return filled
