"""A forked process has a copy of a store in memory: it works, or says why not, and never waits for ever."""

from __future__ import annotations

import multiprocessing
import threading

import numpy as np
import pytest

from serl_fast.replay import ReplayStore

pytestmark = [
    pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system has no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def in_child(work):
    """What `work` returns in a forked process, as text; fails where it does not come to an end."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def run():
        try:
            sending.send(str(work()))
        except Exception as error:
            sending.send(f"{type(error).__name__}: {error}")

    child = context.Process(target=run, daemon=True)
    child.start()
    assert receiving.poll(60), "the child hangs"
    result = receiving.recv()
    child.join(60)
    return result


def test_a_child_goes_on_with_its_own_copy(step):
    store = ReplayStore.from_example(step(0), 50)
    for t in range(30):
        store.append(step(t))

    def work():
        for t in range(30, 200):
            store.append(step(t))
        store.relabel("rewards", store[-3:].ids, np.full(3, 7.0))
        return store.appended, store.sample(5)["rewards"].shape, store[-1]["rewards"]

    assert in_child(work) == str((200, (5,), np.float32(7.0)))
    assert store.appended == 30


@pytest.mark.parametrize("busy", ["sampling", "appending", "relabelling"])
def test_a_child_of_a_busy_parent_never_hangs(step, busy):
    store = ReplayStore.from_example(step(0), 60)
    for t in range(60):
        store.append(step(t))
    many = store[0:40].batch(fields=[field.name for field in store.schema.inputs])
    stop = threading.Event()

    def parent():
        while not stop.is_set():
            if busy == "sampling":
                store.sample(256)
            elif busy == "appending":
                store.extend(many)
            else:
                store.relabel("rewards", store[-50:].ids, np.zeros(50))

    thread = threading.Thread(target=parent)
    thread.start()
    try:

        def work():
            store.sample(16)
            for t in range(300):
                store.append(step(t))
            return "done"

        results = {in_child(work) for _ in range(6)}
    finally:
        stop.set()
        thread.join()
    refused = "ValueError: this process was forked while another thread changed the store"
    assert all(result == "done" or result.startswith(refused) for result in results)
    if busy == "sampling":
        assert results == {"done"}
