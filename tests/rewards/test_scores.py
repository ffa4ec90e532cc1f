"""Figures of a classifier, by hand and against definitions that go through everything there is."""

import math

import numpy as np
import pytest

from serl_fast.rewards.scores import (
    accuracy,
    choose_threshold,
    confusion,
    precision,
    recall,
    roc_area,
    roc_curve,
    threshold_at,
    trials_for,
    upper_bound,
)

POSITIVE = np.array([True, True, False, False, True])
SCORES = np.array([0.9, 0.4, 0.4, 0.1, 0.8])


def test_confusion_by_hand():
    counts = confusion(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0]), 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert accuracy(counts) == pytest.approx(4 / 6)
    assert precision(counts).tolist() == pytest.approx([1 / 2, 1 / 2, 1, math.nan], nan_ok=True)
    assert recall(counts).tolist() == pytest.approx([1 / 2, 1, 2 / 3, math.nan], nan_ok=True)


def test_roc_by_hand():
    false, true = roc_curve(POSITIVE, SCORES)
    assert false.tolist() == [0, 0, 0, 0.5, 1]
    assert true.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert roc_area(POSITIVE, SCORES) == pytest.approx(5.5 / 6)  # of 6 pairs 5 are in order, one is a tie
    assert roc_area(POSITIVE, POSITIVE.astype(float)) == 1
    assert roc_area(POSITIVE, 1 - POSITIVE.astype(float)) == 0
    assert roc_area(POSITIVE, np.zeros(5)) == 0.5
    assert math.isnan(roc_area(np.ones(3, bool), np.zeros(3)))


def cases():
    rng = np.random.default_rng(0)
    for count in (2, 3, 10, 60):
        for levels in (2, 5, 1000):
            positive = rng.random(count) < 0.4
            positive[:2] = True, False
            yield positive, np.clip(rng.integers(0, levels, count) / levels + 0.2 * positive, 0, 1)


def test_roc_area_is_the_share_of_pairs_in_order():
    for positive, scores in cases():
        ahead = scores[positive][:, None] - scores[~positive]
        assert roc_area(positive, scores) == pytest.approx(np.mean((ahead > 0) + 0.5 * (ahead == 0)))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.34, 0.5, 0.9])
def test_no_threshold_does_better(rate):
    for positive, scores in cases():
        chosen = choose_threshold(positive, scores, rate)
        possible = [threshold_at(value, positive, scores) for value in (*np.unique(scores), 1 - 1e-12) if 0 < value < 1]
        kept = [each for each in possible if each.false_positives <= rate * each.negatives]
        if not kept:
            assert chosen.false_positives == min(each.false_positives for each in possible)
            continue
        assert chosen.false_positives <= rate * chosen.negatives
        best = max(each.true_positives for each in kept)
        assert chosen.true_positives == best
        assert chosen.false_positives == min(e.false_positives for e in kept if e.true_positives == best)
        assert 0 < chosen.value < 1
        assert chosen == threshold_at(chosen.value, positive, scores)


def test_thresholds_by_hand():
    chosen = choose_threshold(POSITIVE, SCORES, 0.0001)
    odds = (math.log(0.4 / 0.6) + math.log(0.8 / 0.2)) / 2
    assert chosen.value == pytest.approx(1 / (1 + math.exp(-odds)))
    assert (chosen.positives, chosen.negatives, chosen.true_positives, chosen.false_positives) == (3, 2, 2, 0)
    assert chosen.recall == pytest.approx(2 / 3)
    assert chosen.false_positive_rate == 0
    assert choose_threshold(POSITIVE, SCORES, 0.5).false_positives == 1
    # Between 0.01 and 0.9 the middle of the log odds is below 1/2, which costs nothing to ask for.
    assert choose_threshold(np.array([True, False]), np.array([0.9, 0.01]), 0.01).value == 0.5
    assert choose_threshold(np.array([True, False]), np.array([0.3, 0.01]), 0.01).value <= 0.3


def test_thresholds_are_compared_in_float64():
    probabilities = np.array([0.7, 0.2], np.float32)
    assert float(probabilities[0]) < 0.7
    assert threshold_at(0.7, np.array([True, False]), probabilities).true_positives == 0


def test_where_no_threshold_keeps_the_rate():
    chosen = choose_threshold(POSITIVE, np.ones(5), 0.01)
    assert chosen.false_positives == 2
    assert chosen.value < 1


def test_the_bound_is_that_of_clopper_and_pearson():
    assert upper_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    for events, trials in ((1, 10), (2, 318), (5, 50)):
        rate = upper_bound(events, trials)
        below = sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(events + 1))
        assert below == pytest.approx(0.05, rel=1e-6)
    assert upper_bound(3, 3) == upper_bound(0, 0) == 1
    assert trials_for(0.01) == 299
    assert upper_bound(0, 299) <= 0.01 < upper_bound(0, 298)
