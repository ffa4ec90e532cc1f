"""D4RL: one flat HDF5 file, all episodes below one another.

``observations`` [N, P], ``actions`` [N, A], ``rewards`` [N], ``terminals`` [N] (the task ended there), ``timeouts`` [N]
(a time limit cut the episode there), in some files ``next_observations`` [N, P]; ``infos/*`` and ``metadata/*``. Flags
and rewards may be [N, 1]. Every further array of N rows is an extra of its name; small values of ``metadata`` and the
file's attributes are the data set's attributes.

Where an episode ends and what follows its last step:

* at a terminal, which is ``terminated``. In antmaze the robot goes on from there, so what followed is in the file;
* at a timeout, which is ``truncated``. A file without ``timeouts`` and ``next_observations`` is cut after as many steps
  as D4RL's environment allows (``serl_fast.data.d4rl_scores``; its name or an attribute ``env`` says which one it is);
* with ``next_observations`` also where the next row does not go on from them. That is ``truncated`` where the file has
  no ``timeouts``, and a mere cut where it has;
* without ``next_observations`` a step is followed by the next row. What followed the last step of an episode is not in
  the file: a step that is not terminal is left out, and after a terminal one its own observation stands again, which no
  value follows.

Source: https://arxiv.org/abs/2004.07219; ``d4rl.qlearning_dataset``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.d4rl_scores import Task, find_task
from serl_fast.data.episodes import Array, Dataset, DatasetError, Episode, ReadOptions
from serl_fast.data.hdf5 import Field, Hdf5, checked, chunk_rows, is_hdf5, new_file
from serl_fast.data.pieces import split_at_ends

BLOCK = 65536
"""Rows that are looked at together for ends of episodes."""
SAME = 1e-6
"""How far apart two observations may be that are one."""
_SMALL = 64
_OWN = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


@dataclass(frozen=True)
class _Layout:
    """The arrays of a file, whose shapes fit together."""

    fields: dict[str, Field]
    extras: dict[str, Field]
    attributes: dict[str, Any]
    task: Task | None

    @property
    def rows(self) -> int:
        return self.fields["actions"].shape[0]

    @property
    def limit(self) -> int | None:
        """Steps after which an episode was cut, where that is all that the file lets us know about it."""
        known = {"timeouts", "next_observations"} & set(self.fields)
        return None if known or self.task is None else self.task.max_episode_steps

    @property
    def goes_on(self) -> bool:
        """Whether the row after a terminal one follows it."""
        return self.task is not None and self.task.name.startswith("antmaze")

    def flags(self, name: str, start: int, stop: int) -> Array:
        """Flags as bool [rows]; all False where the file has none."""
        field = self.fields.get(name)
        return np.zeros(stop - start, bool) if field is None else field.rows(start, stop).reshape(-1).astype(bool)


def matches(path: Path) -> bool:
    """Whether it is an HDF5 file with arrays of D4RL's names at its root."""
    if not is_hdf5(path):
        return False
    with Hdf5(path) as file:
        return bool({"observations", "terminals"} & set(file.names()))


def read(path: Path, options: ReadOptions) -> Dataset:
    """Open a file. See the module for the rules."""
    if options.filter_key or options.image_keys or options.state_keys not in (None, ("observations",)):
        raise DatasetError(
            f"{path}: D4RL has a state, its 'observations', and neither cameras nor selections of episodes; leave out "
            "image_keys, state_keys and filter_key"
        )
    with Hdf5(path) as file:
        layout = _layout(file, path)
        episodes, steps = _counts(layout, options.max_episodes)
    return Dataset(path, "d4rl", partial(_read, path, options), episodes, steps, layout.attributes)


