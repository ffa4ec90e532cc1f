"""Batches against numbers worked out on paper: n-step returns, sequences, and which fields they hold.

Each holds for the C++ store and for its NumPy twin.
"""

from __future__ import annotations

import numpy as np
import pytest

from serl_fast.replay import ReplayStore


def reached(batch):
    """The time of the last step of each row."""
    return (batch["next_observations"]["state"][..., 0] - 1).tolist()


# --- n steps -----------------------------------------------------------------------------------------------------


def test_n_steps_within_an_episode(make):
    batch = make(20, range(1, 9)).sampler(0.5, n_step=3).batch_at([0, 2])
    assert batch["rewards"].tolist() == [1 + 0.5 * 2 + 0.25 * 3, 3 + 0.5 * 4 + 0.25 * 5]
    assert batch["discounts"].tolist() == [0.125, 0.125]
    assert reached(batch) == [3, 5]
    assert batch["observations"]["state"][:, 0].tolist() == batch["actions"][:, 0].tolist() == [1, 3]
    assert batch["masks"].tolist() == [1, 1]


def test_n_steps_end_where_the_episode_terminates(make):
    batch = make(20, range(1, 9), terminated=[4]).sampler(0.5, n_step=3).batch_at([1, 2, 3, 4])
    assert batch["rewards"].tolist() == [2 + 1.5 + 1, 3 + 2, 4, 5 + 3 + 7 / 4]
    assert batch["discounts"].tolist() == [0, 0, 0, 0.125]
    assert batch["masks"].tolist() == [0, 0, 0, 1]
    assert batch["terminated"].tolist() == [True, True, True, False]
    assert reached(batch) == [4, 4, 4, 7]


def test_n_steps_end_where_the_episode_is_truncated_and_bootstrap_there(make):
    batch = make(20, range(1, 9), truncated=[4]).sampler(0.5, n_step=3).batch_at([1, 2, 3])
    assert batch["rewards"].tolist() == [4.5, 5, 4]
    assert batch["discounts"].tolist() == [0.125, 0.25, 0.5]  # one factor for every step taken
    assert batch["truncated"].tolist() == [True, True, True]
    assert batch["masks"].tolist() == [1, 1, 1]
    assert reached(batch) == [4, 4, 4]


def test_n_steps_end_at_a_gap(make):
    store = make(20, [10, 11, 12, 50, 51])
    batch = store.sampler(0.5, n_step=4).batch_at(range(5))
    assert reached(batch) == [12, 12, 12, 51, 51]
    assert batch["rewards"].tolist() == [10 + 5.5 + 3, 11 + 6, 12, 50 + 25.5, 51]
    assert batch["discounts"].tolist() == [0.125, 0.25, 0.5, 0.25, 0.5]


def test_n_steps_end_at_the_newest_row_and_grow_with_it(make, step):
    store = make(20, [1, 2])
    sampler = store.sampler(0.5, n_step=3)
    assert sampler.batch_at([1])["discounts"].tolist() == [0.5]
    store.append(step(3))
    batch = sampler.batch_at([1])
    assert batch["discounts"].tolist() == [0.25]
    assert batch["rewards"].tolist() == [3.5]


def test_n_steps_across_the_wrap_around(make):
    store = make(5, range(1, 9))  # 4 … 8 are left; 6 lies in front of 4 in memory
    batch = store.sampler(0.5, n_step=2).batch_at(range(5))
    assert batch["rewards"].tolist() == [t + (t + 1) / 2 for t in range(4, 8)] + [8]
    assert reached(batch) == [5, 6, 7, 8, 8]


def test_more_steps_than_the_episode_has(make):
    batch = make(9, range(1, 4), terminated=[3]).sampler(1.0, n_step=10**9).batch_at([0, 1, 2])
    assert batch["rewards"].tolist() == [6, 5, 3]
    assert batch["discounts"].tolist() == [0, 0, 0]


def test_one_step_is_what_sample_gives(make):
    store = make(9, range(9), terminated=[4])
    one, plain = store.sampler(0.9, n_step=1).batch_at(range(9)), store.batch_at(range(9), discount=0.9)
    for key in ("rewards", "masks", "discounts", "terminated"):
        np.testing.assert_array_equal(one[key], plain[key])


# --- sequences ---------------------------------------------------------------------------------------------------


def test_the_guides_example(make):
    batch = make(9, [1, 2, 3]).sampler(0.99, sequence_length=3).batch_at([0])
    # 1, 1 + 0.99 · 2, 1 + 0.99 · 2 + 0.9801 · 3
    np.testing.assert_array_equal(batch["rewards"], np.array([[1, 2.98, 5.9203]], np.float32))
    assert batch["masks"].tolist() == batch["valid"].tolist() == [[1, 1, 1]]
    assert batch["terminals"].tolist() == [[0, 0, 0]]
    np.testing.assert_allclose(batch["discounts"], [[0.99, 0.9801, 0.970299]], rtol=1e-7)
    assert batch["next_actions"][0, :, 0].tolist() == [2, 3, 3]  # the newest step has none after it


