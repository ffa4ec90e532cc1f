"""Sizes and forms at the edge: ten million steps, eight cameras, fields of nothing, one step, odd arrays."""

from __future__ import annotations

import gc
import sys
import time
import weakref

import numpy as np
import pytest

from serl_fast.replay import ReplayStore
from serl_fast.replay.reference import NumpyReplayStore


def transition(observations, following=None, **changes):
    step = {"observations": observations, "actions": np.zeros(2, np.float32), "rewards": 0.0}
    step["next_observations"] = observations if following is None else following
    return {**step, "terminated": False, "truncated": False, **changes}


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm, which Linux has")


@LINUX
def test_ten_million_steps_cost_nothing_until_they_come():
    example = transition(np.zeros(32, np.float32))
    before = resident_bytes()
    durations = []
    for _ in range(3):  # the fastest: others may be at work on this machine
        start = time.perf_counter()
        store = ReplayStore.from_example(example, 10_000_000)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 1.0
    for number in range(2000):
        store.append(transition(np.full(32, number, np.float32), np.full(32, number + 1, np.float32)))
    batch = store.sampler(n_step=3, ids=True).sample(4096)
    np.testing.assert_array_equal(batch["observations"][:, 5], batch["ids"])
    store.sampler(sequence_length=8, order="epoch").sample(64)
    # 2000 steps are 0.5 MB; huge pages and a ring for retired slots make it more.
    assert resident_bytes() - before < 64e6


@LINUX
def test_ten_million_priorities_cost_nothing_until_they_come():
    store = ReplayStore.from_example(transition(np.zeros(4, np.float32)), 10_000_000)
    before, start = resident_bytes(), time.perf_counter()
    store.prioritize()
    assert time.perf_counter() - start < 5.0
    for number in range(500):
        store.append(transition(np.full(4, number, np.float32)))
    sampler = store.sampler(order="prioritized")
    for _ in range(20):
        batch = sampler.sample(256)
        store.update_priorities(batch["ids"], np.abs(batch["observations"][:, 0]))
    assert resident_bytes() - before < 64e6


@pytest.mark.parametrize("cameras", range(1, 9))
def test_one_to_eight_cameras(cameras):
    random = np.random.default_rng(cameras)
    names = [f"camera_{number}" for number in range(cameras)]
    sizes = [(8 + number, 9, 3) for number in range(cameras)]

    def look():
        images = {name: random.integers(0, 256, size, np.uint8) for name, size in zip(names, sizes, strict=True)}
        return {"images": images, "state": random.normal(size=3).astype(np.float32)}

    looks = [look() for _ in range(30)]
    store = ReplayStore.from_example(transition(looks[0]), 10)
    for number in range(29):
        store.append(transition(looks[number], looks[number + 1], rewards=number))
    batch = store.sampler(n_step=1, ids=True).sample(40)
    for row, number in enumerate(batch["ids"]):
        for name in names:
            np.testing.assert_array_equal(batch["observations"]["images"][name][row], looks[number]["images"][name])
            np.testing.assert_array_equal(
                batch["next_observations"]["images"][name][row], looks[number + 1]["images"][name]
            )


