"""Demonstration files of SERL and HIL-SERL: read safely, checked field by field, written atomically."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serl_fast import safe_pickle
from serl_fast.data.episodes import Dataset, DatasetError, Episode, ReadOptions
from serl_fast.data.fill import fill_store
from serl_fast.data.formats import open_dataset
from serl_fast.data.pickle_writer import ListWriter
from serl_fast.data.transitions import ACTION_TOLERANCE, Problem, Transition, Wanted, different_shapes, parse, shapes_of
from serl_fast.files import written_whole
from serl_fast.replay import ReplayStore


class DemonstrationError(DatasetError):
    """A demonstration file that can not be used; the message names file, transition and field."""


class Appends(Protocol):
    """What :func:`demonstrations_to_store` needs of a store."""

    def append(self, transition: Mapping[str, Any], /) -> Any:
        """Add one transition."""


def load_demonstrations(
    paths: Sequence[str | Path] | str | Path,
    image_keys: Sequence[str] = (),
    action_dim: int | None = None,
    like: Transition | None = None,
) -> list[Transition]:
    """Read demonstration pickles: lists of transitions with the keys of SERL.

    Each transition is a dict of ``observations`` (a dict with ``state`` and cameras, or the state itself),
    ``actions``, ``next_observations``, ``rewards``, ``masks`` (1 - terminated) and ``dones``;
    ``grasp_penalty`` stands beside them or in ``infos``, and is 0 where there is none. A leading time axis of
    1, as in the files of HIL-SERL, is dropped. Cameras that are not in ``image_keys`` are left out.

    Args:
        paths: files of pickle protocol 2 to 5; one path or several.
        image_keys: cameras to keep.
        action_dim: width A that the actions must have; by default that of the first transition.
        like: a transition of the environment that the demonstrations are for; theirs must have its shapes.

    Returns:
        All transitions, in the order of the files. All or none: a problem anywhere returns nothing.

    Raises:
        DemonstrationError: a file is no safe pickle of such a list, or a field is missing, has another shape
            or dtype, is not finite or out of range.
        OSError: a file cannot be opened.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    transitions: list[Transition] = []
    wanted = Wanted(image_keys, action_dim=action_dim)
    reference, whose = like and shapes_of(like), "the environment"
    for path in paths:
        for index, raw in enumerate(read_list(path)):
            where = f"{path}, transition {index}"
            try:
                transition = parse(raw, wanted)
                different = different_shapes(shapes_of(transition), reference, whose) if reference else None
                if different is not None:
                    raise different
            except Problem as problem:
                raise DemonstrationError(f"{where}, {problem}") from None
            if reference is None:
                reference, whose = shapes_of(transition), where
            transitions.append(transition)
    return transitions


def save_demonstrations(path: str | Path, transitions: Iterable[Mapping[str, Any]]) -> None:
    """Write transitions as a demonstration pickle that SERL, HIL-SERL and :func:`load_demonstrations` read.

    The file appears complete or not at all: it is written under another name, flushed to disk and renamed.

    Args:
        path: the file; its folder must exist.
        transitions: with ``terminated`` and ``truncated``, or with ``masks`` and ``dones``. Of ``infos``
            numbers and strings are kept.

    Raises:
        DemonstrationError: a transition that :func:`load_demonstrations` would refuse.
    """
    path = Path(path)
    rows = []
    for index, transition in enumerate(transitions):
        row = _to_file(transition)
        try:
            parse(row, Wanted(_cameras(row)))
        except Problem as problem:
            raise DemonstrationError(f"transition {index}, {problem}") from None
        rows.append(row)
    if not rows:
        raise DemonstrationError(f"{path}: there are no transitions to save")
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        writer = ListWriter(file)
        for row in rows:
            writer.add(row)
        writer.end()


