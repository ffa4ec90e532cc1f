"""Batches from several stores."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serl_fast.replay import Mixture, ReplayStore


@pytest.fixture
def stores(step):
    """Three stores; rewards tell them apart: 0 … 9, 100 … 109, 200 … 209."""
    result = []
    for first in (0, 100, 200):
        store = ReplayStore.from_example(step(0), 10, seed=first)
        for time in range(first, first + 10):
            store.append(step(time))
        result.append(store)
    return result


@pytest.fixture(scope="module")
def one_step():
    zero = np.zeros(1, np.float32)
    step = {"observations": zero, "next_observations": zero, "actions": zero, "rewards": 0.0}
    store = ReplayStore.from_example({**step, "terminated": False, "truncated": False}, 1)
    store.append({**step, "terminated": False, "truncated": False})
    return store


@pytest.mark.parametrize(
    ("shares", "size", "counts"),
    [
        ((0.5, 0.5), 256, [128, 128]),
        ((0.5, 0.5), 255, [128, 127]),
        ((0.5, 0.5), 1, [1, 0]),
        ((1 / 3, 1 / 3, 1 / 3), 256, [86, 85, 85]),
        ((0.1, 0.2, 0.7), 10, [1, 2, 7]),
        ((0.1, 0.2, 0.7), 4, [0, 1, 3]),
        ((0.25, 0.25, 0.5), 6, [2, 1, 3]),
        ((3, 1), 8, [6, 2]),
        ((1.0, 0.0), 8, [8, 0]),
    ],
)
def test_counts_by_largest_remainder(stores, shares, size, counts):
    assert Mixture(stores[: len(shares)], shares).counts(size) == counts


def test_rows_stand_in_the_order_of_the_stores(stores, check):
    batch = Mixture(stores, (0.5, 0.25, 0.25), discount=0.5).sample(16)
    origin = batch["rewards"] // 100
    assert origin.tolist() == [0] * 8 + [1] * 4 + [2] * 4
    check(batch, batch["rewards"].astype(int))
    assert set(batch["discounts"]) == {0.5}
    assert [store.draws for store in stores] == [1, 1, 1]


def test_every_part_is_the_stores_own_draw(stores, step):
    batch = Mixture(stores[:2]).sample(12)
    stores[1].draws = 0
    np.testing.assert_array_equal(batch["rewards"][6:], stores[1].sample(6)["rewards"])


def test_sample_into_fills_the_callers_arrays(stores):
    mixture = Mixture(stores[:2])
    batch = mixture.empty_batch(8)
    image = batch["observations"]["front"]
    image[...] = 255
    mixture.sample_into(batch)
    assert batch["observations"]["front"] is image
    assert (image.reshape(8, -1)[:, 0] == batch["rewards"]).all()
    with pytest.raises(ValueError, match="field 'rewards' has 9 rows; 'observations/front' has 8"):
        mixture.sample_into({**batch, "rewards": np.empty(9, np.float32)})
    with pytest.raises(ValueError, match="not C-contiguous"):
        mixture.sample_into({**batch, "rewards": np.empty(16, np.float32)[::2]})


def test_the_share_of_a_short_store_goes_to_the_others(stores, step):
    empty = ReplayStore.from_example(step(0), 10)
    mixture = Mixture([empty, *stores[:2]], (0.5, 0.375, 0.125))
    assert mixture.counts(8) == [0, 6, 2]
    empty.append(step(0))
    assert mixture.counts(8) == [4, 3, 1]
    mixture = Mixture([empty, stores[0]], min_size=2)
    assert (mixture.sample(8)["rewards"] < 10).all()
    with pytest.raises(ValueError, match="hold 1, 10 transitions; one with a share needs at least 11"):
        Mixture([empty, stores[0]], min_size=11).sample(8)
    empty = ReplayStore.from_example(step(0), 10)
    with pytest.raises(ValueError, match="hold 0, 10 transitions"):
        Mixture([empty, stores[0]], (1, 0)).counts(8)


def test_stores_must_hold_the_same_fields(stores, step):
    for changes, message in [
        ({"actions": np.zeros(3)}, r"field 'actions' of store 1 is float32 \(3,\); here it is float32 \(2,\)"),
        ({"labels": 1}, "field 'labels' of store 1 is int64 .*; here it is missing"),
    ]:
        other = ReplayStore.from_example(step(0, **changes), 10)
        with pytest.raises(ValueError, match=message):
            Mixture([stores[0], other])


def test_impossible_mixtures(stores):
    for arguments, message in [
        (([], ()), "0 stores have 0 shares"),
        ((stores, (0.5, 0.5)), "3 stores have 2 shares"),
        ((stores[:2], (0.5, -0.5)), "not negative"),
        ((stores[:2], (0.0, 0.0)), "not all 0"),
        ((stores[:2], (0.5, float("nan"))), "not negative"),
        ((stores[:2], (0.5, 0.5), 1.5), "the discount is 1.5"),
        ((stores[:2], (0.5, 0.5), 0.9, 0), "min_size is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Mixture(*arguments)
    with pytest.raises(ValueError, match="batch size"):
        Mixture(stores[:2]).sample(0)
    assert "0.5 of ReplayStore(10 of 10" in repr(Mixture(stores[:2]))


def test_rows_know_their_store(stores):
    mixture = Mixture(stores, (0.5, 0.25, 0.25), sources=True)
    batch = mixture.sample(16)
    assert batch["sources"].dtype == np.int32
    np.testing.assert_array_equal(batch["sources"], batch["rewards"] // 100)
    batch["sources"][:] = -1
    mixture.sample_into(batch)
    np.testing.assert_array_equal(batch["sources"], batch["rewards"] // 100)
    with pytest.raises(ValueError, match="field 'sources' is missing"):
        Mixture(stores[:1], (1,), sources=True).sample_into(stores[0].empty_batch(4))
    with pytest.raises(ValueError, match="field 'sources' is unknown"):
        stores[0].sample_into(batch)
    assert "sources" not in Mixture(stores[:1], (1,)).sample(4)


def test_scheduled_shares_depend_on_the_batches_drawn(stores):
    called = []

    def demonstrations_first(batches):
        called.append(batches)
        share = min(1.0, batches / 4)
        return share, 1.0 - share

    mixture = Mixture(stores[:2], demonstrations_first, sources=True)
    drawn = [int((mixture.sample(8)["sources"] == 0).sum()) for _ in range(6)]
    assert drawn == [0, 2, 4, 6, 8, 8]
    assert called[1:] == [0, 1, 2, 3, 4, 5]
    mixture.batches = 1
    assert mixture.counts(8) == [2, 6]
    assert mixture.shares == (0.25, 0.75)
    with pytest.raises(ValueError, match="follow a schedule"):
        mixture.shares = (1, 0)
    with pytest.raises(ValueError, match="2 stores have 3 shares"):
        Mixture(stores[:2], lambda batches: (1, 1, 1))


def test_shares_may_be_set(stores):
    mixture = Mixture(stores[:2])
    mixture.shares = (1, 3)
    assert mixture.counts(8) == [2, 6]
    with pytest.raises(ValueError, match="not negative"):
        mixture.shares = (1, -3)
    assert mixture.shares == (1, 3)


def test_samplers_say_what_is_drawn(stores):
    for store in stores:
        store.prioritize()
    samplers = [stores[0].sampler(0.5, order="prioritized"), stores[1].sampler(0.5, order="prioritized")]
    batch = Mixture(samplers).sample(8)
    assert set(batch["discounts"]) == {0.5}
    assert batch["weights"].shape == batch["ids"].shape == (8,)
    with pytest.raises(ValueError, match="store 1 and store 0 hold different arrays: ids, weights"):
        Mixture([samplers[0], stores[1]])
    lengths = [stores[0].sampler(sequence_length=2), stores[1].sampler(sequence_length=3)]
    with pytest.raises(ValueError, match="the sequence length differs"):
        Mixture(lengths)


def test_min_size_counts_whole_sequences(stores, step):
    short = ReplayStore.from_example(step(0), 10)
    for time in range(3):
        short.append(step(time))
    sequences = [store.sampler(sequence_length=3) for store in (short, stores[1])]
    assert Mixture(sequences).counts(8) == [4, 4]
    assert Mixture(sequences, min_size=2).counts(8) == [0, 8]
    with pytest.raises(ValueError, match="hold 1, 8 sequences; one with a share needs at least 9"):
        Mixture(sequences, min_size=9).sample(4)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shares=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7, 1.0, 3.0, 100.0]), min_size=1, max_size=6),
    size=st.integers(1, 10**6),
)
def test_counts_are_those_of_exact_fractions(one_step, shares, size):
    if not any(shares):
        return
    exact = [Fraction(share) / sum(map(Fraction, shares)) * size for share in shares]
    counts = [math.floor(rows) for rows in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: size - sum(counts)]:
        counts[i] += 1
    assert Mixture([one_step] * len(shares), shares).counts(size) == counts
