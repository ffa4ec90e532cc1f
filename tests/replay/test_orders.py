"""Which steps are drawn, by priority and in epochs, for the C++ store and for its NumPy twin."""

from __future__ import annotations

import numpy as np
import pytest

# --- priorities --------------------------------------------------------------------------------------------------


def test_steps_are_drawn_in_proportion_to_their_priorities(make):
    store = make(8, range(8), seed=5)
    store.prioritize(alpha=0.5, epsilon=1e-6)
    errors = np.arange(1.0, 9.0) ** 2  # p^0.5 = 1 … 8
    assert store.update_priorities(np.arange(8), errors) == 8
    sampler = store.sampler(order="prioritized")
    counts = np.zeros(8)
    for _ in range(400):  # rows of one batch are stratified: one row each makes independent draws
        counts += np.bincount(sampler.sample(1)["ids"], minlength=8)
    expected = 400 * np.arange(1, 9) / 36
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # 7 degrees of freedom, p = 0.001
    many = np.bincount(sampler.sample(3600)["ids"], minlength=8)
    assert np.abs(many - 100 * np.arange(1, 9)).max() <= 2  # equal parts leave only the borders to chance


def test_weights_by_hand(make):
    store = make(8, range(4), seed=5)
    store.prioritize(alpha=1.0, epsilon=1e-9)
    store.update_priorities(np.arange(4), [1.0, 2.0, 4.0, 1.0])  # P = 1/8, 2/8, 4/8, 1/8 of N = 4
    sampler = store.sampler(order="prioritized", beta=0.5)
    batch = sampler.sample(64)
    weights = dict(zip(batch["ids"].tolist(), batch["weights"].tolist(), strict=True))
    assert weights == pytest.approx({0: 1.0, 1: 0.5**0.5, 2: 0.5, 3: 1.0}, rel=1e-6)
    sampler.beta = 1.0
    batch = sampler.sample(64)
    assert dict(zip(batch["ids"].tolist(), batch["weights"].tolist(), strict=True)) == pytest.approx(
        {0: 1.0, 1: 0.5, 2: 0.25, 3: 1.0}, rel=1e-6
    )
    store.update_priorities([0, 3], [0.0, 0.0])  # the largest weight of the batch counts, not of the store
    batch = sampler.sample(64)
    assert batch["weights"].max() == 1.0
    assert set(batch["ids"].tolist()) == {1, 2}
    assert sampler.batch_at([0, 1])["weights"].tolist() == [1.0, 1.0]


def test_a_new_row_gets_the_largest_priority_so_far(make, step):
    store = make(4, [0])
    store.prioritize(alpha=1.0, epsilon=1e-6)
    store.update_priorities([0], [9.0])
    store.update_priorities([0], [3.0])
    store.append(step(1))  # 9 + ε beside 3 + ε
    counts = np.bincount(store.sampler(order="prioritized").sample(1200)["ids"])
    assert np.abs(counts - [300, 900]).max() <= 1


def test_the_first_rows_have_priority_1(make, step):
    store = make(4, [0, 1])
    store.prioritize(alpha=1.0, epsilon=1e-6)
    store.append(step(2))
    assert np.abs(np.bincount(store.sampler(order="prioritized").sample(1200)["ids"]) - 400).max() <= 1
    store.update_priorities([1], [0.5])  # smaller than 1: new rows still get 1
    store.append(step(3))
    counts = np.bincount(store.sampler(order="prioritized").sample(1400)["ids"])
    assert np.abs(counts - [400, 200, 400, 400]).max() <= 1


def test_a_row_that_is_gone_is_never_drawn(make, step):
    store = make(3, range(3))
    store.prioritize()
    store.update_priorities([0], [1e6])
    sampler = store.sampler(order="prioritized")
    for time in range(3, 30):
        store.append(step(time))
        batch = sampler.sample(32)
        assert set(batch["ids"].tolist()) <= {time - 2, time - 1, time}
        np.testing.assert_array_equal(batch["rewards"], batch["ids"])


def test_priorities_of_rows_that_are_gone_are_passed_over(make, step):
    store = make(3, range(5))  # 2, 3, 4 are left
    store.prioritize(alpha=1.0)
    assert store.update_priorities([0, 1, 2, 5, -1], [7.0, 7.0, 2.0, 7.0, 7.0]) == 1
    counts = np.bincount(store.sampler(order="prioritized").sample(1200)["ids"], minlength=5)
    assert np.abs(counts - [0, 0, 600, 300, 300]).max() <= 1
    before = store.sampler(order="prioritized").sample(16)["weights"]
    for wrong in ([-1.0], [float("nan")], [float("inf")]):
        for ids in ([3], [0]):  # also where the row is gone
            with pytest.raises(ValueError):
                store.update_priorities(ids, wrong)
    with pytest.raises(ValueError):
        store.update_priorities([2, 3], [1.0])
    store.draws -= 1
    np.testing.assert_array_equal(store.sampler(order="prioritized").sample(16)["weights"], before)


