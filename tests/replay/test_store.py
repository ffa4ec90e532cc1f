"""What a store takes, refuses and gives back."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from serl_fast.replay import ReplayStore


def everything(store, **kwargs):
    return store.batch_at(np.arange(len(store)), **kwargs)


def columns_of(transitions):
    """Transitions as one dict of columns."""
    if isinstance(transitions[0], dict):
        return {key: columns_of([t[key] for t in transitions]) for key in transitions[0]}
    return np.asarray(transitions)


# --- the known defects of stores that infer frames from insertion order ---------------------------------------


def test_two_interventions_of_one_episode_are_not_stitched(step, check):
    store = ReplayStore.from_example(step(0), 20)
    times = [10, 11, 12, 50, 51, 52]
    for time in times:
        store.append(step(time))
    check(everything(store), times)
    assert store.state_dict()["continues"].tolist() == [False, True, True, False, True, True]


def test_a_truncated_episode_ends_its_stretch(step, check):
    store = ReplayStore.from_example(step(0), 20)
    times = [0, 1, 2, 3, 4]
    for time in times:
        store.append(step(time, truncated=time == 2))
    batch = everything(store, discount=0.5)
    check(batch, times)
    assert store.state_dict()["continues"].tolist() == [False, True, True, False, True]
    assert batch["discounts"].tolist() == [0.5] * 5  # a truncated step bootstraps from its final observation


@pytest.mark.parametrize("capacity", [1, 2, 9, 10])
def test_wrap_around_returns_no_wrong_frame(step, check, capacity):
    store = ReplayStore.from_example(step(0), capacity)
    for time in range(7 * 9):  # 7 episodes of 9 steps, 100 apart, ended in either way
        episode, at = divmod(time, 9)
        store.append(step(100 * episode + at, terminated=at == 8 and episode % 2 == 0, truncated=at == 8))
        kept = range(max(0, time + 1 - capacity), time + 1)
        check(everything(store), [100 * (t // 9) + t % 9 for t in kept])
    assert (len(store), store.appended) == (capacity, 63)


# --- frame stacks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame_stack", [3, {"front": 3}, {"front": 3, "state": 2}])
def test_frame_stacks_equal_brute_force(frame_stack):
    rng = np.random.default_rng(0)
    state_stack = 2 if isinstance(frame_stack, dict) and "state" in frame_stack else None

    def stacked(frames, at, count):
        return np.stack([frames[max(0, at - back)] for back in reversed(range(count))])

    def look(front, state, at):
        return {
            "front": stacked(front, at, 3),
            "state": stacked(state, at, state_stack) if state_stack else state[at],
        }

    store, wanted = None, []
    for length in rng.integers(1, 9, 12):
        front = rng.integers(0, 256, (length + 1, 4, 4, 3), np.uint8)
        state = rng.normal(size=(length + 1, 5)).astype(np.float32)
        for at in range(length):
            transition = {
                "observations": look(front, state, at),
                "next_observations": look(front, state, at + 1),
                "actions": np.zeros(2, np.float32),
                "rewards": 0.0,
                "terminated": False,
                "truncated": at == length - 1,
            }
            store = store or ReplayStore.from_example(transition, 10, frame_stack=frame_stack)
            store.append(transition)
            wanted = [*wanted, transition][-10:]
            batch = everything(store)
            for key in ("observations", "next_observations"):
                for name in ("front", "state"):
                    np.testing.assert_array_equal(batch[key][name], np.stack([t[key][name] for t in wanted]))


def test_a_stack_must_move_by_one_frame():
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 3), np.uint8)
    transition = {
        "observations": {"front": frames[0:3]},
        "next_observations": {"front": frames[1:4]},
        "actions": 0,
        "rewards": 0.0,
        "terminated": False,
        "truncated": False,
    }
    store = ReplayStore.from_example(transition, 4, frame_stack=3)
    with pytest.raises(ValueError, match="field 'next_observations/front': its first 2 frames are not the last"):
        store.append({**transition, "next_observations": {"front": frames[2:5]}})
    store.append(transition)
    jump = {**transition, "observations": {"front": frames[[0, 2, 3]]}}
    jump["next_observations"] = {"front": frames[[2, 3, 4]]}
    with pytest.raises(ValueError, match="field 'observations/front' differs"):
        store.append(jump, continues=True)  # its newest frame follows, its oldest does not
    store.append(jump)
    np.testing.assert_array_equal(everything(store)["observations"]["front"][1], frames[[0, 2, 3]])


# --- continuity --------------------------------------------------------------------------------------------------


def test_continues_true_is_verified(step):
    store = ReplayStore.from_example(step(0), 9)
    with pytest.raises(ValueError, match="continues is True, but the store is empty"):
        store.append(step(0), continues=True)
    store.append(step(0))
    with pytest.raises(ValueError, match="field 'observations/front' differs from field 'next_observations/fr"):
        store.append(step(5), continues=True)
    store.append(step(1, terminated=True), continues=True)
    with pytest.raises(ValueError, match="previous step was terminated"):
        store.append(step(2), continues=True)
    store.append(step(2, truncated=True))
    with pytest.raises(ValueError, match="previous step was truncated"):
        store.append(step(3), continues=True)
    with pytest.raises(TypeError, match="continues is None, True or False"):
        store.append(step(3), continues="yes")
    assert len(store) == 3


def test_continues_false_starts_a_stretch_and_changes_no_batch(step, check):
    store = ReplayStore.from_example(step(0), 9)
    store.append(step(0))
    store.append(step(1), continues=False)
    check(everything(store), [0, 1])
    assert store.state_dict()["continues"].tolist() == [False, False]


def test_each_observation_is_stored_once(step):
    store = ReplayStore.from_example(step(0), 2_000)
    for time in range(9_000):
        store.append(step(time % 8_500))  # a gap at 8 500
    assert len(store.state_dict()["records/observations/front"]) == 2_002  # 2 000 steps in 2 stretches
    record, row = 128, 64  # whole cache lines
    assert store.nbytes < 1.02 * 2_000 * (record + row)  # slots are used again, the worst case is not


# --- extend ------------------------------------------------------------------------------------------------------


def test_extend_equals_append(step):
    transitions = [step(t, terminated=t == 4, truncated=t == 9) for t in [*range(12), 30, 31]]
    one, many = (ReplayStore.from_example(step(0), 8) for _ in range(2))
    for transition in transitions:
        one.append(transition)
    many.extend(columns_of(transitions[:5]))
    many.extend(columns_of(transitions[5:]))
    a, b = one.state_dict(), many.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_extend_takes_continues_for_one_or_all_rows(step):
    columns = columns_of([step(t) for t in range(4)])
    store = ReplayStore.from_example(step(0), 99)
    store.extend(columns, continues=False)
    store.extend(columns, continues=[False, True, False, True])
    marks = store.state_dict()["continues"].tolist()
    assert marks == [False, True, True, True, False, True, False, True]
    with pytest.raises(ValueError, match="row 0: continues is True"):
        store.extend(columns, continues=True)
    with pytest.raises(ValueError, match=r"continues has shape \(3,\)"):
        store.extend(columns, continues=[False] * 3)
    with pytest.raises(TypeError, match="continues has dtype"):
        store.extend(columns, continues=[0, 1, 0, 1])


def test_extend_stores_all_or_nothing(step):
    columns = columns_of([step(t) for t in range(4)])
    store = ReplayStore.from_example(step(0), 99)
    columns["actions"][3, 1] = np.nan
    with pytest.raises(ValueError, match=r"field 'actions' holds a non-finite value \(nan\) in row 3"):
        store.extend(columns)
    columns["actions"][3, 1] = 0
    columns["observations"]["state"][2] = 7
    with pytest.raises(ValueError, match="row 2: continues is True"):
        store.extend(columns, continues=[False, True, True, True])
    with pytest.raises(ValueError, match=r"field 'rewards' has shape \(4, 1\); it is one number a row"):
        store.extend({**columns, "rewards": columns["rewards"][:, None]})
    with pytest.raises(ValueError, match=r"field 'actions' has shape \(3, 2\); the store holds \(4, 2\)"):
        store.extend({**columns, "actions": columns["actions"][:3]})
    assert (len(store), store.appended) == (0, 0)
    none = {key: np.zeros((0, *np.shape(value)[1:]), value.dtype) for key, value in columns.items() if "obs" not in key}
    looks = {"front": np.zeros((0, 4, 5, 3), np.uint8), "state": np.zeros((0, 6), np.float32)}
    store.extend({"observations": looks, "next_observations": looks, **none})
    assert (len(store), store.appended) == (0, 0)
    with pytest.raises(TypeError, match="a transition is a mapping with observations, …, not list"):
        store.append([])
    store.extend(columns_of([step(0)]))
    assert len(store) == 1


# --- what is refused, and what is converted ----------------------------------------------------------------------

WRONG = [
    ({"observations": {"front": np.zeros((4, 4, 3), np.uint8), "state": np.zeros(6)}}, ValueError,
     r"field 'observations/front' has shape \(4, 4, 3\); the store holds \(4, 5, 3\)"),
    ({"observations": {"front": np.zeros((4, 5, 3), np.float32), "state": np.zeros(6)}}, TypeError,
     "field 'observations/front' has dtype float32; the store holds uint8"),
    ({"observations": {"front": np.full((4, 5, 3), 256), "state": np.zeros(6)}}, ValueError,
     "field 'observations/front' holds 256, which uint8 cannot hold"),
    ({"observations": {"state": np.zeros(6)}}, ValueError, "field 'observations/front' is missing"),
    ({"observations": {"front": 0, "state": 0, "side": 0}}, ValueError, "field 'observations/side' is unknown"),
    ({"observations": np.zeros(6)}, TypeError, "field 'observations' must be a mapping with the keys front, st"),
    ({"next_observations": {"front": {"a": 1}, "state": 0}}, TypeError, "front' is a mapping"),
    ({"actions": [1.0, 2.0, 3.0]}, ValueError, r"field 'actions' has shape \(3,\)"),
    ({"actions": ["a", "b"]}, TypeError, "field 'actions' has dtype <U1"),
    ({"actions": [[1.0], [1.0, 2.0]]}, ValueError, "field 'actions' is no array"),
    ({"actions": np.array([0.0, np.inf], np.float32)}, ValueError, r"'actions' holds a non-finite value \(inf\)"),
    ({"rewards": float("nan")}, ValueError, r"field 'rewards' holds a non-finite value \(nan\)"),
    ({"rewards": 1e300}, ValueError, "field 'rewards' holds 1e[+]300, which float32 cannot hold"),
    ({"rewards": 2**24 + 1}, ValueError, "field 'rewards' holds 16777217, which float32 cannot hold"),
    ({"rewards": None}, TypeError, "field 'rewards' has dtype object"),
    ({"terminated": 1.0}, TypeError, "field 'terminated' has dtype float64; the store holds bool"),
    ({"terminated": 2}, ValueError, "field 'terminated' holds 2, which bool cannot hold"),
    ({"masks": 0.0}, ValueError, "field 'terminated' contradicts masks and dones"),
    ({"masks": 0.5}, ValueError, "field 'masks' holds 0.5; a mask is 0"),
    ({"dones": 3}, ValueError, "field 'dones' holds 3"),
    ({"labels": 1}, ValueError, "field 'labels' is unknown; the store holds observations/front"),
    ({"discounts": 1}, ValueError, "discounts are derived when sampling"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), WRONG)
def test_append_refuses(step, changes, error, message):
    store = ReplayStore.from_example(step(0), 4)
    store.append(step(0))
    before = store.state_dict()
    with pytest.raises(error, match=message):
        store.append(step(1, **changes))
    for key, value in store.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("key", ["observations", "next_observations", "actions", "rewards", "terminated", "truncated"])
def test_append_refuses_a_missing_field(step, key):
    store = ReplayStore.from_example(step(0), 4)
    transition = step(0)
    del transition[key]
    with pytest.raises(ValueError, match=f"field '{key}' is missing"):
        store.append(transition)


@pytest.mark.parametrize(
    "same",
    [
        lambda a: a.astype(np.float64),
        lambda a: a.astype(">f4") if a.dtype.kind == "f" else a.astype(">i2"),
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        np.asfortranarray,
        lambda a: a.tolist(),
        lambda a: pickle.loads(pickle.dumps(a)),
        lambda a: (b := a.copy()).setflags(write=False) or b,
    ],
    ids=["float64", "big-endian", "strided", "fortran", "list", "unpickled", "read-only"],
)
def test_other_layouts_of_the_same_numbers_are_taken(step, check, same):
    store = ReplayStore.from_example(step(0), 4)
    transition = step(3)
    transition["actions"] = same(transition["actions"])
    transition["observations"] = {**transition["observations"], "state": same(transition["observations"]["state"])}
    image = transition["observations"]["front"]
    if "float" not in str(np.asarray(same(image)).dtype):
        transition["observations"]["front"] = same(image)
    store.append(transition)
    check(everything(store), [3])


@pytest.mark.parametrize("number", [1, 1.0, np.float32(1), np.float64(1), np.int64(1), np.array(1.0), True])
def test_numbers_of_any_kind_are_rewards(step, number):
    store = ReplayStore.from_example(step(0), 4)
    store.append(step(0, rewards=number))
    assert everything(store)["rewards"].tolist() == [1.0]


@pytest.mark.parametrize("as_array", [False, True])
def test_serl_masks_and_dones(step, as_array):
    cases = [  # masks, dones -> terminated, truncated
        (1.0, False, False, False),
        (0.0, True, True, False),
        (1.0, True, False, True),
        (0.0, False, True, False),
        (None, True, True, False),
        (None, False, False, False),
        (0, None, True, False),
        (np.float64(1), None, False, False),
    ]
    store = ReplayStore.from_example(step(0), 9)
    for masks, dones, _, _ in cases:
        transition = {k: v for k, v in step(0).items() if k not in ("terminated", "truncated")}
        given = {k: v for k, v in {"masks": masks, "dones": dones}.items() if v is not None}
        transition.update(given, infos={"anything": object()})
        if as_array:
            del transition["infos"]
            store.extend(columns_of([transition]))
        else:
            store.append(transition)
    batch = everything(store)
    assert batch["terminated"].tolist() == [case[2] for case in cases]
    assert batch["truncated"].tolist() == [case[3] for case in cases]


def test_extra_fields(step):
    example = step(0, grasp_penalty=0, labels=3, hint=np.zeros((2, 2)))
    store = ReplayStore.from_example(example, 4)
    store.append(step(0, grasp_penalty=-0.02, labels=5, hint=np.ones((2, 2))))
    batch = store.sample(3)
    assert batch["grasp_penalty"].dtype == np.float32
    assert batch["labels"].tolist() == [5, 5, 5]
    assert batch["hint"].shape == (3, 2, 2)
    with pytest.raises(ValueError, match="field 'grasp_penalty' is missing"):
        store.append(step(0, labels=5, hint=np.ones((2, 2))))
    with pytest.raises(TypeError, match="field 'labels' has dtype float64; the store holds int64"):
        store.append(step(0, grasp_penalty=0.0, labels=5.0, hint=np.ones((2, 2))))


# --- sampling ----------------------------------------------------------------------------------------------------


def filled(step, count=30, **kwargs):
    store = ReplayStore.from_example(step(0), 20, **kwargs)
    for time in range(count):
        store.append(step(time, terminated=time % 7 == 6))
    return store


def test_the_seed_and_the_number_of_draws_decide_the_batch(step, check):
    one, two, other = filled(step, seed=3), filled(step, seed=3), filled(step, seed=4)
    first, second = one.sample(64), one.sample(64)
    check(first, first["rewards"].astype(int))
    assert set(first["rewards"]) <= set(range(10, 30))
    np.testing.assert_array_equal(two.sample(64)["rewards"], first["rewards"])
    assert not np.array_equal(first["rewards"], second["rewards"])
    assert not np.array_equal(first["rewards"], other.sample(64)["rewards"])
    other.seed, other.draws = 3, 1
    np.testing.assert_array_equal(other.sample(64)["rewards"], second["rewards"])
    assert (other.seed, other.draws) == (3, 2)


def test_sampling_is_uniform(step):
    store = filled(step)
    counts = np.bincount(store.sample(20000)["rewards"].astype(int))[10:]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi squared, 19 degrees of freedom, p = 0.001


def test_sample_into_writes_the_callers_arrays(step):
    store = filled(step, seed=1)
    batch = store.empty_batch(16)
    arrays = [batch["actions"], batch["observations"]["front"]]
    store.sample_into(batch, discount=0.5)
    assert batch["actions"] is arrays[0]
    assert batch["observations"]["front"] is arrays[1]
    store.draws = 0
    again = store.sample(16, discount=0.5)
    np.testing.assert_array_equal(again["observations"]["front"], arrays[1])
    np.testing.assert_array_equal(batch["discounts"], np.float32(0.5) * batch["masks"])
    assert batch["discounts"].dtype == np.float32


def test_sample_into_refuses_arrays_that_do_not_fit(step):
    store = filled(step)
    good = store.empty_batch(8)
    read_only = np.empty((8, 2), np.float32)
    read_only.setflags(write=False)
    for changes, error, message in [
        ({"actions": np.empty((8, 3), np.float32)}, ValueError, r"'actions' has shape \(8, 3\); it must be \(8, 2\)"),
        ({"actions": np.empty((7, 2), np.float32)}, ValueError, "field 'actions' has 7 rows"),
        ({"actions": np.empty((8, 2))}, TypeError, "field 'actions' has dtype float64; the store holds float32"),
        ({"actions": np.empty((2, 8), np.float32).T}, ValueError, "field 'actions' is not C-contiguous"),
        ({"actions": read_only}, ValueError, "field 'actions' is read-only"),
        ({"actions": [0.0] * 8}, TypeError, "field 'actions' must be a NumPy array"),
        ({"other": np.empty(8)}, ValueError, "field 'other' is unknown"),
        ({"observations": {}}, ValueError, "field 'observations/front' is missing"),
    ]:
        with pytest.raises(error, match=message):
            store.sample_into({**good, **changes})
    del good["masks"]
    with pytest.raises(ValueError, match="field 'masks' is missing"):
        store.sample_into(good)
    assert store.draws == 0


def test_sampling_refuses_impossible_arguments(step):
    empty = ReplayStore.from_example(step(0), 4)
    with pytest.raises(ValueError, match="the store is empty"):
        empty.sample(1)
    store = filled(step)
    for size in (0, -1):
        with pytest.raises(ValueError, match="batch size"):
            store.sample(size)
    for discount in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="the discount is"):
            store.sample(1, discount=discount)
    for index in (-1, 20):
        with pytest.raises(IndexError, match=f"index {index} is outside the 20 transitions"):
            store.batch_at([index])
    with pytest.raises(TypeError, match="they are integers"):
        store.batch_at([0.0])
    with pytest.raises(ValueError, match="one axis"):
        store.batch_at([[0]])


# --- the object --------------------------------------------------------------------------------------------------


def test_impossible_stores_are_refused(step):
    for capacity in (0, -3):
        with pytest.raises(ValueError, match="the capacity is"):
            ReplayStore.from_example(step(0), capacity)
    with pytest.raises(TypeError):
        ReplayStore.from_example(step(0), 1.5)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed is"):
            ReplayStore.from_example(step(0), 1, seed=seed)


def test_a_capacity_beyond_all_memory_is_refused():
    image = np.zeros((4000, 4000, 3), np.uint8)
    example = {"observations": image, "next_observations": image, "actions": 0, "rewards": 0, "dones": False}
    with pytest.raises(MemoryError, match="no memory for 2000000000 transitions"):
        ReplayStore.from_example(example, 2_000_000_000)
    with pytest.raises(ValueError, match="at most 2"):
        ReplayStore.from_example(example, 2**32)


def test_a_store_is_not_pickled_or_copied(step):
    store = filled(step)
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match=r"cannot be pickled; use snapshot\(path\)"):
            attempt(store)


def test_repr_says_fill_and_fields(step):
    text = repr(filled(step))
    assert "20 of 20 transitions" in text
    assert "observations/front: uint8 (4, 5, 3)" in text


def test_a_large_capacity_costs_nothing_until_it_is_used(step):
    store = ReplayStore.from_example(step(0), 50_000_000)
    store.append(step(0))
    assert store.nbytes < 1000
