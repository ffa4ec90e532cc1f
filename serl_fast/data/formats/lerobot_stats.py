"""Statistics of a LeRobotDataset: of each episode, and of all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from serl_fast.data.episodes import Array

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Statistics = dict[str, Array]


def statistics(values: Array) -> Statistics:
    """min, max, mean, std, count and quantiles of a feature over the frames of an episode.

    Args:
        values: [T, ...]; images uint8 [T, H, W, 3].

    Returns:
        float64 by name: [...] for a vector, [1] for a number; images [3, 1, 1] with 255 as 1. ``count`` is int64 [1],
        the frames.
    """
    if values.dtype == np.uint8 and values.ndim == 4:
        found = [_of_bytes(values[..., channel]) for channel in range(values.shape[3])]
        result = {name: np.array([part[name] for part in found]).reshape(-1, 1, 1) / 255 for name in found[0]}
    else:
        values = values.astype(np.float64).reshape(len(values), *(values.shape[1:] or (1,)))
        result = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        result |= dict(zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values()), axis=0), strict=True))
    return result | {"count": np.array([len(values)])}


def _of_bytes(values: Array) -> dict[str, float]:
    """Exact, from how often each of the 256 values occurs."""
    counts = np.bincount(values.reshape(-1), minlength=256)
    levels, total = np.arange(256), values.size
    present = levels[counts > 0]
    mean = float(counts @ levels / total)
    result = {"min": float(present[0]), "max": float(present[-1]), "mean": mean}
    result["std"] = float(np.sqrt(counts @ (levels - mean) ** 2 / total))
    below = np.cumsum(counts)
    return result | {name: float(np.searchsorted(below, share * total)) for name, share in _QUANTILES.items()}


class Totals:
    """Statistics of all episodes, from those of each.

    The mean is weighted by the frames; var = mean of (std² + (mean_i - mean)²). A quantile is the weighted mean of the
    episodes' quantiles, as LeRobot has it: only with few episodes far from that of all frames.
    """

    def __init__(self) -> None:
        self._all: dict[str, Statistics] = {}

    def add(self, found: Mapping[str, Statistics]) -> None:
        """Add an episode's, by feature."""
        for name, part in found.items():
            so_far = self._all.get(name)
            self._all[name] = dict(part) if so_far is None else _together(so_far, part)

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: {key: value.tolist() for key, value in part.items()} for name, part in self._all.items()}


def _together(one: Statistics, other: Statistics) -> Statistics:
    count = one["count"] + other["count"]
    share = float(other["count"][0] / count[0])
    result = {name: one[name] + share * (other[name] - one[name]) for name in ("mean", *_QUANTILES)}
    distance = other["mean"] - one["mean"]
    variance = (1 - share) * one["std"] ** 2 + share * other["std"] ** 2 + share * (1 - share) * distance**2
    return {
        "min": np.minimum(one["min"], other["min"]),
        "max": np.maximum(one["max"], other["max"]),
        "std": np.sqrt(variance),
        "count": count,
        **result,
    }
