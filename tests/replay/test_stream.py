"""Batches drawn ahead: the same ones, in memory that nobody overwrites, and no older than promised."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from serl_fast.replay import BatchStream, Mixture, RateLimiter, ReplayStore


@pytest.fixture
def make_store(step):
    """make_store(first, count, capacity): steps first, first + 1, …; the seed is `first`."""

    def make(first=0, count=50, capacity=100):
        store = ReplayStore.from_example(step(0), capacity, seed=first)
        for time_ in range(first, first + count):
            store.append(step(time_))
        return store

    return make


def soon(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def assert_equal(a, b):
    assert list(a) == list(b)
    for key, value in a.items():
        if isinstance(value, dict):
            assert_equal(value, b[key])
        else:
            np.testing.assert_array_equal(value, b[key], key)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["store", "prioritized", "epoch", "sequences", "mixture", "schedule"])
def test_batches_are_those_of_direct_sampling(make_store, kind, threads):
    def source():
        stores = [make_store(0), make_store(1000)]
        if kind == "store":
            return stores[0]
        if kind == "prioritized":
            stores[0].prioritize()
            stores[0].update_priorities(np.arange(50), np.arange(50))
            return stores[0].sampler(order="prioritized")
        if kind == "epoch":
            return stores[0].sampler(order="epoch", ids=True)
        if kind == "sequences":
            return stores[0].sampler(0.9, sequence_length=4)
        shares = (lambda batches: (1 + batches, 1)) if kind == "schedule" else (0.25, 0.75)
        return Mixture(stores, shares, sources=True)

    direct = source()
    with BatchStream(source(), 16, threads=threads) as stream:
        for number, batch in zip(range(40), stream, strict=False):
            assert batch.number == number
            assert_equal(batch, direct.sample(16))


def test_arrays_are_the_slots_memory(make_store):
    with BatchStream(Mixture([make_store()], (1,), sources=True), 16) as stream:
        batch = stream.next()
        address, nbytes = stream.memory
        assert nbytes == 4 * stream.slot_bytes
        arrays = [batch["observations"]["front"], batch["rewards"], batch["sources"]]
        for array in arrays:
            at = array.__array_interface__["data"][0]
            assert address <= at < address + nbytes
            assert at % 64 == 0
            assert array.flags.writeable
        names = [column.name for column in stream.layout.wanted]
        offset = stream.offsets[names.index("rewards")]
        np.testing.assert_array_equal(batch.block[offset : offset + 64].view(np.float32), batch["rewards"])


def test_the_threads_sleep_while_all_slots_are_full(make_store):
    store = make_store()
    with BatchStream(store, 8, slots=4, threads=2) as stream:
        assert soon(lambda: store.draws == 4)
        batches = [stream.next(), stream.next()]
        time.sleep(0.02)
        assert store.draws == 4  # the slots are in use
        batches.clear()
        assert soon(lambda: store.draws == 6)


def test_what_is_kept_is_not_overwritten(make_store):
    with BatchStream(make_store(), 8) as stream:
        first = stream.next()
        kept = first["rewards"][2:4]  # a view is enough
        before = kept.copy()
        del first
        for _ in range(20):
            stream.next()
        np.testing.assert_array_equal(kept, before)
        held = [stream.next() for _ in range(3)]
        with pytest.raises(RuntimeError, match="all 4 slots of the stream hold batches that are still in use"):
            stream.next()
        del held[0]
        stream.next()
    np.testing.assert_array_equal(kept, before)  # also after the end


def test_an_empty_store_is_waited_for(make_store, step):
    store = make_store(count=0)
    with BatchStream(store, 8) as stream:
        with pytest.raises(TimeoutError, match=r"no batch within 0\.02 s; it waits for enough transitions"):
            stream.next(0.02)
        threading.Timer(0.05, lambda: store.append(step(3))).start()
        assert (stream.next(60)["rewards"] == 3).all()
        with pytest.raises(ValueError, match="the timeout is -1"):
            stream.next(-1)


def test_closing_ends_who_waits(make_store):
    stream = BatchStream(make_store(count=0), 8)
    results = []

    def wait():
        with pytest.raises(RuntimeError, match="the stream is closed"):
            stream.next()
        results.append("raised")

    threads = [
        threading.Thread(target=lambda: results.append(list(stream))),  # an iteration ends
        threading.Thread(target=wait),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    stream.close()
    for thread in threads:
        thread.join(60)
    assert len(results) == 2
    stream.close()
    assert stream.closed
    with pytest.raises(RuntimeError, match="the stream is closed"):
        stream.next()


def test_a_stream_may_be_forgotten(make_store):
    store = make_store()
    before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    stream = BatchStream(store, 8, threads=3)
    batch = stream.next()
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None
    if before:
        assert soon(lambda: len(os.listdir("/proc/self/task")) <= before)
    assert len(batch["rewards"]) == 8
    gone_store = weakref.ref(store)
    del store, batch
    gc.collect()
    assert gone_store() is None


def test_errors_of_the_threads_are_carried_over(make_store):
    limiter = RateLimiter(1, 1.0, slack=2)
    limiter.insert(1)
    with BatchStream(make_store(), 64, limiter=limiter) as stream:
        for _ in range(2):
            with pytest.raises(ValueError, match="slack is 2; calls that sample 64 rows"):
                stream.next(60)
    closed = RateLimiter(1, 1.0, slack=1000)
    with BatchStream(make_store(), 64, limiter=closed) as stream:
        closed.close()
        with pytest.raises(RuntimeError, match="the rate limiter is closed"):
            stream.next(60)


def test_errors_of_a_schedule_are_raised_by_next(make_store):
    def shares(batches):
        if batches == 5:
            raise KeyError("no plan")
        return (1.0,)

    with BatchStream(Mixture([make_store()], shares), 8, slots=2) as stream:
        for _ in range(3):
            stream.next()
        with pytest.raises(KeyError, match="no plan"):
            stream.next()


def test_max_behind_bounds_the_age(make_store, step):
    store = make_store()
    with BatchStream(store, 8, max_behind=5) as stream:
        assert soon(lambda: store.draws == 4)
        assert stream.next().appended == (50,)
        for time_ in range(6):
            store.append(step(100 + time_))
        batches = [stream.next() for _ in range(3)]
        assert all(batch.appended == (56,) and batch.behind == (0,) for batch in batches)
        assert stream.drawn_again >= 2
        del batches

        stop = threading.Event()

        def write():
            while not stop.is_set():
                store.append(step(7))
                time.sleep(0.0001)

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(100):
            before = store.appended
            assert stream.next(60).appended[0] >= before - 5
        stop.set()
        writer.join()


def test_without_a_bound_a_batch_knows_what_was_there_when_its_slot_became_free(make_store, step):
    store, known = make_store(capacity=1000), []
    with BatchStream(store, 8, slots=3) as stream:
        for number in range(50):
            batch = stream.next()
            if number >= 3:
                assert batch.appended[0] >= known[number - 3]
            store.append(step(number))
            del batch
            known.append(store.appended - 1)


def test_several_consumers_share_the_batches(make_store):
    numbers = []
    with BatchStream(make_store(), 8, slots=8, threads=2) as stream:

        def consume():
            numbers.extend([stream.next().number for _ in range(50)])

        threads = [threading.Thread(target=consume) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(numbers) == list(range(150))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_is_told(make_store):
    stream = BatchStream(make_store(), 8)
    batch = stream.next()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            stream.next()
        except RuntimeError as error:
            code = 0 if "do not survive a fork" in str(error) else 2
        del batch, stream
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stream.close()
    assert len(batch["rewards"]) == 8


@pytest.fixture
def ctrl_c():
    """A call beside a key press after 0.1 s.

    With Python's own handler, for who runs the tests in the background may have it ignored.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))

    def pressed_during(wait):
        timer.start()
        wait()

    yield pressed_during
    timer.cancel()
    signal.signal(signal.SIGINT, before)


