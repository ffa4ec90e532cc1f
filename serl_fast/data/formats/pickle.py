"""Pickles of SERL and HIL-SERL: lists of transitions, one file or a folder of them.

A transition is a dict with ``observations`` (``state`` and cameras, or the state itself), ``actions``,
``next_observations``, ``rewards``, ``masks`` (1 - terminated) and ``dones``; a leading time axis of 1 is dropped.
``grasp_penalty`` (also in ``infos``) and ``labels`` are extras where a file has them.

Files have no episodes. Transitions belong to one as long as the next observation of each is, byte for byte, the
observation of the following one and none of them is an end; otherwise, and so after a gap that an intervention left, a
new episode begins. A folder's files are read in the order of the numbers in their names, as HIL-SERL writes
``transitions_1000.pkl``; an episode may go on in the next file.

One file at a time is in memory, and the episode that is being put together. Nothing in a file is run: see
``serl_fast.safe_pickle``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serl_fast.data.demonstrations import read_list
from serl_fast.data.episodes import Dataset, DatasetError, Episode, ReadOptions, check_episode
from serl_fast.data.images import resize
from serl_fast.data.pickle_writer import ListWriter
from serl_fast.data.transitions import Problem, Transition, Wanted, different_shapes, extras_of, parse_all, shapes_of
from serl_fast.files import written_whole

SUFFIXES = (".pkl", ".pickle")

Report = Callable[[str, str], None]
"""Takes where a problem is and what it is."""


class _Row(NamedTuple):
    """A transition, where it stands, and its shapes."""

    name: str
    transition: Transition
    shapes: dict[str, tuple[int, ...]]


def matches(path: Path) -> bool:
    """Whether it is a pickle of protocol 2 to 5, or a folder with such files."""
    if path.is_dir():
        return any(child.suffix in SUFFIXES for child in path.iterdir())
    if path.suffix in SUFFIXES:
        return True
    with open(path, "rb") as file:
        return file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read(path: Path, options: ReadOptions) -> Dataset:
    """Open a file or a folder; how many episodes there are only reading tells.

    Raises:
        DatasetError: the folder has no pickles, or ``filter_key`` is given.
    """
    return Dataset(path, "pickle", partial(_episodes, _files(path, options), options, None))


def survey(path: Path, options: ReadOptions, report: Report) -> Iterator[Episode]:
    """Read all that can be read: what is wrong is reported and left out, and begins a new episode.

    Args:
        path: file or folder.
        options: as for :func:`read`.
        report: called with place and message of every problem.
    """
    return _episodes(_files(path, options), options, report)


def write(path: Path, episodes: Iterable[Episode], attributes: Mapping[str, Any]) -> None:
    """Write a list of transitions as SERL has them, an episode at a time.

    ``grasp_penalty`` and ``labels`` stand beside the other keys, further extras in ``infos``. There is no place for
    attributes in such a file; of them ``time_axis`` is heeded: states and images get a leading axis of 1, which
    HIL-SERL's replay buffer needs.

    Raises:
        DatasetError: there are no episodes, or one is not as it should be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        writer, first = ListWriter(file), None
        for episode in episodes:
            check_episode(episode, first)
            first = first or episode
            for row in _rows(episode, bool(attributes.get("time_axis"))):
                writer.add(row)
            writer.forget()
        if first is None:
            raise DatasetError(f"{path}: there are no episodes to write")
        writer.end()


def _rows(episode: Episode, time_axis: bool) -> Iterator[dict[str, Any]]:
    """The transitions of an episode; a next observation and the observation after it are the same arrays."""
    frames = {key: value[:, None] if time_axis else value for key, value in episode.observations.items()}
    observations = ({key: value[row] for key, value in frames.items()} for row in range(len(episode) + 1))
    observation = next(observations)
    for step, following in enumerate(observations):
        extras = {name: _plain(value[step]) for name, value in episode.extras.items()}
        ended = bool(episode.terminated[step])
        yield {
            "observations": observation,
            "actions": episode.actions[step],
            "next_observations": following,
            "rewards": float(episode.rewards[step]),
            "masks": 1.0 - ended,
            "dones": ended or bool(episode.truncated[step]),
            **{name: extras.pop(name) for name in ("grasp_penalty", "labels") if name in extras},
            "infos": extras,
        }
        observation = following


