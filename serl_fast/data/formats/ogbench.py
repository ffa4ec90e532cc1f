"""OGBench: one npz file, all trajectories below one another, with a row for the state after their last step.

``observations`` [N, P] or uint8 images [N, H, W, C], ``actions`` [N, A], ``terminals`` [N] (the last row of a
trajectory), ``qpos``, ``qvel`` and ``button_states``. ``-val`` files are the same; their data set's attribute ``split``
says "val".

* The row at a terminal is no step: its observation follows the last step, its action is left out. That is OGBench's
  regular rule. A file that was saved after it was applied (``next_observations``), or in the compact form (``valids``),
  is read as what it is.
* Trajectories end by their length, not because the task did: ``truncated``. Where the file has ``masks``, a step whose
  mask is 0 is ``terminated``, and the next one begins another episode.
* Where the file has no ``rewards``, they are 0 everywhere, and the data set's attribute ``rewards`` says so: OGBench
  makes them up for a task, from the simulator's state, when it loads the file.
* An image observation is the camera ``image``. ``state_keys`` may name any arrays, ``qpos`` for example.
* All other arrays of N rows are extras.

The members of the file are read side by side, one trajectory at a time, so it may be larger than memory, compressed or
not.

Source: https://github.com/seohongpark/ogbench, ``ogbench.utils.load_dataset``
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.episodes import Array, Dataset, DatasetError, Episode, ReadOptions
from serl_fast.data.hdf5 import MAX_RATIO
from serl_fast.data.images import resize
from serl_fast.data.pieces import split_at_ends

BLOCK = 65536
"""Rows of ``terminals`` that are looked at together."""
CAMERA = "image"
_OWN = ("observations", "next_observations", "actions", "terminals", "rewards", "masks", "valids")
_ERRORS = (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, KeyError)


class _Member:
    """An array of the file, read from its first row to its last.

    Attributes:
        shape: as its header says; the file has bytes for it.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, name: str) -> None:
        self.where = f"{path}, field '{name}'"
        try:
            entry = archive.getinfo(f"{name}.npy")
            self._stream: Any = archive.open(entry)
            version = np.lib.format.read_magic(self._stream)
            if version > (2, 0):
                raise ValueError(f"version {version} of npy; accepted: 1.0 and 2.0")
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, columns_first, self.dtype = header(self._stream)
            start = self._stream.tell()
        except Exception as error:  # NumPy's parser of headers lets through whatever its parts raise
            raise DatasetError(f"{self.where}: can not be opened: {error}") from None
        if self.dtype.kind not in "fiub" or (columns_first and len(self.shape) > 1):
            order = ", columns first" if columns_first else ""
            raise DatasetError(f"{self.where}: is {self.dtype} {self.shape}{order}; accepted: numbers, row by row")
        needed = self.dtype.itemsize
        for length in self.shape:
            needed *= length
        # Memory is taken for what the header claims: it must be there.
        there = min(entry.file_size - start, entry.compress_size * MAX_RATIO)
        if needed > there or entry.compress_size > path.stat().st_size:
            raise DatasetError(
                f"{self.where}: is {self.dtype} {self.shape}, {needed} bytes, of which the file holds {there}. It was "
                "not written completely, or is damaged"
            )

    def take(self, rows: int) -> Array:
        """The next rows."""
        size = self.dtype.itemsize * rows * int(np.prod(self.shape[1:], dtype=np.int64))
        try:
            content = self._stream.read(size)
        except _ERRORS as error:
            raise DatasetError(f"{self.where}: can not be read: {error}") from None
        if len(content) != size:
            raise DatasetError(f"{self.where}: ends before its last row; the file is cut off or damaged")
        return np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])

    def close(self) -> None:
        """Done with it."""
        self._stream.close()


def matches(path: Path) -> bool:
    """Whether it is a file whose name ends as those of NumPy's archives do."""
    return path.is_file() and path.suffix == ".npz"


def read(path: Path, options: ReadOptions) -> Dataset:
    """Open a file. See the module for the rules."""
    if options.filter_key is not None:
        raise DatasetError(
            f"{path}: there are no selections of episodes in OGBench's files, leave out filter_key; validation data is "
            f"a file of its own, {path.stem.removesuffix('-val')}-val.npz"
        )
    with _opened(path) as archive:
        names = _names(path, archive)
        state, images = _chosen(path, archive, names, options)
        last = "next_observations" not in names  # a row that is no step
        lengths = [rows - last for rows, _ in _runs(path, archive, names) if rows > last][: options.max_episodes]
    val = path.stem.endswith("-val")
    attributes: dict[str, Any] = {"dataset": path.stem.removesuffix("-val"), "split": "val" if val else "train"}
    parts = attributes["dataset"].split("-")
    if len(parts) > 2 and parts[-1].startswith("v"):  # cube-single-play-v0 is data of cube-single-v0
        attributes["env"] = "-".join(parts[:-2] + parts[-1:])
    if state:
        attributes["state_parts"] = state
    if "rewards" not in names:
        attributes["rewards"] = "none in the file; 0 everywhere"
    if not lengths:
        raise DatasetError(f"{path} has no trajectory of a step or more")
    episodes: int | None = len(lengths)
    steps: int | None = sum(lengths)
    if "masks" in names:  # where a task ends, an episode does too: only reading tells
        episodes, steps = None, None if options.max_episodes else steps
    return Dataset(path, "ogbench", partial(_read, path, options, tuple(state), images), episodes, steps, attributes)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _ERRORS as error:
        raise DatasetError(f"{path} can not be opened as npz: {error}") from None