def test_a_sequence_holds_every_step_and_starts_from_one_observation(make):
    batch = make(20, range(10)).sampler(sequence_length=4).batch_at([0, 3])
    assert batch["full_observations"]["state"][..., 0].tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert batch["full_observations"]["front"].shape == (2, 4, 4, 5, 3)
    assert batch["observations"]["state"][:, 0].tolist() == [0, 3]
    assert reached(batch) == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert batch["actions"][..., 0].tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert batch["next_actions"][..., 0].tolist() == [[1, 2, 3, 4], [4, 5, 6, 7]]
    assert batch["terminated"].shape == (2, 4)


def test_a_sequence_over_a_terminated_step(make):
    batch = make(20, range(1, 9), terminated=[3]).sampler(0.5, sequence_length=4).batch_at([1])  # 2, 3 | 4, 5
    assert batch["rewards"].tolist() == [[2, 3.5, 4.5, 5.125]]
    assert batch["masks"].tolist() == [[1, 0, 0, 0]]
    assert batch["terminals"].tolist() == [[0, 1, 1, 1]]
    assert batch["valid"].tolist() == [[1, 1, 0, 0]]
    assert batch["discounts"].tolist() == [[0.5, 0, 0, 0]]
    assert batch["next_actions"][0, :, 0].tolist() == [3, 4, 5, 6]
    assert reached(batch) == [[2, 3, 4, 5]]


def test_a_sequence_over_a_truncated_step_keeps_its_masks(make):
    batch = make(20, range(1, 9), truncated=[3]).sampler(0.5, sequence_length=4).batch_at([1])
    assert batch["masks"].tolist() == [[1, 1, 1, 1]]
    assert batch["terminals"].tolist() == [[0, 1, 1, 1]]
    assert batch["valid"].tolist() == [[1, 1, 0, 0]]
    assert batch["discounts"].tolist() == [[0.5, 0.25, 0.125, 0.0625]]


def test_a_sequence_over_a_gap(make):
    batch = make(20, [1, 2, 50, 51]).sampler(0.5, sequence_length=4).batch_at([0])
    assert batch["terminals"].tolist() == [[0, 1, 1, 1]]
    assert batch["valid"].tolist() == [[1, 1, 0, 0]]


