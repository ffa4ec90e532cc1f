"""Runs of transitions that lie one after the other: episodes, and what ``store[a:b]`` gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serl_fast.replay.layout import Batch

if TYPE_CHECKING:
    from serl_fast.replay.store import ReplayStore


class Slice:
    """The transitions with the numbers ``start`` … ``stop - 1`` of a store; a view: nothing is copied until read.

    It always means the same transitions. Reading raises an IndexError once the store has given one of them up.
    """

    def __init__(self, store: ReplayStore, start: int, stop: int) -> None:
        self.store = store
        self.start = start
        self.stop = max(start, stop)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Their numbers, [N] int64."""
        return np.arange(self.start, self.stop, dtype=np.int64)

    def batch(self, discount: float = 0.99, **options: Any) -> Batch:
        """All of them in the order of time, in fresh arrays [N, …].

        Args:
            discount: γ in [0, 1].
            options: as for ``ReplayStore.sampler``.
        """
        return self.store.sampler(discount, **options).batch_of(self.ids)

    def __len__(self) -> int:
        """Number of transitions."""
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One transition, as it was appended."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} transitions of the slice")
        wanted = {field.name for field in self.store.schema.inputs}
        batch = self.store.sampler(fields=wanted).batch_of([self.start + index % len(self)])
        return _row(batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The transitions, one after the other."""
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        """Their numbers."""
        return f"Slice({self.start}:{self.stop})"


def _row(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _row(value) for key, value in tree.items()}
    return tree[0]
