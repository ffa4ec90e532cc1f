"""From data sets into replay stores: one pass, an episode at a time in memory."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.episodes import Dataset, DatasetError, Episode, columns_of
from serl_fast.logging import tracked
from serl_fast.replay import ReplayStore, Schema
from serl_fast.replay.fields import REQUIRED

KEPT = ("grasp_penalty", "labels")
"""Extras that a new store gets where a data set has them."""


class NoRoomError(DatasetError):
    """There are more transitions than a store has room for."""


def fill_store(dataset: Dataset, store: ReplayStore, progress: bool = True) -> int:
    """Append all transitions of a data set, episode by episode.

    The first transition of an episode begins a new stretch of the store, the others continue it.

    Args:
        dataset: with the fields of the store's schema; extras that the schema does not have are left out, and
            ``grasp_penalty`` is 0 where there is none.
        store: in memory or on disk.
        progress: show how far it is.

    Returns:
        How many transitions were appended.

    Raises:
        DatasetError: an episode can not be read, does not fit, or finds no room (:class:`NoRoomError`). A store in
            memory that was empty is empty again, otherwise the message says what is in the store.
        OSError: a file can not be read, or the disk is full; the same holds.
    """
    return _fill(dataset, iter(dataset), store, progress)


def _fill(dataset: Dataset, episodes: Iterator[Episode], store: ReplayStore, progress: bool) -> int:
    """:func:`fill_store` with a pass that may have begun."""
    before = store.appended
    undo = None if before else store.state_dict()  # of an empty store: nothing but its numbers
    if progress:
        episodes = tracked(episodes, dataset.steps, f"reading {dataset.path.name}", len)
    whole = 0
    try:
        for episode in episodes:
            _append(episode, store, f"{dataset.path}, {episode.name}", first=not whole)
            whole += 1
    except (DatasetError, OSError) as error:
        if undo is not None and _restored(store, undo):
            raise
        message = f"the store got {store.appended - before} transitions of the {whole} episodes before it"
        raise type(error)(f"{error}; {message}, and holds {len(store)}") from error
    return store.appended - before


def store_of(
    dataset: Dataset,
    capacity: int | None = None,
    *,
    path: str | Path | None = None,
    extras: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ReplayStore:
    """A new store with all transitions of a data set, or an error and no store.

    Args:
        dataset: any with at least one episode.
        capacity: of the store; by default the number of transitions, for which a format that does not say it is read
            once more.
        path: folder for a store on disk, which may be larger than memory; None for one in memory.
        extras: fields of a step that the store gets besides the standard ones; by default those of :data:`KEPT`
            that the data set has.
        seed: of the store's sampling.
        progress: show how far it is.

    Raises:
        DatasetError: as :func:`fill_store`, or the data set has not these extras.
        FileExistsError: there is something at ``path``.
    """
    path = None if path is None else Path(path).expanduser()
    if path is not None and path.exists():
        raise FileExistsError(f"{path} exists; give the path of a new folder")
    capacity = capacity or count_steps(dataset)
    episodes = iter(dataset)
    begun = list(itertools.islice(episodes, 1))
    if not begun:
        raise DatasetError(f"{dataset.path} has no episodes")
    schema = schema_of(begun[0], extras)
    store = ReplayStore(schema, capacity, seed) if path is None else ReplayStore.open(path, schema, capacity, seed=seed)
    try:
        _fill(dataset, _resumed(begun, episodes), store, progress)
        store.flush()
    except BaseException:
        store.close()
        if path is not None:
            shutil.rmtree(path)
        raise
    return store


def schema_of(episode: Episode, extras: Sequence[str] | None = None) -> Schema:
    """The schema of a store for episodes like this one; ``extras`` as for :func:`store_of`.

    Raises:
        DatasetError: the episode has not these extras.
    """
    if extras is None:
        extras = [name for name in KEPT if name in episode.extras]
    missing = [name for name in extras if name not in episode.extras and name != "grasp_penalty"]
    if missing:
        have = ", ".join(episode.extras) or "none"
        raise DatasetError(f"{episode.name} has no extra {', '.join(missing)}; it has {have}")
    return Schema.from_example(_first(columns_of(episode, extras)))


def count_steps(dataset: Dataset) -> int:
    """The number of transitions, by reading them all where the format's headers do not say it."""
    return sum(map(len, dataset)) if dataset.steps is None else dataset.steps


def _resumed(begun: list[Episode], others: Iterator[Episode]) -> Iterator[Episode]:
    """All episodes of a pass that has begun, none of them kept."""
    while begun:
        yield begun.pop()
    yield from others


def _restored(store: ReplayStore, state: dict[str, Any]) -> bool:
    """Whether the store could be brought back to a state, which those in files can not."""
    try:
        store.load_state_dict(state)
    except ValueError:
        return False
    return True


def _append(episode: Episode, store: ReplayStore, where: str, first: bool) -> None:
    extras = [field.name for field in store.schema.steps if field.name not in ("actions", *REQUIRED)]
    if len(store) + len(episode) > store.capacity:
        raise NoRoomError(
            f"{where}: its {len(episode)} transitions do not fit; the store holds {len(store)} of {store.capacity}"
        )
    try:
        if first:  # the others are like it
            store.schema.require_equal(schema_of(episode, extras), "the data")
        store.extend(columns_of(episode, extras), np.arange(len(episode)) > 0)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: {error}") from error


def _first(columns: dict[str, Any]) -> dict[str, Any]:
    return {key: _first(value) if isinstance(value, dict) else value[0] for key, value in columns.items()}