def test_priorities_must_be_kept_first(make):
    store = make(3, range(3))
    with pytest.raises(ValueError):
        store.sampler(order="prioritized")
    with pytest.raises(ValueError):
        store.update_priorities([0], [1.0])
    for wrong in ({"alpha": 1.5}, {"alpha": -0.1}, {"epsilon": 0.0}, {"epsilon": float("inf")}):
        with pytest.raises(ValueError):
            store.prioritize(**wrong)
    store.prioritize()
    with pytest.raises(ValueError):
        store.prioritize()
    for beta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError):
            store.sampler(order="prioritized", beta=beta)


def test_what_is_loaded_has_equal_priorities(make):
    store, other = make(9, range(9)), make(9, range(2))
    store.prioritize(alpha=1.0)
    store.update_priorities(range(9), [50.0] * 9)
    store.load_state_dict(other.state_dict())
    counts = np.bincount(store.sampler(order="prioritized").sample(1000)["ids"])
    assert np.abs(counts - 500).max() <= 1


# --- epochs ------------------------------------------------------------------------------------------------------


def test_an_epoch_holds_every_live_step_once(make):
    store = make(20, range(33), seed=2)
    sampler = store.sampler(order="epoch", ids=True)
    orders = []
    for _ in range(3):
        batches = list(sampler.epoch(6))
        assert [len(batch["rewards"]) for batch in batches] == [6, 6, 6, 2]
        orders.append(np.concatenate([batch["ids"] for batch in batches]).tolist())
        assert sorted(orders[-1]) == list(range(13, 33))
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_sampling_runs_on_from_one_epoch_into_the_next(make):
    store = make(20, range(20))
    sampler = store.sampler(order="epoch", ids=True)
    ids = np.concatenate([sampler.sample(8)["ids"] for _ in range(10)])
    for epoch in ids.reshape(4, 20):
        assert sorted(epoch.tolist()) == list(range(20))


def test_an_epoch_after_samples_is_what_they_have_left(make):
    store = make(20, range(20))
    sampler = store.sampler(order="epoch", ids=True)
    for taken, left in ((5, 15), (20, 20), (33, 7)):
        seen = sampler.sample(taken)["ids"].tolist()
        rest = [id for batch in sampler.epoch(4) for id in batch["ids"].tolist()]
        assert len(rest) == left
        assert sorted([*seen, *rest][-20:]) == list(range(20))


def test_steps_given_up_during_an_epoch_are_passed_over(make, step):
    store = make(10, range(10))
    seen = []
    for batch in store.sampler(order="epoch", ids=True).epoch(2):
        seen += batch["ids"].tolist()
        store.append(step(9 + len(seen) // 2))
        assert min(batch["ids"]) >= store.first_id - 1
    assert len(seen) == len(set(seen))
    assert max(seen) <= 9
    assert set(seen) >= set(range(store.first_id, 10))


def test_epochs_of_sequences_start_where_a_whole_one_does(make):
    store = make(10, range(10))
    sampler = store.sampler(order="epoch", sequence_length=4, ids=True)
    assert sorted(id for batch in sampler.epoch(3) for id in batch["ids"].tolist()) == list(range(7))


def test_epochs_need_that_order(make):
    with pytest.raises(ValueError):
        next(make(3, range(3)).sampler().epoch(2))
    with pytest.raises(ValueError):
        next(make(3).sampler(order="epoch").epoch(2))


def test_the_order_of_an_epoch_depends_on_the_seed_alone(make):
    one, two, other = (make(20, range(20), seed=seed).sampler(order="epoch", ids=True) for seed in (1, 1, 2))
    first = one.sample(20)["ids"].tolist()
    assert two.sample(20)["ids"].tolist() == first
    assert other.sample(20)["ids"].tolist() != first


def test_weights_are_1_where_nothing_is_weighted(make):
    store = make(9, range(9))
    for order in ("uniform", "epoch"):
        assert store.sampler(fields=["weights"], order=order).sample(5)["weights"].tolist() == [1.0] * 5
    for batch in store.sampler(fields=["weights"], order="epoch").epoch(4):
        assert set(batch["weights"].tolist()) == {1.0}
