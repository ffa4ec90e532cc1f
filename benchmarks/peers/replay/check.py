"""Whether a store does the work that it is measured for: what it delivers is what was stored, drawn at random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.replay.store import Store, Unsupported
from benchmarks.peers.replay.transitions import BLOCK, EPISODE, fields, wrong_fields

ROWS = 256
BATCHES = {"states": 16, "cameras": 4}  # so that nearly every one of the 1024 and 128 different rows is drawn
LEAST_DRAWN = 0.9  # of the stored rows; 0.98 are expected of 1024


class Delivered(NamedTuple):
    """What was found in some batches.

    Attributes:
        wrong: share of the rows that were never stored.
        distinct: how many different observations were among them.
        fields: by field, in how many rows it was wrong.
    """

    wrong: float
    distinct: int
    fields: Mapping[str, int]


def delivered(store: Store, sample: Callable[[], Any], n_step: int, what: str = "batches") -> Delivered:
    """Look at every row of some batches.

    Raises:
        Unsupported: two of them in a row are the same, or hold too little.
    """
    wrong, seen, batches, before = np.zeros(0, bool), set(), BATCHES[store.work.name], []
    fields_wrong: Counter[str] = Counter()
    for _ in range(batches):
        parts = {name: np.asarray(value) for name, value in store.parts(sample()).items()}
        if lacking := fields(store.work) - set(store.lacks.get(store.order, ())) - set(parts):
            raise Unsupported(f"not the same work: {what} hold no {', '.join(sorted(lacking))}")
        if any(len(value) != ROWS for value in parts.values()):
            raise Unsupported(f"not the same work: {what} have not {ROWS} rows")
        found = wrong_fields(store.work, parts, n_step)
        fields_wrong.update({name: int(rows.sum()) for name, rows in found.items()})
        wrong = np.append(wrong, np.logical_or.reduce(list(found.values())))
        numbers = parts["state"][:, 0].tolist()
        if numbers == before:
            raise Unsupported(f"not the same work: {what}: the same rows twice")
        before = numbers
        seen.update(numbers)
    return Delivered(float(wrong.mean()), len(seen), +fields_wrong)


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
        found = delivered(store, sample, n_step, what)
    except (ValueError, RuntimeError, IndexError) as error:
        raise Unsupported(f"not the same work: {what}: no batch to be had ({error})") from error
    if found.wrong > store.tolerated:
        which = ", ".join(f"{name} in {rows}" for name, rows in found.fields.items())
        raise Unsupported(f"not the same work: {what}: {found.wrong:.1%} of the rows are not what was stored ({which})")
    if found.distinct < LEAST_DRAWN * stored:
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


def check_extend(store: Store, blocks: list[Any]) -> None:
    """Blocks that were appended in one call each are what the store delivers.

    Args:
        store: empty, for two episodes.
        blocks: of different steps, in the store's form.
    """
    kept = [*blocks[:2], *blocks[-2:]]
    for each in kept:
        store.extend(each)
    extended = store.extended()
    require_same_work(extended, extended.fresh(ROWS), 1, BLOCK * min(len(blocks), len(kept)), "extend")