@pytest.mark.timeout(60)
def test_ctrl_c_ends_the_wait(make_store, ctrl_c):
    with BatchStream(make_store(count=0), 8) as stream, pytest.raises(KeyboardInterrupt):
        ctrl_c(stream.next)


def test_impossible_streams(make_store):
    for arguments, message in [
        ({"batch_size": 0}, "batch size: 0 is given"),
        ({"slots": 1}, "slots: 1 is given; it is at least 2"),
        ({"threads": 0}, "threads: 0 is given"),
        ({"threads": 65}, "it has 1 to 64"),
        ({"max_behind": -1}, "max_behind is -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            BatchStream(make_store(), **{"batch_size": 8, **arguments})


def test_the_ratio_is_held(make_store, step):
    """Whichever side is faster: 4 rows sampled per transition, within the slack and what is drawn ahead."""
    for delay in (0.0, 0.0005):
        store = make_store(count=0, capacity=10_000)
        limiter = store.limiter = RateLimiter(20, 4.0, slack=64)
        stop, cursors = threading.Event(), []

        def write(store=store, stop=stop, delay=delay):
            time_ = 0
            with contextlib.suppress(RuntimeError):  # the limiter is closed
                while not stop.is_set():
                    store.append(step(time_))
                    time_ += 1
                    time.sleep(delay)

        writer = threading.Thread(target=write)
        writer.start()
        with BatchStream(store, 32, limiter=limiter) as stream:
            for _ in range(60):
                stream.next(60)
                cursors.append(4.0 * limiter.inserted - limiter.sampled)
        stop.set()
        limiter.close()
        writer.join(60)
        assert not writer.is_alive()
        # Between the two counts' reading the threads may fill the stream's slots.
        assert min(cursors) >= 80 - 64 - 4 * 32
        assert max(cursors) <= 80 + 64 + 64
        assert limiter.sampled == 60 * 32
        assert limiter.inserted == pytest.approx(60 * 32 / 4, abs=80)


def test_failed_inserts_do_not_count(make_store, step):
    store = make_store(count=0)
    store.limiter = limiter = RateLimiter(5, 1.0, slack=100)
    store.append(step(0))
    store.append({**step(1), "rewards": np.float64(1)})  # has to be converted
    store.extend(
        {key: np.stack([step(2)[key]] * 2) for key in ("actions", "rewards", "terminated", "truncated")}
        | {
            key: {name: np.stack([array] * 2) for name, array in step(2)[key].items()}
            for key in ("observations", "next_observations")
        },
        continues=np.array([False, False]),
    )
    assert limiter.inserted == len(store) == 4
    with pytest.raises(ValueError, match="non-finite"):
        store.append({**step(4), "rewards": float("nan")})
    with pytest.raises(ValueError, match="missing"):
        store.append({"rewards": 0.0})
    assert limiter.inserted == 4
    columns = [step(5)["observations"]["front"], step(5)["observations"]["state"]]
    following = [step(5)["next_observations"]["front"], step(5)["next_observations"]["state"]]
    store.appender()(*columns, *following, step(5)["actions"], 5.0, False, False)
    assert limiter.inserted == len(store) == 5
    store.limiter = None
    store.append(step(6))
    assert limiter.inserted == 5


def test_limits_by_hand():
    limiter = RateLimiter(10, 2.0, slack=6)
    assert not limiter.may_sample(1)
    assert limiter.insert(9)
    assert limiter.insert(1)
    assert limiter.insert(3)
    assert not limiter.insert(1, timeout=0)
    assert not limiter.insert(1, timeout=0.02)
    assert limiter.sample(6)
    assert limiter.may_sample(6)
    assert not limiter.may_sample(7)
    assert (limiter.inserted, limiter.sampled) == (13, 6)
    again = RateLimiter(10, 2.0, slack=6)
    again.load_state_dict(limiter.state_dict())
    assert again.may_sample(6)
    assert not again.may_sample(7)
    assert RateLimiter(10, 2.0).slack == 20.0
    for arguments, message in [
        ((0, 1.0), "min_size is 0"),
        ((1, 0.0), "samples_per_insert is 0"),
        ((1, 3.0, 1), "slack is 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            RateLimiter(*arguments)
    limiter.close()
    with pytest.raises(RuntimeError, match="closed"):
        limiter.insert(1)


@pytest.mark.timeout(60)
def test_ctrl_c_ends_the_wait_for_the_limiter(ctrl_c):
    limiter = RateLimiter(1, 1.0, slack=10)
    with pytest.raises(KeyboardInterrupt):
        ctrl_c(lambda: limiter.sample(1))
    assert limiter.sampled == 0


def test_the_program_may_end_while_threads_wait():
    """Daemon threads in a wait, and streams that nobody closed, do not keep or crash the interpreter."""
    code = """
import threading, time
import numpy as np
from serl_fast.replay import BatchStream, RateLimiter, ReplayStore
zero = np.zeros(1, np.float32)
step = {"observations": zero, "next_observations": zero, "actions": zero, "rewards": 0.0, "terminated": False,
        "truncated": False}
store = ReplayStore.from_example(step, 10)
store.limiter = limiter = RateLimiter(2, 1.0, slack=2)
stream = BatchStream(store, 2, threads=2, limiter=limiter)
threading.Thread(target=stream.next, daemon=True).start()
other = ReplayStore.from_example(step, 10)
other.limiter = RateLimiter(1, 1.0)
def write():
    while True:
        other.append(step)
threading.Thread(target=write, daemon=True).start()
time.sleep(0.1)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_schedule_that_fails_loses_no_batch(make_store):
    failing = []

    def shares(number):
        if failing:
            raise ZeroDivisionError
        return (1.0, 1.0)

    stores = [make_store(0), make_store(1000)]
    with BatchStream(Mixture(stores, shares), 8) as stream:
        first = stream.next(60).number
        failing.append(True)
        for _ in range(6):
            with pytest.raises(ZeroDivisionError):
                stream.next(60)
        failing.clear()
        assert [stream.next(60).number for _ in range(6)] == list(range(first + 1, first + 7))


def test_a_stream_ends_after_its_limiter_was_set_back(make_store):
    limiter = RateLimiter(1, 1000.0)
    limiter.insert(50)
    stream = BatchStream(make_store(), 8, limiter=limiter)
    assert soon(lambda: limiter.sampled == 4 * 8)
    limiter.load_state_dict({"inserted": 0, "sampled": 0})
    stream.close()
    assert limiter.sampled == 0