def fill_with_demonstrations(
    paths: Iterable[str | Path],
    store: ReplayStore,
    image_keys: Sequence[str],
    action_dim: int | None = None,
    *,
    filter_key: str | None = None,
    prepare: Callable[[Dataset], Dataset] = lambda dataset: dataset,
) -> int:
    """Append demonstrations of any format that ``serl_fast.data.formats`` reads, an episode at a time in memory.

    Args:
        paths: files and folders, in this order.
        store: for transitions of the environment; the demonstrations must have its fields and shapes.
        image_keys: cameras to read.
        action_dim: width A that the actions must have; by default the store's.
        filter_key: see ``ReadOptions``.
        prepare: what every data set goes through first.

    Returns:
        How many transitions were appended.

    Raises:
        DatasetError: a file can not be read, does not fit or has actions outside [-1, 1]; see
            :func:`serl_fast.data.fill.fill_store` for what is in the store then.
        FileNotFoundError: a path is not there.
    """
    shapes = {field.name: field.row_shape for field in (*store.schema.observations, *store.schema.steps)}
    width = shapes["actions"][0] if action_dim is None else action_dim
    count = 0
    for path in paths:
        dataset = prepare(open_dataset(path, ReadOptions(image_keys=tuple(image_keys), filter_key=filter_key)))
        dataset = replace(dataset, read=partial(_fitting, dataset, shapes, width))
        count += fill_store(dataset, store)
    return count


def _fitting(dataset: Dataset, shapes: Mapping[str, tuple[int, ...]], action_dim: int) -> Iterator[Episode]:
    """The episodes, if they are an environment's; actions beyond [-1, 1] by rounding alone are clipped."""
    for episode in dataset.read():
        problem = _misfit(episode, shapes, action_dim)
        if problem is not None:
            raise DemonstrationError(f"{dataset.path}, {episode.name}, {problem}")
        yield replace(episode, actions=np.clip(episode.actions, -1.0, 1.0))


def _misfit(episode: Episode, shapes: Mapping[str, tuple[int, ...]], action_dim: int) -> Problem | None:
    """The first thing about an episode that does not fit the environment."""
    actions = episode.actions
    if actions.shape[1:] != (action_dim,):
        return Problem("actions", f"has {math.prod(actions.shape[1:])} values; accepted: {action_dim}")
    outside = np.argwhere(np.abs(actions) > np.float32(1 + ACTION_TOLERANCE))
    if len(outside):
        step, index = outside[0]
        worst = f"is {actions[step, index]:g} at step {step}, index {index}"
        return Problem("actions", f"{worst}; accepted: values in [-1, 1]")
    given = {f"observations/{key}": value.shape[1:] for key, value in episode.observations.items()}
    expected = {name: shape for name, shape in shapes.items() if name.startswith("observations/")}
    return different_shapes(given, expected, "the environment")


def demonstrations_to_store(transitions: Iterable[Mapping[str, Any]], store: Appends) -> None:
    """Append transitions in order. Whether one continues the one before is for the store to find out.

    Args:
        transitions: as :func:`load_demonstrations` returns them.
        store: a :class:`serl_fast.replay.ReplayStore`, or anything with its ``append``.
    """
    for transition in transitions:
        store.append(transition)


def read_list(path: str | Path) -> list[Any]:
    """What a file holds, which must be a list of something.

    Raises:
        DemonstrationError: it is no safe pickle of a list, or the list is empty.
        OSError: the file cannot be opened.
    """
    try:
        content = safe_pickle.load(path)
    except ValueError as error:
        raise DemonstrationError(str(error)) from None
    if not isinstance(content, (list, tuple)):
        raise DemonstrationError(f"{path} holds a {type(content).__name__}; expected a list of transitions")
    if not content:
        raise DemonstrationError(f"{path} holds no transitions")
    return list(content)


def _to_file(transition: Mapping[str, Any]) -> dict[str, Any]:
    """The transition under the keys of the file format."""
    row = dict(transition)
    if "terminated" in row:
        terminated, truncated = bool(row.pop("terminated")), bool(row.pop("truncated", False))
        row |= {"masks": 1.0 - terminated, "dones": terminated or truncated}
    infos = row.get("infos") or {}
    row["infos"] = {
        key: value for key, value in infos.items() if isinstance(value, (bool, int, float, str, np.number, np.bool_))
    }
    return row


def _cameras(row: Mapping[str, Any]) -> list[str]:
    observations = row.get("observations")
    return [key for key in observations if key != "state"] if isinstance(observations, Mapping) else []
