"""Batches of the NumPy twin, made row by row as the formulas say."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from serl_fast.replay.layout import Batch, Layout
from serl_fast.replay.reference_random import permuted, uniform_doubles, uniform_indices
from serl_fast.replay.sampler import Order, age_indices

if TYPE_CHECKING:
    from serl_fast.replay.reference import NumpyReplayStore


class NumpySampler:
    """``Sampler`` for the NumPy twin; the arguments are described at ``ReplayStore.sampler``."""

    def __init__(
        self,
        store: NumpyReplayStore,
        discount: float = 0.99,
        *,
        n_step: int = 1,
        sequence_length: int | None = None,
        pad: Literal["next", "last"] = "next",
        fields: Iterable[str] | None = None,
        order: Order = "uniform",
        beta: float = 0.4,
        ids: bool = False,
    ) -> None:
        if pad not in ("next", "last") or order not in ("uniform", "prioritized", "epoch"):
            raise ValueError(f"pad is {pad!r}, order {order!r}")
        n_step = operator.index(n_step)
        length = None if sequence_length is None else operator.index(sequence_length)
        if n_step < 1 or (length is not None and (length < 1 or n_step > 1)):
            raise ValueError(f"n_step is {n_step}, sequence_length {length}")
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"the discount is {discount}; it lies in [0, 1]")
        if order == "prioritized" and store.priorities is None:
            raise ValueError("the store keeps no priorities; call prioritize first")
        also = ["ids", "weights"] if order == "prioritized" else ["ids"] if ids else []
        self.store = store
        self.layout = Layout(store.schema, sequence_length, fields, also)
        self.order = order
        self.beta = beta
        self._discount, self._n_step, self._length, self._pad = float(discount), n_step, length, pad
        self._epoch: list[int] | None = None  # what is left of it

    @property
    def beta(self) -> float:
        """See ``Sampler.beta``."""
        return self._beta

    @beta.setter
    def beta(self, beta: float) -> None:
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta is {beta}; it lies in [0, 1]")
        self._beta = float(beta)

    def sample(self, batch_size: int) -> Batch:
        """See ``Sampler.sample``."""
        batch = self.empty_batch(batch_size)
        self.sample_into(batch)
        return batch

    def sample_into(self, batch: Batch) -> None:
        """See ``Sampler.sample_into``."""
        _, rows = self.layout.arrays(batch)
        starts = self._require_starts()
        weights = [1.0] * rows
        if self.order == "uniform":
            drawn = uniform_indices(self.store.seed, self.store.next_draw(), starts, rows)
            ids = [self.store.first_id + int(age) for age in drawn]
        elif self.order == "prioritized":
            ids, weights = self._draw_prioritized(rows, starts)
        else:
            ids = []
            while len(ids) < rows:
                ids += self._continue_epoch(rows - len(ids))
                if len(ids) < rows:
                    self._begin_epoch()
            self._epoch = self._epoch or None  # nothing is left of it for epoch()
        self._fill(batch, ids, weights)

    def empty_batch(self, batch_size: int) -> Batch:
        """See ``Sampler.empty_batch``."""
        return self.layout.empty_batch(batch_size)

    def batch_at(self, indices: npt.ArrayLike) -> Batch:
        """See ``Sampler.batch_at``."""
        ages = age_indices(indices)
        if ((ages < 0) | (ages >= self._starts())).any():
            raise IndexError(f"an index is outside the {self._starts()} starts of the store")
        batch = self.layout.batch([np.empty((len(ages), *c.shape), c.dtype) for c in self.layout.wanted])
        self._fill(batch, [self.store.first_id + int(age) for age in ages], [1.0] * len(ages))
        return batch

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        """See ``Sampler.epoch``."""
        if self.order != "epoch":
            raise ValueError(f"the order of this sampler is '{self.order}'")
        while True:
            self.layout.arrays(self.empty_batch(batch_size))
            self._require_starts()
            if self._epoch is None:
                self._begin_epoch()
            ids = self._continue_epoch(batch_size)
            if not ids:
                self._epoch = None
                return
            batch = self.layout.batch([np.empty((len(ids), *c.shape), c.dtype) for c in self.layout.wanted])
            self._fill(batch, ids, [1.0] * len(ids))
            yield batch

    # --- which steps ---------------------------------------------------------------------------------------------

    def _starts(self) -> int:
        """How many steps a row may start at: those of the sequences that are whole."""
        needed = self._length if self._length is not None and self._pad == "next" else 1
        return max(0, len(self.store) - needed + 1)

    def _require_starts(self) -> int:
        if not self._starts():
            raise ValueError(f"the store holds {len(self.store)} transitions, which is too few")
        return self._starts()

    def _begin_epoch(self) -> None:
        starts = self._require_starts()
        order = permuted(self.store.seed, self.store.next_draw(), starts, np.arange(starts))
        self._epoch = [self.store.first_id + int(age) for age in order]

    def _continue_epoch(self, rows: int) -> list[int]:
        first = self.store.first_id
        live: list[int] = []
        while self._epoch and len(live) < rows:
            number = self._epoch.pop(0)
            if first <= number < first + self._starts():
                live.append(number)
        return live

    def _draw_prioritized(self, rows: int, starts: int) -> tuple[list[int], list[float]]:
        """One step from each of ``rows`` equal parts of the sum of all priorities (Schaul et al., appendix B.2.1)."""
        store = self.store
        assert store.priorities is not None
        tree = store.priorities.tree
        shares = uniform_doubles(store.seed, store.next_draw(), rows).tolist()
        part = tree.total() / rows
        found = [tree.find((row + share) * part) for row, share in enumerate(shares)]
        latest = store.first_id + starts - 1  # stands for the steps at which no whole sequence starts
        live = {store.leaf(number): number for number in range(store.first_id, store.appended)}
        ids = [min(live[leaf], latest) for leaf in found]
        scale = len(store) / tree.total()
        exact = [math.pow(scale * tree.value(store.leaf(number)), -self._beta) for number in ids]
        return ids, [weight / max(exact) for weight in exact]

    # --- what of them --------------------------------------------------------------------------------------------

    def _fill(self, batch: Batch, ids: list[int], weights: list[float]) -> None:
        arrays, _ = self.layout.arrays(batch) if ids else ([], 0)
        make = self._transition if self._length is None else self._sequence
        rows = [{**make(number), "ids": number, "weights": weight} for number, weight in zip(ids, weights, strict=True)]
        for column, array in zip(self.layout.columns, arrays, strict=False):
            if array is not None:
                for row, values in enumerate(rows):
                    array[row] = values[column.name]

    def _transition(self, first: int) -> dict[str, Any]:
        """The n steps of one episode from ``first`` on, as one transition."""
        store = self.store
        reached = min(first + self._n_step - 1, store.last_of_episode(first))
        row = store.transition(first)
        end = store.transition(reached)
        for name in end:
            if name.startswith("next_") or name in ("terminated", "truncated"):
                row[name] = end[name]
        if self._n_step > 1:
            row["rewards"] = self._returns(range(first, reached + 1))[-1]
        row["masks"] = 0.0 if end["terminated"] else 1.0
        row["discounts"] = self._power(reached - first + 1) * row["masks"]
        return row

    def _sequence(self, first: int) -> dict[str, Any]:
        """``length`` steps from ``first`` on, each array with a leading axis [L]."""
        store, length = self.store, self._length
        assert length is not None
        newest, last = store.appended - 1, store.last_of_episode(first)
        places = range(first, first + length)
        ended = store.is_last(last) or places[-1] > last  # else the episode may go on with the next append
        steps = [min(place, last) if self._pad == "last" else place for place in places]
        counted = [place for place in places if self._pad == "next" or place <= last]
        elements = [store.transition(step) for step in steps]
        row: dict[str, Any] = {name: np.stack([element[name] for element in elements]) for name in elements[0]}
        for name in [name for name in row if name.startswith("observations")]:
            row["full_" + name] = row[name]
            row[name] = elements[0][name]
        row["next_actions"] = np.stack([store.transition(min(step + 1, newest))["actions"] for step in steps])
        returns, reached = self._returns(counted), [min(k, len(counted) - 1) for k in range(length)]
        row["rewards"] = [returns[k] for k in reached]
        row["masks"] = [0.0 if row["terminated"][: k + 1].any() else 1.0 for k in range(length)]
        row["discounts"] = [self._power(reached[k] + 1) * row["masks"][k] for k in range(length)]
        row["valid"] = [float(place <= last) for place in places]
        row["terminals"] = [float(place >= last if ended else place > last) for place in places]
        return row

    def _returns(self, steps: Iterable[int]) -> list[np.float32]:
        """The sums of γ^j · reward over the first 1, 2, … of the steps."""
        total, power, returns = 0.0, 1.0, []
        for step in steps:
            total += power * float(self.store.transition(step)["rewards"])
            power *= self._discount
            returns.append(np.float32(total))
        return returns

    def _power(self, exponent: int) -> np.float32:
        power = 1.0
        for _ in range(exponent):
            power *= self._discount
        return np.float32(power)