def test_the_last_step_repeated(make):
    store = make(20, range(1, 9), terminated=[3], truncated=[6])
    batch = store.sampler(0.5, sequence_length=4, pad="last").batch_at([1, 4])  # 2, 3, 3, 3 and 5, 6, 6, 6
    assert batch["full_observations"]["state"][..., 0].tolist() == [[2, 3, 3, 3], [5, 6, 6, 6]]
    assert batch["actions"][..., 0].tolist() == reached(batch) == [[2, 3, 3, 3], [5, 6, 6, 6]]
    assert batch["rewards"].tolist() == [[2, 3.5, 3.5, 3.5], [5, 8, 8, 8]]
    assert batch["masks"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch["discounts"].tolist() == [[0.5, 0, 0, 0], [0.5, 0.25, 0.25, 0.25]]
    assert batch["terminals"].tolist() == [[0, 1, 1, 1], [0, 1, 1, 1]]
    assert batch["valid"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_the_newest_step_repeated(make):
    batch = make(20, [1, 2, 3]).sampler(0.5, sequence_length=4, pad="last").batch_at([1, 2])
    assert batch["actions"][..., 0].tolist() == [[2, 3, 3, 3], [3, 3, 3, 3]]
    assert batch["next_actions"][..., 0].tolist() == [[3, 3, 3, 3], [3, 3, 3, 3]]
    assert batch["rewards"].tolist() == [[2, 3.5, 3.5, 3.5], [3, 3, 3, 3]]
    assert batch["valid"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch["discounts"].tolist() == [[0.5, 0.25, 0.25, 0.25], [0.5, 0.5, 0.5, 0.5]]


def test_where_sequences_start(make):
    store = make(7, range(12))  # 5 … 11 are left
    sampler = store.sampler(sequence_length=4, ids=True)
    assert sorted(set(sampler.sample(500)["ids"].tolist())) == [5, 6, 7, 8]
    for index in (4, -1):
        with pytest.raises(IndexError):
            sampler.batch_at([index])
    last = store.sampler(sequence_length=4, pad="last", ids=True)
    assert sorted(set(last.sample(500)["ids"].tolist())) == list(range(5, 12))
    for pad, enough in (("next", False), ("last", True)):
        long = store.sampler(sequence_length=8, pad=pad)
        if enough:
            long.sample(2)
        else:
            with pytest.raises(ValueError):
                long.sample(2)
    assert store.sampler(sequence_length=7).sample(2)["actions"][:, 0, 0].tolist() == [5, 5]


def test_a_sequence_of_one_is_a_transition(make):
    store = make(9, range(9), terminated=[4])
    one, plain = store.sampler(0.5, sequence_length=1).batch_at(range(9)), store.batch_at(range(9), discount=0.5)
    for key in ("rewards", "masks", "discounts", "actions"):
        np.testing.assert_array_equal(one[key][:, 0], plain[key])


def test_stacked_frames_in_sequences(step):
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3), np.uint8)
    example = {"observations": {"front": frames[:3]}, "next_observations": {"front": frames[1:4]}, "actions": 0}
    example.update(rewards=0.0, terminated=False, truncated=False)
    store = ReplayStore.from_example(example, 9, frame_stack=3)
    for t in range(5):
        looks = {"observations": {"front": frames[t : t + 3]}, "next_observations": {"front": frames[t + 1 : t + 4]}}
        store.append({**example, **looks})
    batch = store.sampler(sequence_length=2).batch_at([0, 3])
    full, following = batch["full_observations"]["front"], batch["next_observations"]["front"]
    assert full.shape == (2, 2, 3, 1, 2, 3)
    assert full[..., 0, 0, 0].tolist() == [[[0, 1, 2], [1, 2, 3]], [[3, 4, 5], [4, 5, 6]]]
    assert following[..., 0, 0, 0].tolist() == [[[1, 2, 3], [2, 3, 4]], [[4, 5, 6], [5, 6, 7]]]


# --- fields ------------------------------------------------------------------------------------------------------


def leaves(tree, prefix=""):
    if not isinstance(tree, dict):
        return [prefix]
    return [name for key in tree for name in leaves(tree[key], f"{prefix}/{key}" if prefix else key)]


def test_only_the_fields_asked_for_are_there(make):
    store = make(9, range(9))
    batch = store.sampler(fields=["rewards", "observations/state"]).sample(4)
    assert leaves(batch) == ["observations/state", "rewards"]
    np.testing.assert_array_equal(batch["observations"]["state"][:, 0], batch["rewards"])
    both = store.sampler(fields=["next_observations"], ids=True).sample(4)
    assert leaves(both) == ["next_observations/front", "next_observations/state", "ids"]


def test_a_camera_on_request(make):
    store = make(9, range(9), on_request=["front"])
    assert "observations/front" not in leaves(store.sample(2))
    assert "next_observations/front" not in leaves(store.sampler(n_step=2).sample(2))
    sequences = leaves(store.sampler(sequence_length=2).sample(2))
    assert not any(name.endswith("front") for name in sequences)
    assert "full_observations/state" in sequences
    asked = store.sampler(fields=["observations/front", "rewards"]).batch_at([3])
    assert leaves(asked) == ["observations/front", "rewards"]
    assert (asked["observations"]["front"] == 3).all()
    with pytest.raises(ValueError, match="on_request names 'side'"):
        make(9, on_request=["side"])


def test_what_is_not_asked_for_is_not_copied():
    image = np.zeros((600, 600, 3), np.uint8)
    step = {"observations": {"camera": image, "state": np.zeros(3)}, "actions": 0, "rewards": 0.0}
    step.update(next_observations=step["observations"], terminated=False, truncated=False)
    store = ReplayStore.from_example(step, 4, on_request=["camera"])
    store.append(step)
    sampler = store.sampler()
    batch = sampler.empty_batch(200_000)  # with the camera 400 GB
    sampler.sample_into(batch)
    assert batch["observations"].keys() == {"state"}


def test_unknown_names_are_refused(make):
    store = make(9, range(9))
    for fields in (["reward"], ["full_observations"], ["next_actions"], ["valid"], ["observations/back"]):
        with pytest.raises(ValueError, match=f"field '{fields[0]}' is unknown; a batch can hold observations/front"):
            store.sampler(fields=fields)
    store.sampler(fields=["full_observations", "next_actions", "valid"], sequence_length=2)
    with pytest.raises(TypeError, match="fields is the text 'rewards'"):
        store.sampler(fields="rewards")
    with pytest.raises(ValueError, match="no field is wanted"):
        store.sampler(fields=[])


def test_impossible_samplers_are_refused(make):
    store = make(9, range(9))
    for settings in (
        {"n_step": 0}, {"n_step": -1}, {"sequence_length": 0}, {"n_step": 2, "sequence_length": 3}, {"pad": "edge"},
        {"order": "random"}, {"discount": 1.5}, {"discount": float("nan")}, {"beta": 2.0},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            store.sampler(**settings)
    for settings in ({"n_step": 1.5}, {"sequence_length": 2.0}):
        with pytest.raises(TypeError):
            store.sampler(**settings)


def test_sample_into_takes_the_batch_of_its_own_sampler_only(make):
    store = make(9, range(9))
    one, other = store.sampler(ids=True), store.sampler(sequence_length=2)
    batch = one.empty_batch(4)
    one.sample_into(batch)
    np.testing.assert_array_equal(batch["rewards"], batch["ids"])
    with pytest.raises((ValueError, TypeError)):
        other.sample_into(batch)
    del batch["ids"]
    with pytest.raises(ValueError, match="field 'ids' is missing"):
        one.sample_into(batch)
