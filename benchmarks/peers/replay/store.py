"""The interface of a replay store, fed and read as its own documentation shows.

What a store is fed with is brought into its own form beforehand and is not part of any timing: tensors for one that
stores tensors, a leading environment axis for one that wants it. Libraries are imported where they are used: a
process that measures one store loads that store alone, and the one that asks it none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from benchmarks.children import Unsupported as Unsupported
from benchmarks.peers.replay.transitions import Columns, Work, named

ALPHA, BETA = 0.6, 0.4
TOLERATED = 0.03
"""Share of rows that a library with a known fault may get wrong and still be measured: some pair a transition with the
observation of its neighbour in the buffer at the end of an episode, one row in 128 here. The report says how many."""
NAMES = {"uniform": "uniform", "n_step": "n-step", "prioritized": "prioritised"}


class Store:
    """A store of ``capacity`` transitions of ``work``, sampled in the given order.

    The docstring of a subclass says how the package is set; the report shows it.

    Attributes:
        modules: that an interpreter must have to run it.
        package: distribution whose version is reported.
        orders: how it samples: "uniform", "n_step", "prioritized".
        fill_limit: rows beyond which filling it would take minutes; the capacity is cut to this.
        many_environments: its ``extend`` goes to another store, of as many environments as rows.
        one_thread: only one thread may use it.
        lacks: by order, what its batches do not hold of a transition; the report says it.
        tolerated: share of its rows that may be wrong, for a known fault that its docstring tells.
    """

    modules: tuple[str, ...] = ()
    package = ""
    orders: tuple[str, ...] = ("uniform",)
    fill_limit = 10**9
    many_environments = False
    one_thread = False
    lacks: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    tolerated = 0.0

    def __init__(self, work: Work, order: str, capacity: int) -> None:
        if order not in self.orders:
            raise Unsupported(f"no {NAMES[order]} sampling")
        self.work, self.order, self.capacity = work, order, capacity

    def item(self, step: Columns) -> Any:
        """One transition in the store's form."""
        return step

    def block(self, steps: Columns) -> Any:
        """Many transitions in the store's form."""
        return steps

    def append(self, items: Iterable[Any]) -> None:
        """Store transitions one at a time; the loop is here so that it costs every store the same."""
        raise NotImplementedError

    def append_fast(self, items: Iterable[Any]) -> None:
        raise Unsupported("no faster call")

    def fast_item(self, step: Columns) -> Any:
        raise Unsupported("no faster call")

    def extend(self, block: Any) -> None:
        """Store many in one call."""
        raise Unsupported("takes one transition at a time")

    def fresh(self, rows: int) -> Callable[[], Any]:
        """A function that draws ``rows`` transitions into new arrays."""
        raise NotImplementedError

    def into(self, rows: int) -> Callable[[], Any]:
        """A function that draws into the same arrays every time."""
        raise Unsupported("allocates every batch")

    def prioritise(self, batch: Any, priorities: np.ndarray) -> None:
        """Give the rows of a batch new priorities."""
        raise Unsupported("no priorities")

    def parts(self, batch: Any) -> dict[str, Any]:
        """The arrays of a batch under the names of ``transitions.fields``, each in the shape that was stored."""
        raise NotImplementedError

    def parts_of(self, seen: Any, nexts: Any, action: Any, reward: Any, **rest: Any) -> dict[str, Any]:
        """:meth:`parts` of observations by name, and the others."""
        names = named(self.work.steps["observations"])
        observed = {name: seen[name] for name in names} | {f"next_{name}": nexts[name] for name in names}
        return observed | {"action": action, "reward": reward, **rest}

    def extended(self) -> Store:
        """Where :meth:`extend` put its rows."""
        return self


def dtype_of(value):
    return np.float32 if isinstance(value, float) else np.asarray(value).dtype


def leading_axis(value):
    if isinstance(value, dict):
        return {key: array[None] for key, array in value.items()}
    return np.asarray(value, dtype_of(value))[None]