def _counts(layout: _Layout, max_episodes: int | None) -> tuple[int | None, int | None]:
    """Episodes and steps, as far as flags alone tell."""
    if "next_observations" in layout.fields or layout.goes_on:
        return None, layout.rows if "next_observations" in layout.fields and max_episodes is None else None
    lengths = [stop - start - (not layout.flags("terminals", stop - 1, stop)[0]) for start, stop in _ends(layout)]
    lengths = [length for length in lengths if length][:max_episodes]
    return len(lengths), sum(lengths)


def _read(path: Path, options: ReadOptions) -> Iterator[Episode]:
    with Hdf5(path) as file:
        layout = _layout(file, path)
        yield from islice(chain.from_iterable(map(split_at_ends, _episodes(layout))), options.max_episodes)


def _layout(file: Hdf5, path: Path) -> _Layout:
    found = file.fields()
    fields = {name: found[name] for name in _OWN if name in found}
    for name in ("observations", "actions", "rewards", "terminals"):
        if name not in fields:
            have = ", ".join(list(found)[:10]) + ", …" * (len(found) > 10)
            raise DatasetError(f"{path}, field '{name}': is missing; the file has {have or 'no arrays'}")
    rows = fields["actions"].shape[:1]
    for name, field in fields.items():
        wide = name.endswith("observations") or name == "actions"
        flat = len(field.shape) == 1 or field.shape[1:] == (1,)
        if (len(field.shape) != 2 if wide else not flat) or field.shape[:1] != rows or 0 in field.shape:
            expected = f"({rows[0] if rows else 'N'}, {'width' if wide else '1) or (N,'})"
            raise DatasetError(f"{field.where}: has shape {field.shape}; accepted: {expected}")
        if wide and field.dtype.kind != "f":
            raise DatasetError(f"{field.where}: is {field.dtype}; accepted: floating point (discrete actions are not)")
    if "next_observations" in fields and fields["next_observations"].shape != fields["observations"].shape:
        raise DatasetError(f"{fields['next_observations'].where}: must have the shape of 'observations'")
    extras = {
        name: field
        for name, field in found.items()
        if name not in _OWN and not name.startswith("metadata/") and field.shape[:1] == rows
    }
    attributes = _attributes(file, found)
    task = find_task(str(attributes.get("env", ""))) or find_task(path.stem)
    if task is None and "timeouts" not in fields and "next_observations" not in fields:
        raise DatasetError(
            f"{path} has neither 'timeouts' nor 'next_observations', and its name is none of D4RL's tasks: where its "
            "episodes end can not be known. Give the file an attribute 'env', 'hopper-medium-v2' for example"
        )
    return _Layout(fields, extras, attributes, task)


def _attributes(file: Hdf5, found: Mapping[str, Field]) -> dict[str, Any]:
    attributes = file.attributes()
    for name in file.names("metadata"):
        texts = file.texts(f"metadata/{name}")
        if len(texts) == 1:
            attributes[name] = _parsed(texts[0])
        elif texts:
            attributes[name] = texts
        elif (field := found.get(f"metadata/{name}")) is not None and np.prod(field.shape) <= _SMALL:
            attributes[name] = field.rows().tolist()
    return {name: _parsed(value) for name, value in attributes.items()}


