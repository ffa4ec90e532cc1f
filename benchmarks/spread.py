"""What the times of some rounds say: a figure with its spread, and whether one variant is faster than another.

Nothing here knows where the times come from; tests/benchmarks/test_spread.py holds the claims against random numbers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
NOISY, FASTER, SLOWER, FEW = "noisy", "faster", "slower", "too few rounds"


class Figure(NamedTuple):
    """A median and the spread printed beside it."""

    median: float
    lower: float
    upper: float

    def inverse(self, units: float = 1.0) -> Figure:
        """A time as a rate of ``units`` in it."""
        return Figure(units / self.median, units / self.upper, units / self.lower)


class Ratio(NamedTuple):
    """A median of paired ratios, the interval that holds the true median in 95 of 100 cases, and what that says.

    Attributes:
        verdict: :data:`FASTER`, :data:`SLOWER`, :data:`NOISY` (the interval holds 1) or :data:`FEW`.
    """

    median: float
    lower: float
    upper: float
    verdict: str


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Order statistics that enclose the median of what ``values`` are drawn from, whatever its distribution.

    With n values, the k-th smallest and largest miss the median with probability ``2 P(Binomial(n, 1/2) < k)``; k is
    the largest that keeps this below ``1 - confidence``. None where the extremes do not: fewer than 6 values for 95 %.

    Source: Conover, Practical Nonparametric Statistics, 3.2 (confidence interval for a quantile).
    """
    count, missed, below = len(values), 0.0, 0
    while below < count:
        missed += math.comb(count, below) / 2**count
        if 2 * missed > 1 - confidence:
            break
        below += 1
    if below == 0:
        return None
    ordered = sorted(values)
    return ordered[below - 1], ordered[count - below]


def figure(passes: Sequence[Sequence[float]], unrest: float = 0.0) -> Figure:
    """Median of all rounds of all passes, and a spread that a repetition stays within.

    The spread encloses the quartiles of the rounds, the 95 % interval of their median (wider when rounds are few) and
    the median of every pass, and is then widened on either side by ``unrest``, as independent errors add, in
    logarithms, so that a rate has the same spread as its time: ``log m - sqrt((log m - log lower)^2 + unrest^2)``.

    Args:
        passes: times of the rounds of every pass over the suite; one without rounds does not count.
        unrest: relative spread of the machine itself over the whole run; see :func:`unrest`. Rounds of one case follow
            each other within seconds and do not see it.
    """
    filled = [list(each) for each in passes if each]
    rounds = [value for each in filled for value in each]
    median = statistics.median(rounds)
    enclosed = [median, *(statistics.median(each) for each in filled)]
    if len(rounds) > 1:
        lower, _, upper = statistics.quantiles(rounds, n=4, method="inclusive")
        enclosed += [lower, upper, *(median_interval(rounds) or (min(rounds), max(rounds)))]
    below = math.hypot(math.log(median / min(enclosed)), unrest)
    above = math.hypot(math.log(max(enclosed) / median), unrest)
    return Figure(median, median * math.exp(-below), median * math.exp(above))


def unrest(yardsticks: Sequence[Sequence[float]]) -> float | None:
    """How much the machine changed while the suite ran: two relative standard deviations of a yardstick's times.

    The deviation is the distance between the quartiles over 1.349, as of a normal distribution, so that a single time
    that the system disturbed counts for nothing. None where no yardstick was taken twice.

    Args:
        yardsticks: times of some fixed work each, taken all over the run; the largest deviation is the answer.
    """
    found = []
    for times in yardsticks:
        if len(times) > 1:
            lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
            found.append(2 * (upper - lower) / 1.349 / median)
    return max(found, default=None)


def speed_up(times: Sequence[Sequence[float]], baseline: Sequence[Sequence[float]]) -> Ratio:
    """How many times faster than the baseline, from rounds that were taken in turns.

    Args:
        times: by pass and round.
        baseline: the same of what it is compared with; a round is paired with the one of its number.
    """
    pairs = [b / t for one, other in zip(times, baseline, strict=False) for t, b in zip(one, other, strict=False)]
    if not pairs:
        raise ValueError("there is no round that both were measured in")
    median, interval = statistics.median(pairs), median_interval(pairs)
    if interval is None:
        return Ratio(median, min(pairs), max(pairs), FEW)
    lower, upper = interval
    verdict = FASTER if lower > 1 else SLOWER if upper < 1 else NOISY
    return Ratio(median, lower, upper, verdict)


def repeats(figures: Sequence[Figure]) -> bool:
    """Whether repetitions of a measurement differ by less than the spread each of them prints."""
    medians = [each.median for each in figures]
    return max(medians) - min(medians) <= min(each.upper - each.lower for each in figures)
