"""The numbers of steps, new labels for them, and the fast way in."""

from __future__ import annotations

import re

import numpy as np
import pytest

from serl_fast.replay import ReplayStore

# --- numbers of steps, and relabelling ---------------------------------------------------------------------------


def test_a_step_keeps_its_number(make, step):
    store = make(5, range(3))
    sampler = store.sampler(ids=True)
    for time in range(3, 20):
        store.append(step(time))
        batch = sampler.sample(16)
        np.testing.assert_array_equal(batch["ids"], batch["rewards"])
        assert store.first_id == max(0, time - 4)
        assert sampler.batch_at([0])["ids"].tolist() == [store.first_id]
    assert sampler.sample(4)["ids"].dtype == np.int64


def test_every_sampler_sees_a_new_label(make):
    store = make(9, range(9))
    kinds = {"plain": {}, "steps": {"n_step": 2}, "chunk": {"sequence_length": 2}, "epoch": {"order": "epoch"}}
    samplers = {name: store.sampler(1.0, **settings) for name, settings in kinds.items()}
    assert store.relabel("rewards", [3, 4], [-3.0, -4.0]) == 2
    assert samplers["plain"].batch_at([2, 3, 4, 5])["rewards"].tolist() == [2, -3, -4, 5]
    assert samplers["steps"].batch_at([2, 3, 4])["rewards"].tolist() == [-1, -7, 1]
    assert samplers["chunk"].batch_at([2, 3])["rewards"].tolist() == [[2, -1], [-3, -7]]
    assert samplers["epoch"].batch_at([3])["rewards"].tolist() == [-3]
    assert store.batch_at([3])["rewards"].tolist() == [-3]
    assert store.state_dict()["steps/rewards"].tolist() == [0, 1, 2, -3, -4, 5, 6, 7, 8]
    assert store.relabel("actions", [0], np.full((1, 2), 7.0)) == 1
    assert store.batch_at([0, 1])["actions"].tolist() == [[7, 7], [1, 1]]


def test_labels_of_rows_that_are_gone_are_passed_over(make):
    store = make(4, range(6))
    assert store.relabel("rewards", [0, 1, 2, 5, 6, -1], np.full(6, 50)) == 2
    assert store.batch_at(range(4))["rewards"].tolist() == [50, 3, 4, 50]
    assert store.relabel("rewards", [], []) == 0
    assert store.relabel("rewards", [2, 2], [1.0, 2.0]) == 2  # the last one counts
    assert store.batch_at([0])["rewards"].tolist() == [2]


def test_labels_that_cannot_be(make):
    store = make(4, range(4))
    before = store.state_dict()
    for field, values, error in (
        ("terminated", [True], ValueError),
        ("truncated", [True], ValueError),
        ("reward", [1.0], ValueError),
        ("observations", [1.0], ValueError),
        ("rewards", [float("nan")], ValueError),
        ("rewards", [float("inf")], ValueError),
        ("rewards", [1.0, 2.0], ValueError),
        ("rewards", ["a"], TypeError),
        ("actions", [1.0], ValueError),
    ):
        for ids in ([1], [77]):
            with pytest.raises(error):
                store.relabel(field, ids, values)
    with pytest.raises(TypeError):
        store.relabel("rewards", [0.5], [1.0])
    for key, value in store.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


# --- the fast way in ---------------------------------------------------------------------------------------------


@pytest.fixture
def flat():
    """A store of plain observations, and the arguments of its appender for the step from a time on."""

    def arguments(time, terminated=False):
        look, after = np.full(3, time, np.float32), np.full(3, time + 1, np.float32)
        return [look, after, np.full(2, time, np.float32), float(time), terminated, False]

    names = ("observations", "next_observations", "actions", "rewards", "terminated", "truncated")
    return ReplayStore.from_example(dict(zip(names, arguments(0), strict=True)), 5), arguments


def test_appending_by_position(flat):
    store, arguments = flat
    assert [field.name for field in store.schema.inputs] == [
        "observations", "next_observations", "actions", "rewards", "terminated", "truncated",
    ]  # fmt: skip
    append = store.appender()
    for time in range(8):
        assert append(*arguments(time, terminated=time == 5)) is None
    batch = store.batch_at(range(5))
    assert batch["rewards"].tolist() == batch["observations"][:, 0].tolist() == [3, 4, 5, 6, 7]
    assert batch["terminated"].tolist() == [False, False, True, False, False]
    assert store.state_dict()["continues"].tolist() == [False, True, True, False, True]


def test_the_appender_converts_nothing(flat):
    store, arguments = flat
    append = store.appender()
    wrong = {
        0: [np.zeros(3), np.zeros(4, np.float32), np.zeros((1, 3), np.float32), [0.0] * 3, None, 0.0,
            np.zeros(6, np.float32)[::2], np.zeros(3, ">f4")],
        2: [np.zeros(2, np.int32), np.float32(1)],
        3: [np.zeros(1, np.float32), "a", None, 1e300, float("nan")],
        4: [2.5, np.zeros(1, bool), "yes"],
    }  # fmt: skip
    for place, values in wrong.items():
        for value in values:
            given = arguments(0)
            given[place] = value
            with pytest.raises((TypeError, ValueError)):
                append(*given)
    for given in (arguments(0)[:-1], [*arguments(0), 0.0], []):
        with pytest.raises((TypeError, ValueError)):
            append(*given)
    assert len(store) == 0
    append(*arguments(0))
    assert len(store) == 1


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, np.zeros(3), "field 'observations' has dtype float64; the store holds float32; append() converts"),
        (1, np.zeros(4, np.float32), "field 'next_observations' has shape (4,); the store holds (3,)"),
        (0, np.zeros(6, np.float32)[::2], "field 'observations' is not C-contiguous; append() converts"),
        (2, [0.0, 0.0], "field 'actions' is a list; the appender takes a float32 array of shape (2,)"),
        (2, 0.5, "field 'actions' is 0.5; the appender takes a float32 array of shape (2,)"),
        (3, 1e300, "field 'rewards' is 1e+300; the appender takes a number that float32 can hold"),
        (3, "a", "field 'rewards' is a str; the appender takes a number that float32 can hold"),
        (4, 2.5, "field 'terminated' is 2.5; the appender takes a bool"),
        (5, np.zeros(1, bool), "field 'truncated' has shape (1,); the store holds ()"),
    ],
)
def test_the_appender_names_what_does_not_fit(flat, place, value, message):
    store, arguments = flat
    given = arguments(0)
    given[place] = value
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        store.appender()(*given)
    assert len(store) == 0


def test_numpy_scalars_are_numbers(flat):
    store, arguments = flat
    names = [field.name for field in store.schema.inputs]
    for dtype in (np.float64, np.float32, np.float16, np.int8, np.uint64):
        step = {**dict(zip(names, arguments(0), strict=True)), "rewards": dtype(3), "terminated": np.bool_(True)}
        store.append({**step, "truncated": np.array(False)})
    batch = store.batch_at(range(5))
    assert batch["rewards"].tolist() == [3.0] * 5
    assert batch["terminated"].all()
    assert not batch["truncated"].any()
    append = store.appender()
    for reward in (1, 1.0, np.float64(1), np.array(1, np.float32)):
        append(*arguments(0)[:3], reward, True, np.array(False))
    assert store.batch_at(range(1, 5))["rewards"].tolist() == [1.0] * 4


def test_the_appender_outlives_the_name_of_its_store(flat):
    store, arguments = flat
    append = store.appender()
    del store
    for time in range(20):
        append(*arguments(time))
