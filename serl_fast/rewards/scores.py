"""How good a classifier is: confusion, ROC area, and the threshold that keeps false successes rare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
CONFIDENCE = 0.95
_EDGE = 1e-7  # probabilities nearer to 0 or 1 are not told apart in float32


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it does to the samples that it was chosen on.

    Attributes:
        value: success is said where the probability is at least this, in (0, 1).
        positives: samples that show success.
        negatives: samples that do not.
        true_positives: of ``positives``, how many are said to.
        false_positives: of ``negatives``, how many are said to.
        bound: upper 95 % confidence bound of the false-positive rate, for independent samples; 1 without negatives.
    """

    value: float
    positives: int
    negatives: int
    true_positives: int
    false_positives: int
    bound: float

    @property
    def recall(self) -> float:
        """True positives over positives; NaN without any."""
        return self.true_positives / self.positives if self.positives else math.nan

    @property
    def false_positive_rate(self) -> float:
        """False positives over negatives; NaN without any."""
        return self.false_positives / self.negatives if self.negatives else math.nan


def confusion(labels: Array, predicted: Array, classes: int) -> Array:
    """How often class i was taken for class j, int64 [classes, classes].

    Args:
        labels: integers [N], what is true.
        predicted: integers [N].
        classes: number of classes.
    """
    counts = np.bincount(np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64), minlength=classes**2)
    return counts.reshape(classes, classes)


def accuracy(counts: Array) -> float:
    """Share of the samples on the diagonal of a :func:`confusion`."""
    return float(np.trace(counts) / counts.sum())


def precision(counts: Array) -> Array:
    """Of what was taken for class j, the share that is; float64 [classes], NaN where nothing was taken for it."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.diag(counts) / counts.sum(0))


def recall(counts: Array) -> Array:
    """Of class i, the share that was taken for it; float64 [classes], NaN where there is none of it."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.diag(counts) / counts.sum(1))


def roc_curve(positive: Array, scores: Array) -> tuple[Array, Array]:
    """False- and true-positive rates of every threshold, from (0, 0) to (1, 1); equal scores are one step.

    Args:
        positive: bool [N], both values present.
        scores: float [N], higher for what is more likely positive.
    """
    order = np.argsort(-scores, kind="stable")
    hits, ordered = np.cumsum(positive[order]), scores[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # the last of equal scores
    true, false = np.append(0, hits[ends]), np.append(0, ends + 1 - hits[ends])
    return false / false[-1], true / true[-1]


def roc_area(positive: Array, scores: Array) -> float:
    """Area under the ROC curve: how likely a positive has a higher score than a negative, ties half.

    NaN where one of both is missing.
    """
    if positive.all() or not positive.any():
        return math.nan
    false, true = roc_curve(positive, scores)
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))


def choose_threshold(positive: Array, probabilities: Array, false_positive_rate: float) -> Threshold:
    """The threshold that finds most successes while at most so many negatives pass.

    Of those that do both equally well, the one with the fewest false positives, and of these the one in the middle
    between two neighbouring log odds, but not below 1/2: doubt is no success. Where even the highest probability
    belongs to too many negatives, no threshold keeps the rate; the highest possible is taken, and ``false_positives``
    says what it does.

    Args:
        positive: bool [N].
        probabilities: of success, float [N], in [0, 1].
        false_positive_rate: of the negatives, in [0, 1).
    """
    probabilities = np.asarray(probabilities, np.float64)  # as at run time
    negatives, positives = np.sort(probabilities[~positive])[::-1], np.sort(probabilities[positive])
    allowed = math.floor(false_positive_rate * len(negatives) + 1e-9)
    # The threshold lies above the first negative that must not pass.
    floor = float(negatives[allowed]) if allowed < len(negatives) else 0.0
    above = positives[positives > floor]
    ceiling = float(above[0]) if len(above) else 1.0
    below = negatives[negatives < ceiling]
    floor = max(floor, float(below[0])) if len(below) else floor
    value = max(_between(floor, ceiling), min(0.5, ceiling))
    return threshold_at(value, positive, probabilities)


def threshold_at(value: float, positive: Array, probabilities: Array) -> Threshold:
    """A given threshold, and what it does to these samples; see :func:`choose_threshold`."""
    passed, negatives = np.asarray(probabilities, np.float64) >= value, int((~positive).sum())
    false = int((passed & ~positive).sum())
    hits = int((passed & positive).sum())
    return Threshold(value, int(positive.sum()), negatives, hits, false, upper_bound(false, negatives))


def _between(low: float, high: float) -> float:
    """A value in (low, high] and in (0, 1): the middle of the log odds."""
    odds = [math.log(p / (1 - p)) for p in (min(max(p, _EDGE), 1 - _EDGE) for p in (low, high))]
    value = 1 / (1 + math.exp(-sum(odds) / 2))
    value = value if low < value <= high else high
    return min(max(value, _EDGE), float(np.nextafter(1.0, 0.0)))


def upper_bound(events: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """The largest rate at which so few events of so many independent trials are still as likely as 1 - confidence.

    The one-sided bound of Clopper and Pearson (1934): the p with P(X <= events | trials, p) = 1 - confidence; with no
    event 1 - (1 - confidence)^(1 / trials), about 3 / trials.
    """
    if events >= trials:
        return 1.0
    low, high = events / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(events, trials, middle) > 1 - confidence else (low, middle)
    return high


def _at_most(events: int, trials: int, rate: float) -> float:
    """P(X <= events) of a binomial distribution."""
    if rate >= 1:
        return 0.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + (k * math.log(rate) if k else 0.0)
        + (trials - k) * math.log1p(-rate)
        for k in range(events + 1)
    ]
    return math.fsum(map(math.exp, logs))


def trials_for(rate: float, confidence: float = CONFIDENCE) -> int:
    """How many trials without an event show that a rate is at most ``rate``; see :func:`upper_bound`."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-rate))
