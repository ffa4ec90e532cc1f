"""Appending, sampling and relabelling at once: no torn transition, and nobody starves.

Every field of a transition carries its number. `python -m pytest -m nightly` stresses for a minute.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from serl_fast.replay import Mixture, ReplayStore

MANY = 9
RANGE = 1_000_000  # writer w counts from w * RANGE; sums of 3 numbers stay exact in float32
EPISODE = 50
LABELS = 1000  # numbers in a label: many, so that half of one would be seen


def looks(times):
    """Observations at these times [N]: a large image, a small one and numbers."""
    bytes_of = (times % 251).astype(np.uint8)
    return {
        "front": np.broadcast_to(bytes_of[:, None, None, None], (len(times), 24, 32, 3)).copy(),
        "side": np.broadcast_to(bytes_of[:, None, None], (len(times), 5, 3)).copy(),
        "state": np.broadcast_to(times[:, None], (len(times), 6)).astype(np.float32),
    }


def columns(start, count):
    times = start + np.arange(count)
    return {
        "observations": looks(times),
        "next_observations": looks(times + 1),
        "actions": np.stack([times, times], 1).astype(np.float32),
        "rewards": times.astype(np.float32),
        "terminated": np.zeros(count, bool),
        "truncated": times % EPISODE == EPISODE - 1,
        "labels": np.stack([times] * LABELS, 1),
    }


def one(start):
    def first(tree):
        return {key: first(value) for key, value in tree.items()} if isinstance(tree, dict) else tree[0]

    return first(columns(start, 1))


def check_look(look, times):
    times = times.reshape(-1)
    expected = looks(times)
    for key, value in look.items():
        given = value.reshape(len(times), -1)
        assert (given == expected[key].reshape(len(times), -1)).all(), f"a torn '{key}'"


def check(batch, n_step=1):
    """Every number belongs to the step of the row; labels are relabelled from n to -n, all or none."""
    labels = batch["labels"]
    assert (labels == labels[..., :1]).all(), "half a label"
    times = np.abs(labels[..., 0])
    look = batch["full_observations"] if times.ndim == 2 else batch["observations"]
    check_look(look, times)
    assert (batch["actions"] == times[..., None]).all()
    last = batch["next_observations"]["state"][..., 0].astype(np.int64) - 1
    check_look(batch["next_observations"], last + 1)
    assert (batch["truncated"] == (last % EPISODE == EPISODE - 1)).all()
    if times.ndim == 2:
        whole = batch["valid"][:, 1:] == 1  # within an episode the numbers follow each other
        assert (np.diff(times, axis=1)[whole] == 1).all()
        return
    steps = last - times + 1
    assert ((steps >= 1) & (steps <= n_step)).all()
    np.testing.assert_array_equal(batch["rewards"], times * steps + steps * (steps - 1) // 2)
    assert (batch["discounts"] == 1.0).all()


class Stress:
    """Threads that work on a small store until the time is over or one of them finds a fault."""

    def __init__(self, capacity=67):
        self.store = ReplayStore.from_example(one(0), capacity)
        self.store.extend(columns(0, 20))
        self.store.prioritize()
        self.stop, self.problems, self.counts = threading.Event(), [], {}
        self.threads = []

    def start(self, name, work):
        def run():
            try:
                while not self.stop.is_set():
                    work(self.counts[name])
                    self.counts[name] += 1
            except BaseException as error:
                self.problems.append((name, error))
                self.stop.set()

        self.counts[name] = 0
        self.threads.append(threading.Thread(target=run))

    def run(self, seconds, rounds=0):
        """For so many seconds, and for three minutes more at most until every thread has done so many rounds."""
        for thread in self.threads:
            thread.start()
        self.stop.wait(seconds)
        patience = time.monotonic() + 180
        while min(self.counts.values()) < rounds and time.monotonic() < patience and not self.stop.wait(0.05):
            pass
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.problems, self.problems

    # --- the work of each kind of thread -------------------------------------------------------------------------

    def write_one(self, writer):
        self.start(f"append {writer}", lambda n: self.store.append(one(writer * RANGE + 100 + n)))

    def write_many(self, writer):
        self.start(f"extend {writer}", lambda n: self.store.extend(columns(writer * RANGE + 100 + n * MANY, MANY)))

    def sample(self, name, **settings):
        sampler = self.store.sampler(1.0, **settings)
        batch = sampler.empty_batch(32)

        def work(n):
            if n % 2:
                sampler.sample_into(batch)
                check(batch, settings.get("n_step", 1))
            else:
                check(sampler.sample(7), settings.get("n_step", 1))
            if sampler.order == "prioritized" and n % 2:
                assert (batch["weights"] <= 1).all()
                self.store.update_priorities(batch["ids"], np.full(32, n % 5))

        self.start(name, work)

    def relabel(self):
        sampler = self.store.sampler(fields=["labels"], ids=True)

        def work(n):
            batch = sampler.batch_at(range(len(self.store)))
            self.store.relabel("labels", batch["ids"], -batch["labels"])

        self.start("relabel", work)

    def copy(self):
        def work(n):
            other = ReplayStore.from_example(one(0), self.store.capacity)
            other.load_state_dict(self.store.state_dict())
            check(other.sampler(1.0).batch_at(range(len(other))))
            time.sleep(0.01)

        self.start("copy", work)


def stress(seconds):
    """4 writers, 4 samplers, one who relabels and one who copies."""
    all_of_them = Stress()
    for writer in (0, 1):
        all_of_them.write_one(writer)
        all_of_them.write_many(2 + writer)
    all_of_them.sample("n-step", n_step=3)
    all_of_them.sample("sequences", sequence_length=4)
    all_of_them.sample("padded", sequence_length=6, pad="last", order="epoch")
    all_of_them.sample("prioritized", order="prioritized")
    all_of_them.relabel()
    all_of_them.copy()
    all_of_them.run(seconds, rounds=25)
    counts, store = all_of_them.counts, all_of_them.store
    written = sum(
        count * (MANY if "extend" in name else 1) for name, count in counts.items() if name[:6] in ("append", "extend")
    )
    assert store.appended == 20 + written
    assert len(store) == store.capacity
    starved = {name: count for name, count in counts.items() if count < 25}
    assert not starved, f"{starved} of {counts}"
    return counts


def test_no_transition_is_ever_torn():
    stress(5)


@pytest.mark.nightly
def test_no_transition_is_ever_torn_in_a_minute():
    print(stress(60))


def test_no_transition_of_a_mixture_is_ever_torn():
    threads = Stress(23)
    mixture = Mixture([threads.store, threads.store], discount=1.0)
    threads.write_one(1)
    threads.start("mixture", lambda n: check(mixture.sample(32)))
    threads.start("another mixture", lambda n: check(mixture.sample(8)))
    threads.run(1)


def test_threads_with_different_discounts_get_their_own():
    store = ReplayStore.from_example(one(0), 9)
    store.extend(columns(0, 9))
    threads = Stress()
    for discount in (0.25, 0.5, 0.75):

        def sample(n, discount=discount):
            assert set(store.sample(4, discount)["discounts"].tolist()) == {discount}

        threads.start(str(discount), sample)
    threads.run(0.5)


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


@pytest.mark.parametrize("batch_size", [8, 64])
def test_threads_that_share_an_epoch_take_every_step_once(step, batch_size):
    store = ReplayStore.from_example(step(0), 1000)
    for t in range(1000):
        store.append(step(t))
    sampler = store.sampler(order="epoch", fields=["ids"])
    taken, lock = [], threading.Lock()

    def work():
        for _ in range(1000 // batch_size // 4):
            ids = sampler.sample(batch_size)["ids"].tolist()
            with lock:
                taken.extend(ids)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 1000 // batch_size // 4 * 4 * batch_size