def _plain(value: Any) -> Any:
    return value.item() if np.ndim(value) == 0 else value


def _files(path: Path, options: ReadOptions) -> list[Path]:
    if options.filter_key is not None:
        raise DatasetError(f"{path}: pickles name no selections of episodes; leave filter_key out")
    if not path.is_dir():
        return [path]
    files = [child for child in path.iterdir() if child.suffix in SUFFIXES and child.is_file()]
    if not files:
        raise DatasetError(f"{path} holds no pickles ({', '.join('*' + suffix for suffix in SUFFIXES)})")
    return sorted(files, key=_in_order)


def _in_order(file: Path) -> list[tuple[int, str]]:
    """By the numbers in the name, then by its letters."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _episodes(files: Sequence[Path], options: ReadOptions, report: Report | None) -> Iterator[Episode]:
    rows: list[_Row] = []
    episodes = 0
    for row in _transitions(files, options, report):
        if rows and (row is None or not _follows(rows[-1].transition, row.transition)):
            yield _episode(rows, options)
            rows, episodes = [], episodes + 1
            if episodes == options.max_episodes:
                return
        if row is not None:
            rows.append(row)
    if rows:
        yield _episode(rows, options)


def _transitions(files: Sequence[Path], options: ReadOptions, report: Report | None) -> Iterator[_Row | None]:
    """All transitions; None stands for one that was left out."""
    wanted: Wanted | None = None
    first: _Row | None = None
    for file in files:
        try:
            content = read_list(file)
        except DatasetError as error:
            if report is None:
                raise
            report(str(file), str(error))
            continue
        present = frozenset[str]().union(*map(extras_of, content))
        wanted = wanted or Wanted(options.image_keys, options.state_keys, None, False, sorted(present))
        for index in range(len(content)):
            raw, content[index] = content[index], None  # the file's arrays go as the episodes take theirs
            transition, problems = parse_all(raw, wanted)
            shapes = {} if problems else shapes_of(transition)
            if first is not None and not problems:
                problems = _unlike(shapes, first, present - set(wanted.extras))
            for problem in problems:
                if report is None:
                    raise DatasetError(f"{file}, transition {index}, {problem}")
                report(f"{file}, transition {index}", str(problem))
            if problems:
                yield None
                continue
            name = f"{file.name}, transition {index}" if len(files) > 1 else f"transition {index}"
            row = _Row(name, transition, shapes)
            first = first or row
            yield row


def _unlike(shapes: Mapping[str, tuple[int, ...]], first: _Row, new: Set[str]) -> list[Problem]:
    """What a transition has otherwise than the first one of all, from whose file on every field must be there."""
    problems = [Problem(name, f"is in this file, but not in that of {first.name}; all need it") for name in sorted(new)]
    different = different_shapes(shapes, first.shapes, first.name)
    return problems + ([different] if different else [])


def _follows(earlier: Transition, later: Transition) -> bool:
    if earlier["terminated"] or earlier["truncated"]:
        return False
    following = earlier["next_observations"]
    return all(_same_bytes(following[key], value) for key, value in later["observations"].items())


def _same_bytes(one: Any, other: Any) -> bool:
    return one is other or bool(np.array_equal(one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)))


def _episode(rows: Sequence[_Row], options: ReadOptions) -> Episode:
    transitions = [row.transition for row in rows]
    last = transitions[-1]["next_observations"]
    observations = {key: np.stack([*(t["observations"][key] for t in transitions), last[key]]) for key in last}
    columns: dict[str, Any] = {
        name: np.array([t[name] for t in transitions])
        for name in transitions[0]
        if name not in ("observations", "next_observations")
    }
    standard = ("actions", "rewards", "terminated", "truncated")
    return Episode(
        {key: resize(value, options.image_size) if value.ndim == 4 else value for key, value in observations.items()},
        **{name: columns.pop(name) for name in standard},
        extras=columns,
        name=rows[0].name,
    )
