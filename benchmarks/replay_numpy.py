"""The NumPy twin of the replay benchmarks: what is written by hand when no library is used, vectorised throughout.

``serl_fast.replay.reference.NumpyReplayStore`` follows the store's rules row by row in Python; it is there to be read
and tested against, and would make every ratio look a hundred times better than it is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.peers.replay.plain_numpy import NumPy
from benchmarks.peers.replay.store import ALPHA, BETA
from benchmarks.peers.replay.transitions import DISCOUNT, N_STEP, Columns, Work

EPSILON = 1e-6  # added to every priority
DERIVED = {"masks": np.float32, "discounts": np.float32}


class Twin(NumPy):
    """NumPy arrays with batches like ours: masks and discounts, n-step returns, priorities."""

    orders = ("uniform", "n_step", "prioritized")

    def __init__(self, work: Work, order: str, capacity: int) -> None:
        super().__init__(work, order, capacity)
        self.tree = SumTree(capacity) if order == "prioritized" else None
        self.largest = 1.0

    def extend(self, block: Columns) -> None:
        places = (self.next + np.arange(len(block["rewards"]))) % self.capacity
        super().extend(block)
        if self.tree is not None:
            self.tree.set(places, np.full(len(places), self.largest))

    def fresh(self, rows: int) -> Callable[[], Columns]:
        return lambda: self._draw(self._empty(rows))

    def into(self, rows: int) -> Callable[[], Columns]:
        return self.into_arrays(self._empty(rows))

    def into_arrays(self, batch: Columns) -> Callable[[], Columns]:
        """A function that draws into arrays of the caller's, such as those of page-locked memory."""
        return lambda: self._draw(batch)

    def empty(self, rows: int) -> Columns:
        """Uninitialised arrays of a batch."""
        return self._empty(rows)

    def prioritise(self, batch: Columns, priorities: np.ndarray) -> None:
        assert self.tree is not None
        values = (priorities + EPSILON) ** ALPHA
        self.largest = max(self.largest, float(values.max()))
        self.tree.set(batch["ids"], values)

    def _empty(self, rows: int) -> Columns:
        stored = {key: np.empty((rows, *array.shape[1:]), array.dtype) for key, array in self.arrays.items()}
        return stored | {key: np.empty(rows, dtype) for key, dtype in DERIVED.items()}

    def _draw(self, batch: Columns) -> Columns:
        rows = len(batch["rewards"])
        if self.tree is not None:
            first, batch["ids"], batch["weights"] = self._by_priority(rows)
        else:
            first = self.random.integers(0, self.size, rows)
        last, steps = (first, 1) if self.order != "n_step" else self._spanned(first)
        for key, array in self.arrays.items():
            of_the_end = key.startswith("next_") or key in ("terminated", "truncated")
            # mode: "raise" would go through a copy
            np.take(array, last if of_the_end else first, axis=0, out=batch[key], mode="clip")
        if self.order == "n_step":
            batch["rewards"] = self.returns
        np.subtract(1.0, batch["terminated"], out=batch["masks"], dtype=np.float32)
        np.multiply(batch["masks"], np.float32(DISCOUNT) ** steps, out=batch["discounts"], casting="same_kind")
        return batch

    def _spanned(self, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of every row its last step, and how many steps it spans; the returns are left in ``returns``."""
        steps = (first[:, None] + np.arange(N_STEP)) % self.capacity  # [B, n]
        ended = self.arrays["terminated"][steps] | self.arrays["truncated"][steps]
        goes_on = ~ended[:, :-1] & (steps[:, 1:] != self.next)  # what was written last has no successor
        counted = np.ones(steps.shape, bool)
        np.logical_and.accumulate(goes_on, axis=1, out=counted[:, 1:])
        powers = np.float32(DISCOUNT) ** np.arange(N_STEP, dtype=np.float32)
        self.returns = ((self.arrays["rewards"][steps] * powers) * counted).sum(1, dtype=np.float32)
        spanned = counted.sum(1)
        return steps[np.arange(len(first)), spanned - 1], spanned

    def _by_priority(self, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places, the same as ids, and importance weights; one row from each of ``rows`` equal parts of the sum."""
        assert self.tree is not None
        part = self.tree.total / rows
        places = self.tree.find((np.arange(rows) + self.random.random(rows)) * part)
        weights = (self.size * self.tree.values(places) / self.tree.total) ** -BETA
        return places, places, (weights / weights.max()).astype(np.float32)


class SumTree:
    """Priorities of places and their sums over halves, quarters, … of them; every call works on all places at once.

    Source: Schaul et al., "Prioritized Experience Replay", appendix B.2.1.
    """

    def __init__(self, capacity: int) -> None:
        self.depth = max(1, (capacity - 1).bit_length())
        self.leaves = 1 << self.depth
        self.capacity = capacity
        self.nodes = np.zeros(2 * self.leaves)  # node i has the children 2 i and 2 i + 1; the root is 1

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self.nodes[1])

    def values(self, places: np.ndarray) -> np.ndarray:
        """The priorities of places."""
        return self.nodes[self.leaves + places]

    def set(self, places: np.ndarray, values: np.ndarray) -> None:
        """Give places new priorities; of one that comes twice the last counts."""
        nodes = self.leaves + places
        self.nodes[nodes] = values
        for _ in range(self.depth):
            nodes = nodes >> 1
            self.nodes[nodes] = self.nodes[2 * nodes] + self.nodes[2 * nodes + 1]

    def find(self, sums: np.ndarray) -> np.ndarray:
        """The places at which the running sum of all priorities passes ``sums``."""
        nodes = np.ones(len(sums), np.int64)
        for _ in range(self.depth):
            nodes = 2 * nodes
            left = self.nodes[nodes]
            right = sums >= left
            sums = np.where(right, sums - left, sums)
            nodes = nodes + right
        return np.minimum(nodes - self.leaves, self.capacity - 1)  # rounding may end beyond the last
