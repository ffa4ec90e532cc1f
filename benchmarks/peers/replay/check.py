"""Whether a store does the work that it is measured for: what it delivers is what was stored, drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.replay.store import Store, Unsupported
from benchmarks.peers.replay.transitions import EPISODE, wrong_rows

ROWS = 256
BATCHES = {"states": 16, "cameras": 4}  # so that nearly every one of the 1024 and 128 different rows is drawn
TOLERATED = 0.03
"""Share of rows that a library may get wrong and still be measured: some pair a transition with the observation of its
neighbour in the buffer at the end of an episode, one row in 128 here. The report says how many."""


class Delivered(NamedTuple):
    """What was found in some batches.

    Attributes:
        wrong: share of the rows that were never stored.
        distinct: how many different observations were among them.
    """

    wrong: float
    distinct: int


def delivered(store: Store, sample: Callable[[], Any], n_step: int) -> Delivered:
    """Look at every row of some batches."""
    wrong, seen, batches = 0, set(), BATCHES[store.work.name]
    for _ in range(batches):
        parts = {name: np.asarray(value) for name, value in store.parts(sample()).items()}
        if any(len(value) != ROWS for value in parts.values()):
            return Delivered(1.0, 0)
        wrong += wrong_rows(parts, n_step)
        seen.update(parts["state"][:, 0].tolist())
    return Delivered(wrong / (ROWS * batches), len(seen))


def require_same_work(store: Store, sample: Callable[[], Any], n_step: int, stored: int, what: str) -> Delivered:
    """Refuse a store that delivers nothing, other rows, or always the same ones.

    Args:
        store: to look at.
        sample: draws a batch of it.
        n_step: steps that a row spans.
        stored: how many different observations it holds.
        what: is looked at.

    Raises:
        Unsupported: it does other work.
    """
    try:
        found = delivered(store, sample, n_step)
    except (ValueError, RuntimeError, IndexError) as error:
        raise Unsupported(f"not the same work: {what}: no batch to be had ({error})") from error
    if found.wrong > TOLERATED:
        raise Unsupported(f"not the same work: {what}: {found.wrong:.1%} of the rows are not what was stored")
    if found.distinct < stored / 2:
        raise Unsupported(f"not the same work: {what}: {found.distinct} of {stored} stored transitions were drawn")
    return found


def check(store: Store, n_step: int) -> Delivered:
    """Batches of a full store, in new arrays and in reused ones."""
    stored = min(len(store.work.steps["rewards"]), store.capacity)
    found = require_same_work(store, store.fresh(ROWS), n_step, stored, "batches")
    try:
        into = store.into(ROWS)
    except Unsupported:
        return found
    require_same_work(store, into, n_step, stored, "batches in reused arrays")
    return found


def check_append(store: Store, append: str, episodes: list[list[Any]]) -> None:
    """Episodes, appended one transition at a time by the method ``append``, are what the store delivers.

    Args:
        store: empty, for two episodes.
        append: "append" or "append_fast".
        episodes: different ones, in the store's form.
    """
    for episode in (episodes[0], episodes[-1]):
        getattr(store, append)(episode)
    require_same_work(store, store.fresh(ROWS), 1, EPISODE * min(len(episodes), 2), append)
