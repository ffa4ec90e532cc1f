"""Batches of one store: which steps, and what of them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from serl_fast.replay import _native
from serl_fast.replay.layout import Array, Batch, Layout

if TYPE_CHECKING:
    from serl_fast.replay.store import ReplayStore

Order = Literal["uniform", "prioritized", "epoch"]


class Sampler:
    """Draws batches of one kind from a store; made by :meth:`ReplayStore.sampler`, where the arguments are described.

    Attributes:
        store: where the batches come from.
        layout: the arrays that they have.
    """

    def __init__(
        self,
        store: ReplayStore,
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
        if pad not in ("next", "last"):
            raise ValueError(f"pad is {pad!r}; it is 'next' or 'last'")
        n_step = operator.index(n_step)
        length = 0 if sequence_length is None else operator.index(sequence_length)
        if n_step < 1 or (sequence_length is not None and length < 1):
            raise ValueError(f"n_step is {n_step}, sequence_length {sequence_length}; they are at least 1")
        also = ["ids", "weights"] if order == "prioritized" else ["ids"] if ids else []
        self.store = store
        self.layout = Layout(store.schema, sequence_length, fields, also)
        self.order = order
        self._beta = float(beta)
        self._native = _native.Sampler(
            store._native, float(discount), n_step, length, pad == "last", order, self._beta, self.layout.names
        )
        self._try_sample = self._native.try_sample

    def sample(self, batch_size: int) -> Batch:
        """Draw ``batch_size`` rows into fresh arrays."""
        batch = self.empty_batch(batch_size)
        self.sample_into(batch)
        return batch

    def sample_into(self, batch: Batch) -> None:
        """Draw into the caller's arrays, as many rows as their leading axis holds.

        Args:
            batch: C-contiguous writable arrays with the names, shapes and dtypes of ``empty_batch``.

        Raises:
            TypeError, ValueError: an array does not fit, or the store holds too little. Nothing was drawn.
        """
        if not self._try_sample(batch):
            self._native.sample(*self.layout.arrays(batch))

    def empty_batch(self, batch_size: int) -> Batch:
        """Uninitialised arrays for ``sample_into``."""
        return self.layout.empty_batch(batch_size)

    def batch_at(self, indices: npt.ArrayLike) -> Batch:
        """The rows that start at the given ages, 0 the oldest, in fresh arrays.

        Args:
            indices: [B] integers in [0, len(store)); for sequences those at which a whole one starts.

        Returns:
            A batch, with weights of 1.

        Raises:
            IndexError: an index is outside the store.
        """
        return self._gather(indices, are_ids=False)

    def batch_of(self, ids: npt.ArrayLike) -> Batch:
        """The rows that start at the transitions of the given numbers; see ``batch_at``."""
        return self._gather(ids, are_ids=True)

    def _gather(self, places: npt.ArrayLike, are_ids: bool) -> Batch:
        numbers = age_indices(places)
        if not numbers.size:
            return self.layout.batch([np.empty((0, *c.shape), c.dtype) for c in self.layout.wanted])
        batch = self.empty_batch(len(numbers))
        if "weights" in batch:
            batch["weights"][:] = 1.0
        self._native.gather(numbers, are_ids, self.layout.arrays(batch)[0])
        return batch

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        """Every step that is live now once, in an order by chance; ``order="epoch"`` only.

        Args:
            batch_size: rows of a batch; the last one may have fewer.

        Yields:
            Batches in fresh arrays. Steps that the store gives up meanwhile are left out.

        Raises:
            ValueError: another order, or the store holds too little.
        """
        if self.order != "epoch":
            raise ValueError(f"the order of this sampler is '{self.order}'; make one with order='epoch'")
        while True:
            batch = self.empty_batch(batch_size)
            rows = self._native.sample_epoch(*self.layout.arrays(batch))
            if rows == 0:
                return
            yield batch if rows == batch_size else _head(batch, rows)

    @property
    def beta(self) -> float:
        """Exponent of the importance weights, in [0, 1]; may be set while training goes on."""
        return self._beta

    @beta.setter
    def beta(self, beta: float) -> None:
        self._native.set_beta(float(beta))
        self._beta = float(beta)


def age_indices(indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Indices as [B] int64; raises TypeError or ValueError."""
    ages = np.asarray(indices)
    if ages.dtype.kind not in "iu" and ages.size:
        raise TypeError(f"indices have dtype {ages.dtype}; they are integers")
    if ages.ndim != 1:
        raise ValueError(f"indices have shape {ages.shape}; they are one axis [B]")
    return ages.astype(np.int64)


def _head(tree: Any, rows: int) -> Any:
    if isinstance(tree, dict):
        return {key: _head(value, rows) for key, value in tree.items()}
    array: Array = tree[:rows]
    return array
