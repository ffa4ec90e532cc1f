"""What the statistics promise, held against random numbers whose distribution is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.spread import (
    FASTER,
    FEW,
    NOISY,
    SLOWER,
    Figure,
    figure,
    median_interval,
    repeats,
    speed_up,
    unrest,
)

ROUNDS = (6, 7, 9, 15)


def lognormal(random, spread, size):
    return list(np.exp(random.normal(0, spread, size)))


@pytest.mark.parametrize(
    ("count", "below"),
    [(6, 1), (8, 1), (9, 2), (15, 4), (25, 8)],  # Conover's table for the median at 95 %
)
def test_interval_of_the_median_is_the_table_s(count, below):
    values = list(range(1, count + 1))
    assert median_interval(values) == (below, count + 1 - below)


def test_too_few_values_have_no_interval():
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


@pytest.mark.parametrize("rounds", ROUNDS)
def test_equal_variants_have_no_winner(rounds):
    random = np.random.default_rng(rounds)
    verdicts = [
        speed_up([lognormal(random, 0.1, rounds)], [lognormal(random, 0.1, rounds)]).verdict for _ in range(1500)
    ]
    assert verdicts.count(NOISY) / len(verdicts) >= 0.94  # 95 % less what 1500 draws leave open


@pytest.mark.parametrize("rounds", ROUNDS)
def test_twenty_percent_beyond_small_noise_wins(rounds):
    random = np.random.default_rng(rounds)
    for _ in range(200):
        slow, fast = lognormal(random, 0.03, rounds), [v / 1.2 for v in lognormal(random, 0.03, rounds)]
        assert speed_up([fast], [slow]).verdict == FASTER
        assert speed_up([slow], [fast]).verdict == SLOWER


def test_a_slow_spell_hits_both_sides_of_a_pair():
    weather = [1.0, 3.0, 1.5, 8.0, 1.0, 2.0, 1.1]
    found = speed_up([[w * 1.0 for w in weather]], [[w * 1.1 for w in weather]])
    assert found.verdict == FASTER
    assert found.median == pytest.approx(1.1)


def test_few_rounds_have_no_winner_however_clear():
    assert speed_up([[1.0] * 5], [[10.0] * 5]).verdict == FEW


def test_rounds_of_several_passes_count_together():
    assert speed_up([[1.0] * 3, [1.0] * 3], [[2.0] * 3, [2.0] * 3]).verdict == FASTER


def test_nothing_paired_is_an_error():
    with pytest.raises(ValueError, match="no round"):
        speed_up([[1.0], []], [[], [1.0]])


def test_figure_encloses_quartiles_interval_and_passes():
    rounds = [[10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0], [20.0]]
    found = figure(rounds)
    assert found.median == pytest.approx(13.5)
    assert found.lower <= 11.5
    assert found.upper == pytest.approx(20.0)  # the second pass's median


def test_unrest_widens_in_logarithms_and_never_below_nothing():
    calm, restless = figure([[1.0] * 7]), figure([[1.0] * 7], unrest=0.1)
    assert calm == (1.0, 1.0, 1.0)
    assert restless.lower == pytest.approx(math.exp(-0.1))
    assert restless.upper == pytest.approx(math.exp(0.1))
    assert figure([[1.0] * 7], unrest=50.0).lower > 0


def test_unrest_is_two_deviations_of_the_worst_yardstick():
    random = np.random.default_rng(0)
    found = unrest([list(random.normal(1, 0.01, 4000)), list(random.normal(5, 0.25, 4000))])
    assert found == pytest.approx(0.1, rel=0.1)
    assert unrest([[1.0] * 50 + [100.0]]) == 0.0  # one disturbed time
    assert unrest([]) is None
    assert unrest([[1.0]]) is None


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("drift", [0.0, 0.01, 0.03])
def test_three_repetitions_differ_by_less_than_the_spread(rounds, drift):
    """Rounds of a case follow each other and share the machine's state; only yardsticks all over the run show it."""
    random = np.random.default_rng(rounds)

    def repetition(known):
        state = math.exp(random.normal(0, drift))
        yardstick = list(np.exp(random.normal(0, drift, 20)))
        return figure([[state * v for v in lognormal(random, 0.02, rounds)]], unrest([yardstick]) if known else 0.0)

    beyond = [sum(not repeats([repetition(known) for _ in range(3)]) for _ in range(400)) for known in (True, False)]
    assert beyond[0] / 400 < 0.15
    if drift == 0.03:
        assert beyond[1] / 400 > 0.5  # without the yardsticks the printed spread is not honest


def test_passes_cover_what_a_single_pass_does_not_see():
    random = np.random.default_rng(0)

    def repetition():
        return figure([[math.exp(random.normal(0, 0.05)) * v for v in lognormal(random, 0.005, 7)] for _ in range(5)])

    beyond = sum(not repeats([repetition() for _ in range(3)]) for _ in range(300))
    assert beyond / 300 < 0.1


def test_repeats_asks_for_the_smallest_spread():
    assert repeats([Figure(10, 9, 11), Figure(11, 10, 12)])
    assert not repeats([Figure(10, 9, 11), Figure(11, 10.9, 11.1)])


def test_a_rate_has_its_time_s_spread():
    assert Figure(2.0, 1.0, 4.0).inverse(8.0) == (4.0, 2.0, 8.0)