def _names(path: Path, archive: zipfile.ZipFile) -> list[str]:
    names = [name[: -len(".npy")] for name in archive.namelist() if name.endswith(".npy")]
    for name in ("observations", "actions", "terminals"):
        if name not in names:
            raise DatasetError(f"{path}, field '{name}': is missing; the file has {', '.join(names) or 'no arrays'}")
    return list(dict.fromkeys(names))


def _member(path: Path, archive: zipfile.ZipFile, name: str, stack: ExitStack) -> _Member:
    member = _Member(path, archive, name)
    stack.callback(member.close)
    return member


def _chosen(
    path: Path, archive: zipfile.ZipFile, names: list[str], options: ReadOptions
) -> tuple[dict[str, int], bool]:
    """Widths of the arrays that make up the state, and whether there is a camera; all shapes are checked here."""
    with ExitStack() as stack:
        members = {name: _member(path, archive, name, stack) for name in names}
    observed, actions = members["observations"], members["actions"]
    rows = observed.shape[:1]
    for name in _OWN:
        if name in members and (members[name].shape[:1] != rows or not rows):
            raise DatasetError(
                f"{members[name].where}: has shape {members[name].shape}; accepted: ({rows[0] if rows else 'N'}, ...)"
            )
    if actions.dtype.kind != "f" or len(actions.shape) != 2:
        raise DatasetError(f"{actions.where}: is {actions.dtype} {actions.shape}; accepted: floating point (N, A)")
    pictures = observed.dtype == np.uint8 and len(observed.shape) == 4
    if not pictures and (observed.dtype.kind != "f" or len(observed.shape) != 2):
        raise DatasetError(
            f"{observed.where}: is {observed.dtype} {observed.shape}; accepted: floating point (N, P), or uint8 images "
            "(N, H, W, C)"
        )
    if "next_observations" in members and members["next_observations"].shape != observed.shape:
        raise DatasetError(f"{members['next_observations'].where}: must have the shape of 'observations'")
    if set(options.image_keys or ()) - ({CAMERA} if pictures else set()):
        raise DatasetError(f"{path}: has {f'the camera {CAMERA!r} alone' if pictures else 'no camera'}, not all of "
                           f"{', '.join(options.image_keys or ())}")  # fmt: skip
    keys = options.state_keys if options.state_keys is not None else ("observations",) * (not pictures)
    for key in keys:
        if key not in members or (key == "observations" and pictures) or members[key].shape[:1] != rows:
            raise DatasetError(f"{path}: has no vectors '{key}'; it has {', '.join(names)}")
        if "next_observations" in members and key != "observations":
            raise DatasetError(f"{path}, field '{key}': what it is after the last step is not in the file")
    widths = {key: int(np.prod(members[key].shape[1:], dtype=np.int64)) for key in keys}
    return widths, pictures and (options.image_keys is None or CAMERA in options.image_keys)


def _runs(path: Path, archive: zipfile.ZipFile, names: list[str]) -> Iterator[tuple[int, bool]]:
    """Rows of each trajectory, and whether its end is in the file."""
    with ExitStack() as stack:
        flags = _member(path, archive, "valids" if "valids" in names else "terminals", stack)
        left, begun = flags.shape[0], 0
        while left:
            block: Array = flags.take(min(left, BLOCK)).reshape(min(left, BLOCK), -1).max(1) != 0
            left -= len(block)
            previous = 0
            for end in (1 + np.flatnonzero(~block if "valids" in names else block)).tolist():
                yield begun + end - previous, True
                begun, previous = 0, end
            begun += len(block) - previous
        if begun:
            yield begun, False


def _read(path: Path, options: ReadOptions, state: tuple[str, ...], images: bool) -> Iterator[Episode]:
    trajectories = _trajectories(path, options, state, images)
    return islice(chain.from_iterable(map(split_at_ends, trajectories)), options.max_episodes)


def _trajectories(path: Path, options: ReadOptions, state: tuple[str, ...], images: bool) -> Iterator[Episode]:
    with ExitStack() as stack:
        archive = stack.enter_context(_opened(path))
        names = _names(path, archive)
        members = {name: _member(path, archive, name, stack) for name in names}
        rows = members["observations"].shape[:1]
        read = {name: member for name, member in members.items() if member.shape[:1] == rows}
        first = 0
        for length, ended in _runs(path, archive, names):
            values = {name: member.take(length) for name, member in read.items()}
            steps = length - ("next_observations" not in names)
            if steps:
                name = f"rows {first} to {first + length}"
                yield _episode(values, steps, state, images, options.image_size, ended, name)
            first += length


def _episode(
    values: dict[str, Array],
    steps: int,
    state: tuple[str, ...],
    images: bool,
    image_size: tuple[int, int] | None,
    ended: bool,
    name: str,
) -> Episode:
    if "next_observations" in values:
        following = values["next_observations"][-1:]
        values["observations"] = np.concatenate([values["observations"], following])
    observations: dict[str, Array] = {}
    with np.errstate(over="ignore"):  # what becomes infinite is reported by check_episode
        if state:
            vectors = [values[key].reshape(len(values[key]), -1).astype(np.float32) for key in state]
            observations["state"] = np.concatenate(vectors, 1)
        if images:
            observations[CAMERA] = resize(values["observations"], image_size)
        rewards = values["rewards"][:steps].reshape(steps) if "rewards" in values else np.zeros(steps)
        actions, rewards = values["actions"][:steps].astype(np.float32), rewards.astype(np.float32)
    masks = values["masks"][:steps].reshape(steps) if "masks" in values else np.ones(steps)
    terminated = masks == 0
    truncated = np.zeros(steps, bool)
    truncated[-1] = ended and not terminated[-1]
    extras = {key: value[:steps] for key, value in values.items() if key not in _OWN}
    return Episode(observations, actions, rewards, terminated, truncated, extras, name)
