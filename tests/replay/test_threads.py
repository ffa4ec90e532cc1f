"""Appending and sampling at once: no torn transition, and nobody starves."""

from __future__ import annotations

import threading
import time

import numpy as np

from serl_fast.replay import Mixture, ReplayStore

SECONDS = 3.0


def test_no_transition_is_ever_torn(step):
    store = ReplayStore.from_example(step(0), 23)
    store.append(step(0))
    mixture = Mixture([store, store])
    stop, problems, counts = threading.Event(), [], {"append": 0, "extend": 0, "sample": 0, "state": 0}

    def guarded(name, work):
        def run():
            try:
                while not stop.is_set():
                    work(counts[name])
                    counts[name] += 1
            except BaseException as error:
                problems.append((name, error))
                stop.set()

        return threading.Thread(target=run)

    def append(n):
        store.append(step(n, terminated=n % 11 == 10))

    def extend(n):
        times = np.arange(5) + 1_000_000 + 7 * n
        look, after = (
            {
                "front": np.broadcast_to((t % 256).astype(np.uint8)[:, None, None, None], (5, 4, 5, 3)),
                "state": np.broadcast_to(t.astype(np.float32)[:, None], (5, 6)),
            }
            for t in (times, times + 1)
        )
        ends = {"terminated": np.zeros(5, bool), "truncated": np.zeros(5, bool)}
        actions = np.stack([times, times], 1).astype(np.float32)
        rewards = times.astype(np.float32)
        store.extend({"observations": look, "next_observations": after, "actions": actions, "rewards": rewards, **ends})

    def sample(n):
        batch = mixture.sample(32)
        times = batch["rewards"]
        assert (batch["actions"] == times[:, None]).all()
        for key, shift in (("observations", 0), ("next_observations", 1)):
            assert (batch[key]["state"] == (times + shift)[:, None]).all()
            assert (batch[key]["front"].reshape(32, -1) == ((times + shift) % 256)[:, None]).all()

    def state(n):
        ReplayStore.from_example(step(0), 23).load_state_dict(store.state_dict())

    threads = [guarded(*job) for job in (("append", append), ("extend", extend), ("state", state))]
    threads += [guarded("sample", sample) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert store.appended == 1 + counts["append"] + 5 * counts["extend"]
    assert all(count > 50 for count in counts.values()), counts


def test_the_thread_that_samples_does_not_change_the_batch(step):
    def batches(count):
        store = ReplayStore.from_example(step(0), 50, seed=2)
        for t in range(50):
            store.append(step(t))
        drawn, lock = [], threading.Lock()

        def work():
            for _ in range(12 // count):
                rewards = store.sample(16)["rewards"].tolist()
                with lock:
                    drawn.append(rewards)

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(drawn)

    assert batches(1) == batches(4)
