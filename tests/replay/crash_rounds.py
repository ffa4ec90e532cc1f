"""Kills processes that write to a store, again and again, and looks at what is left; started by test_crash.py.

A program of its own, so that it has one thread when it forks and has to import nothing more than once.
"""

from __future__ import annotations

import os
import random
import select
import signal
import struct
import sys
import time

import numpy as np

from serl_fast.replay import ReplayStore, Schema

Ack = struct.Struct("<cq")  # what was done, and up to which transition


def observation(at: int, first: int, stack: int) -> dict[str, np.ndarray]:
    """What is seen at an instant of the episode that began at ``first``."""
    frames = np.stack([np.full((3, 3), max(first, at - k) % 251, np.uint8) for k in reversed(range(stack))])
    return {"front": frames if stack > 1 else frames[0], "state": np.full(6, at, np.float32)}


def transition(at: int, stack: int) -> dict[str, object]:
    first = at - at % 11  # episodes of 11 steps
    return {
        "observations": observation(at, first, stack),
        "next_observations": observation(at + 1, first, stack),
        "actions": np.full(2, at, np.float32),
        "rewards": float(at),
        "terminated": at % 11 == 10,
        "truncated": False,
    }


def columns(first: int, rows: int, stack: int) -> dict[str, object]:
    parts = [transition(at, stack) for at in range(first, first + rows)]

    def joined(values):
        if isinstance(values[0], dict):
            return {key: joined([value[key] for value in values]) for key in values[0]}
        return np.asarray(values)

    return {key: joined([part[key] for part in parts]) for key in parts[0]}


def write(path: str, options: dict[str, object], stack: int, seed: int, acknowledge: int) -> None:
    """The child: append, extend, relabel and acknowledge until the end."""
    choose = random.Random(seed)
    store = ReplayStore.open(path, **options)
    gap = None
    while True:
        at = store.appended
        what = choose.random()
        if what < 0.6:
            store.append(transition(at, stack), continues=False if at == gap else None)
        elif what < 0.8:
            store.extend(columns(at, choose.randrange(1, 40), stack))
        elif what < 0.9:
            gap = at  # a stretch that begins in the middle of an episode
            store.append(transition(at, stack), continues=False)
        elif at > 5:
            id = choose.randrange(max(0, at - store.capacity), at)
            if store.relabel("rewards", [id], [id + 0.5]):
                os.write(acknowledge, Ack.pack(b"r", id))
            continue
        os.write(acknowledge, Ack.pack(b"a", store.appended))


def check(store: ReplayStore, acknowledged: int, relabelled: set[int], stack: int) -> None:
    first, end = store.first_id, store.appended
    assert end >= acknowledged, f"{acknowledged} were acknowledged, {end} are there"
    assert end - first == min(end, store.capacity), f"{end - first} of {end} with capacity {store.capacity}"
    assert store.verify() == []
    if first == end:
        return
    batch = store.batch_at(range(end - first))
    expected = columns(first, end - first, stack)
    for key in ("actions", "terminated"):
        np.testing.assert_array_equal(batch[key], expected[key], key)
    for key in ("observations", "next_observations"):
        for name in ("front", "state"):
            np.testing.assert_array_equal(batch[key][name], expected[key][name], f"{key}/{name}")
    more = batch["rewards"] - expected["rewards"]
    assert np.isin(more, (0.0, 0.5)).all()
    changed = {first + int(age) for age in np.flatnonzero(more)}
    assert {id for id in relabelled if id >= first} <= changed
    store.sample(16)


def kill_rounds(folder: str, rounds: int, seed: int) -> None:
    choose = random.Random(seed)
    done = 0
    for number, (stack, capacity, sync, lives) in enumerate(
        [
            (1, 50, "none", 0.4),
            (3, 50, "none", 0.3),
            (3, 400, "none", 0.2),
            (1, 50, "each", 0.05),
            (1, 9, "interval", 0.05),
        ]
    ):
        path = f"{folder}/{number}"
        schema = Schema.from_example(transition(0, stack), {"front": stack} if stack > 1 else 1)
        options = {"schema": schema, "capacity": capacity, "sync": sync, "sync_interval": 0.002}
        acknowledged, relabelled = 0, set()
        for round in range(int(rounds * lives)):
            read, end = os.pipe()
            child = os.fork()
            if child == 0:
                write(path, options, stack, seed + round, end)
            os.close(end)
            time.sleep(choose.random() * 0.03)
            os.kill(child, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child had ended by itself"
            said = b""
            while part := os.read(read, 1 << 20):
                said += part
            os.close(read)
            for what, value in Ack.iter_unpack(said[: len(said) // Ack.size * Ack.size]):
                if what == b"a":
                    acknowledged = max(acknowledged, value)
                else:
                    relabelled.add(value)
            if not os.path.exists(path):
                continue
            with ReplayStore.open(path, mode="ra"[round % 2], verify=("lazy", "all")[round // 2 % 2]) as store:
                check(store, acknowledged, relabelled, stack)
            with ReplayStore.open(path) as store:  # and it goes on
                store.append(transition(store.appended, stack))
                check(store, acknowledged + 1, relabelled, stack)
                acknowledged = store.appended
        done += acknowledged
    print(f"{done} transitions in {rounds} rounds")


def reader_rounds(folder: str, rounds: int, seed: int) -> None:
    """One reader with the store open all the time, writers that are killed."""
    path, stack, capacity = f"{folder}/shared", 3, 60
    schema = Schema.from_example(transition(0, stack), {"front": stack})
    ReplayStore.open(path, schema, capacity).close()
    told, tell = os.pipe()
    reader = os.fork()
    if reader == 0:
        store = ReplayStore.open(path, mode="r")
        sampler = store.sampler(ids=True)
        while True:
            if not len(store):
                continue
            batch = sampler.sample(8)
            for row, id in enumerate(batch["ids"].tolist()):
                expected = transition(id, stack)
                for key in ("observations", "next_observations"):
                    for name in ("front", "state"):
                        np.testing.assert_array_equal(batch[key][name][row], expected[key][name])
            os.write(tell, Ack.pack(b"s", int(batch["ids"].max())))
    os.close(tell)
    newest, patience = 0, time.monotonic() + 120

    def listened() -> int:
        """The newest transition that the reader has told of by now."""
        found = newest
        while select.select([told], [], [], 0)[0]:
            said = os.read(told, Ack.size * 4096)
            assert said, "the reader ended"
            found = max(value for _, value in Ack.iter_unpack(said))
        return found

    round = -1
    while (round := round + 1) < rounds or (newest <= 100 and time.monotonic() < patience):
        silent, end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(silent)
            write(path, {}, stack, seed + round, os.open(os.devnull, os.O_WRONLY))
        time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child had ended by itself"
        os.close(end)
        os.close(silent)
        newest = listened()
    with ReplayStore.open(path) as store:
        check(store, 0, set(), stack)
        while newest < store.first_id and time.monotonic() < patience:  # it sees what the last writer left
            newest = listened()
        assert newest > 100, newest
        assert newest >= store.first_id, (newest, store.first_id)
    os.kill(reader, signal.SIGKILL)
    os.waitpid(reader, 0)
    print(f"the reader saw transition {newest} of {store.appended}")


if __name__ == "__main__":
    {"kill": kill_rounds, "reader": reader_rounds}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