def test_a_large_batch_of_large_images():
    """Such a batch is shared out to threads and goes past the caches."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 128, 128, 3), np.uint8)
    store = ReplayStore.from_example(transition({"front": images[0]}), 20)
    for number in range(39):
        store.append(transition({"front": images[number]}, {"front": images[number + 1]}))
    for settings in ({}, {"n_step": 2}, {"sequence_length": 3}):
        batch = store.sampler(ids=True, **settings).sample(300)
        for row, number in enumerate(batch["ids"]):
            np.testing.assert_array_equal(batch["observations"]["front"][row], images[number])


def test_fields_of_nothing():
    looks = {"state": np.zeros(3, np.float32), "none": np.zeros((4, 0), np.float32)}
    example = transition(looks, actions=np.zeros((0,), np.float32), hint=np.zeros((2, 0, 3), np.uint8))
    store = ReplayStore.from_example(example, 4)
    for number in range(6):
        store.append({**example, "rewards": number})
    for settings in ({}, {"n_step": 2}, {"sequence_length": 2}):
        batch = store.sampler(**settings).sample(5)
        assert batch["observations"]["none"].shape == (5, 4, 0)
        assert batch["hint"].shape[-3:] == (2, 0, 3)
        assert batch["actions"].shape[-1] == 0
    assert store.relabel("actions", [3], np.zeros((1, 0))) == 1
    state = store.state_dict()
    store.load_state_dict(state)
    assert store.batch_at(range(4))["rewards"].tolist() == [2, 3, 4, 5]


def test_nothing_but_fields_of_nothing():
    empty = np.zeros((0,), np.float32)
    store = ReplayStore.from_example(transition(empty, actions=empty), 3)
    for number in range(7):
        store.append(transition(empty, actions=empty, rewards=number))
    batch = store.sampler(n_step=3, ids=True).batch_at([0, 1, 2])
    assert batch["observations"].shape == (3, 0)
    assert batch["ids"].tolist() == [4, 5, 6]
    assert store.state_dict()["continues"].tolist() == [False, True, True]  # nothing equals nothing


ODD = {
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "own-endian": lambda a: a.view(a.dtype.newbyteorder("<" if sys.byteorder == "little" else ">")),
    "read-only": lambda a: (b := a.copy()).setflags(write=False) or b,
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    "masked": np.ma.masked_array,
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("many", [False, True], ids=["append", "extend"])
def test_odd_arrays_are_taken_for_what_they_hold(odd, many):
    random = np.random.default_rng(3)
    looks = [
        {
            "image": random.integers(0, 256, (4, 5, 3), np.uint8),
            "matrix": random.normal(size=(3, 4)).astype(np.float32),
            "count": random.integers(0, 2**40, (2, 3)),
        }
        for _ in range(4)
    ]
    store = ReplayStore.from_example(transition(looks[0]), 9)
    steps = [transition(looks[n], looks[n + 1], actions=np.full(2, n, np.float32)) for n in range(3)]

    def changed(tree):
        if isinstance(tree, dict):
            return {key: changed(value) for key, value in tree.items()}
        return odd(tree) if isinstance(tree, np.ndarray) and tree.ndim else tree

    if many:
        store.extend(changed(columns(steps)))
    else:
        for step in steps:
            store.append(changed(step))
    batch = store.batch_at(range(3))
    for number in range(3):
        for key, value in looks[number].items():
            np.testing.assert_array_equal(batch["observations"][key][number], value)
            np.testing.assert_array_equal(batch["next_observations"][key][number], looks[number + 1][key])
    assert batch["actions"][:, 0].tolist() == [0, 1, 2]
    assert store.state_dict()["continues"].tolist() == [False, True, True]


def columns(steps):
    if isinstance(steps[0], dict):
        return {key: columns([step[key] for step in steps]) for key in steps[0]}
    return np.stack(steps)


def test_spaces_nested_three_deep():
    spaces = pytest.importorskip("gymnasium").spaces
    box, image = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(0, 255, (4, 4, 3), np.uint8)
    arm = spaces.Dict({"pose": box, "hand": spaces.Dict({"camera": image, "force": spaces.Box(0, 1, (), np.float64)})})
    space = spaces.Dict({"left": arm, "right": arm, "clock": spaces.Discrete(9)})
    space.seed(0)
    looks = [space.sample() for _ in range(12)]
    store = ReplayStore.from_space(space, box, 5)
    names = [field.name for field in store.schema.observations]
    assert "observations/left/hand/camera" in names
    assert len(names) == 7
    for number in range(11):
        store.append(transition(looks[number], looks[number + 1], actions=np.zeros(3)))
    batch = store.batch_at([0, 4])
    for row, number in ((0, 6), (1, 10)):
        for side in ("left", "right"):
            hand = batch["next_observations"][side]["hand"]
            np.testing.assert_array_equal(hand["camera"][row], looks[number + 1][side]["hand"]["camera"])
            assert hand["force"][row] == np.float32(looks[number + 1][side]["hand"]["force"])
        assert batch["observations"]["clock"][row] == looks[number]["clock"]
    asked = store.sampler(fields=["observations/left/hand", "rewards"]).sample(2)
    assert set(asked["observations"]["left"]["hand"]) == {"camera", "force"}
    assert "right" not in asked["observations"]


def test_a_capacity_of_one(step, check):
    store = ReplayStore.from_example(step(0), 1)
    for time_now in range(40):
        store.append(step(time_now, terminated=time_now % 7 == 6))
        check(store.sampler(n_step=3).sample(3), [time_now] * 3)
        assert (len(store), store.first_id) == (1, time_now)
    sampler = store.sampler(sequence_length=3, pad="last")
    assert sampler.sample(2)["actions"][..., 0].tolist() == [[39] * 3] * 2
    with pytest.raises(ValueError):
        store.sampler(sequence_length=2).sample(1)
    store.prioritize()
    assert store.sampler(order="prioritized").sample(4)["weights"].tolist() == [1.0] * 4
    assert len(list(store.sampler(order="epoch").epoch(5))) == 1


@pytest.mark.parametrize("capacity", [1, 3, 20])
def test_an_episode_longer_than_the_capacity(step, check, capacity):
    transitions = [step(number) for number in range(100)]
    one, many = (ReplayStore.from_example(step(0), capacity) for _ in range(2))
    twin = NumpyReplayStore(one.schema, capacity)
    for each in transitions:
        one.append(each)
    many.extend(columns(transitions))
    twin.extend(columns(transitions))
    check(many.batch_at(range(capacity)), range(100 - capacity, 100))
    states = [store.state_dict() for store in (one, many, twin)]
    for other in states[1:]:
        assert states[0].keys() == other.keys()
        for key, value in states[0].items():
            np.testing.assert_array_equal(value, other[key])
    assert many.appended == 100
    many.extend(columns([step(200 + number) for number in range(capacity)]))
    check(many.batch_at(range(capacity)), range(200, 200 + capacity))


def test_a_batch_larger_than_the_store(step):
    store = ReplayStore.from_example(step(0), 3)
    for number in range(3):
        store.append(step(number))
    batch = store.sample(50_000)
    assert set(batch["rewards"].tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(batch["observations"]["state"][:, 0], batch["rewards"])


def test_a_store_goes_with_its_last_name():
    """Ten gigabytes, or the right to write to files, do not wait for the garbage collector."""
    store = ReplayStore.from_example(transition(np.zeros(3, np.float32)), 5)
    store.append(transition(np.zeros(3, np.float32)))
    store.sample(2, discount=0.5)
    alive = weakref.ref(store)
    gc.disable()
    try:
        del store
        assert alive() is None
    finally:
        gc.enable()
