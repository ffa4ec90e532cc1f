"""A store as it is written by hand."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.replay.store import Store, dtype_of
from benchmarks.peers.replay.transitions import named, transition


class NumPy(Store):
    """NumPy: what is written by hand when no library is used, one array a field, both observations kept."""

    modules = ("numpy",)
    package = "numpy"

    def __init__(self, work, order, capacity):
        super().__init__(work, order, capacity)
        first = self._columns(transition(work.steps, 0))
        self.arrays = {key: np.zeros((capacity, *np.shape(v)), dtype_of(v)) for key, v in first.items()}
        self.next, self.size = 0, 0
        self.random = np.random.default_rng(0)

    @staticmethod
    def _columns(step):
        seen = {f"observations/{key}": value for key, value in named(step["observations"]).items()}
        seen |= {f"next_observations/{key}": value for key, value in named(step["next_observations"]).items()}
        return seen | {key: value for key, value in step.items() if not key.endswith("observations")}

    item = block = _columns

    def append(self, items):
        for item in items:
            for key, array in self.arrays.items():
                array[self.next] = item[key]
            self.next = (self.next + 1) % self.capacity
            self.size = min(self.size + 1, self.capacity)

    def extend(self, block):
        rows = len(block["rewards"])
        head = min(rows, self.capacity - self.next)
        for key, array in self.arrays.items():
            array[self.next : self.next + head] = block[key][:head]
            if head < rows:
                array[: rows - head] = block[key][head:]
        self.next = (self.next + rows) % self.capacity
        self.size = min(self.size + rows, self.capacity)

    def fresh(self, rows):
        def draw():
            indices = self.random.integers(0, self.size, rows)
            return {key: array[indices] for key, array in self.arrays.items()}

        return draw

    def into(self, rows):
        batch = {key: np.empty((rows, *array.shape[1:]), array.dtype) for key, array in self.arrays.items()}

        def draw():
            indices = self.random.integers(0, self.size, rows)
            for key, array in self.arrays.items():
                np.take(array, indices, axis=0, out=batch[key], mode="clip")  # "raise" would go through a copy
            return batch

        return draw

    def parts(self, batch):
        rest = {"terminated": "terminated", "truncated": "truncated", "mask": "masks", "discount": "discounts"}
        return self.parts_of(
            {key.partition("/")[2]: value for key, value in batch.items() if key.startswith("observations/")},
            {key.partition("/")[2]: value for key, value in batch.items() if key.startswith("next_observations/")},
            batch["actions"],
            batch["rewards"],
            **{name: batch[key] for name, key in rest.items() if key in batch},
        )