def _parsed(value: Any) -> Any:
    """What was written as JSON because HDF5 has no such value."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _ends(layout: _Layout) -> Iterator[tuple[int, int]]:
    """Episodes as start and stop rows, by the flags; where there are no timeouts by observations or the step limit."""
    start, rows = 0, layout.rows
    jumps = "timeouts" not in layout.fields and "next_observations" in layout.fields
    limit = layout.limit or rows
    for block in range(0, rows, BLOCK):
        stop = min(block + BLOCK, rows)
        ends = layout.flags("timeouts", block, stop)
        if not layout.goes_on:
            ends |= layout.flags("terminals", block, stop)
        if jumps:
            now = layout.fields["next_observations"].rows(block, stop, np.float32)
            following = layout.fields["observations"].rows(block + 1, min(stop + 1, rows), np.float32)
            ends[: len(following)] |= _apart(now, following)
        for end in (block + 1 + np.flatnonzero(ends)).tolist():
            while start < end:
                yield start, min(start + limit, end)
                start = min(start + limit, end)
        while start + limit <= stop < rows:
            yield start, start + limit
            start += limit
    while start < rows:
        yield start, min(start + limit, rows)
        start = min(start + limit, rows)


def _apart(one: Array, other: Array) -> Array:
    """Whether rows differ, bool [rows of ``other``]."""
    return np.asarray(np.abs(one[: len(other)] - other).max(1) > SAME)


def _episodes(layout: _Layout) -> Iterator[Episode]:
    """Rows between ends; where the robot goes on after a terminal, that may be in the middle."""
    fields, rows = layout.fields, layout.rows
    for start, stop in _ends(layout):
        observations = fields["observations"].rows(start, stop, np.float32)
        if "next_observations" not in fields:
            if layout.flags("terminals", stop - 1, stop)[0]:
                yield _episode(layout, start, stop, np.concatenate([observations, observations[-1:]]))
            elif stop - start > 1:
                limited = stop - start == layout.limit or layout.flags("timeouts", stop - 1, stop)[0]
                yield _episode(layout, start, stop - 1, observations, cut=stop < rows or bool(limited))
            continue
        following = fields["next_observations"].rows(start, stop, np.float32)
        pieces = [0, *(np.flatnonzero(_apart(following, observations[1:])) + 1).tolist(), stop - start]
        for first, last in pairwise(pieces):
            own = np.concatenate([observations[first:last], following[last - 1 : last]])
            # Without timeouts a jump is all that says that the episode was cut.
            cut = "timeouts" not in fields and start + last < rows
            yield _episode(layout, start + first, start + last, own, cut=cut)


def _episode(layout: _Layout, start: int, stop: int, observations: Array, cut: bool = False) -> Episode:
    terminated = layout.flags("terminals", start, stop)
    truncated = layout.flags("timeouts", start, stop)
    truncated[-1] |= cut and not terminated[-1]
    return Episode(
        {"state": observations},
        layout.fields["actions"].rows(start, stop, np.float32),
        layout.fields["rewards"].rows(start, stop, np.float32).reshape(-1),
        terminated,
        truncated,
        extras={name: field.rows(start, stop) for name, field in layout.extras.items()},
        name=f"rows {start} to {stop}",
    )


def write(
    path: Path, episodes: Iterable[Episode], attributes: Mapping[str, Any], compression: str | None = "gzip"
) -> None:
    """Write a file with ``next_observations`` and ``timeouts``, from which all steps come back.

    Extras stand under their names (``infos/qpos``), attributes below ``metadata``, as JSON where HDF5 has no such type.

    Args:
        path: which must not exist.
        episodes: with a state and no cameras.
        attributes: of the whole.
        compression: as in h5py; None for none.

    Raises:
        DatasetError: an episode has cameras or no state, or is like :func:`check_episode` refuses.
    """
    with new_file(path) as file:
        for episode in checked(path, episodes):
            if set(episode.observations) != {"state"}:
                raise DatasetError(
                    f"{path}: D4RL's files hold a state alone; the episodes have {', '.join(episode.observations)}. "
                    "Read them with image_keys=(), or write robomimic's or LeRobot's format"
                )
            state = episode.observations["state"]
            columns = {
                "observations": state[:-1],
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminals": episode.terminated,
                "timeouts": episode.truncated,
                "next_observations": state[1:],
                **episode.extras,
            }
            for name, values in columns.items():
                if name not in file:
                    shape = values.shape[1:]
                    file.create_dataset(
                        name, (0, *shape), values.dtype, maxshape=(None, *shape), compression=compression,
                        chunks=(chunk_rows(values), *shape),
                    )  # fmt: skip
                column = file[name]
                column.resize(len(column) + len(values), axis=0)
                column[-len(values) :] = values
        for name, value in attributes.items():
            if value is None:
                continue
            file[f"metadata/{name}"] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
