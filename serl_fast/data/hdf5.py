"""HDF5 files: read in slices without trusting them, and written complete or not at all."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.disk import require_room
from serl_fast.data.episodes import Array, DatasetError, Episode, check_episode, first_step
from serl_fast.errors import require
from serl_fast.files import written_whole

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_DEPTH = 32
"""Of groups within groups."""
MAX_RATIO = 1100
"""Bytes that one stored byte may stand for. Deflate reaches 1032."""
_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)  # what h5py raises


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 does."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@dataclass(frozen=True)
class Field:
    """An array in a file, of which slices are read.

    Attributes:
        where: file and name, for messages.
        shape: as the header says; the file has bytes for it.
        dtype: numbers or bool; uint8 where ``ragged``.
        ragged: whether each value is a row of bytes of its own length (compressed images).
        source: h5py's data set.
    """

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    ragged: bool
    source: Any

    def rows(self, start: int = 0, stop: int | None = None, dtype: type[np.generic] | None = None) -> Array:
        """Rows start to stop, as ``dtype``; of a single value that.

        Raises:
            DatasetError: they can not be read.
        """
        try:
            values = np.asarray(self.source[start:stop] if self.shape else self.source[()])
        except _ERRORS as error:
            raise DatasetError(f"{self.where}: rows {start} to {stop} can not be read: {_brief(error)}") from None
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is reported by check_episode
            return values if dtype is None else values.astype(dtype, copy=False)


class Hdf5:
    """A file opened for reading; a context manager. Links out of a group, and data outside the file, are refused.

    Args:
        path: the file.
        ragged: whether rows of bytes of any length are fields too.

    Raises:
        DatasetError: it is no HDF5, or cut off.
        MissingExtraError: h5py is not installed.
    """

    def __init__(self, path: Path, ragged: bool = False) -> None:
        h5py = require("h5py", "data")
        self.path = path
        self._h5py, self._ragged = h5py, ragged
        self._near: dict[str, Any] = {}  # groups that were opened last
        try:
            self._size = path.stat().st_size
            self._file = h5py.File(path, "r")
        except _ERRORS as error:
            raise DatasetError(f"{path} can not be opened as HDF5: {_brief(error)}") from None

    def __enter__(self) -> Hdf5:
        return self

    def __exit__(self, *_: object) -> None:
        self._near.clear()
        with suppress(*_ERRORS):  # a broken file: what there was to say has been said
            self._file.close()

    def names(self, group: str = "/") -> list[str]:
        """Names in a group, which may be missing: then none."""
        found = self._open(group)
        return self._names(found, group) if isinstance(found, self._h5py.Group) else []

    def field(self, name: str) -> Field | None:
        """An array of numbers by its full path; None where there is none."""
        found = self._open(name)
        return self._field(found, name) if isinstance(found, self._h5py.Dataset) else None

    def fields(self, group: str = "/", without: Container[str] = ()) -> dict[str, Field]:
        """All arrays of numbers below a group, by their path in it. Others (text, references) are left out.

        Args:
            group: its full path; one that is missing has no fields.
            without: names in it that are not looked at.
        """
        found: dict[str, Field] = {}
        node = self._open(group)
        if isinstance(node, self._h5py.Group):
            names = [name for name in self._names(node, group) if name not in without]
            self._walk(node, names, f"{group.strip('/')}/".lstrip("/"), "", found, (node,))
        return found

    def attributes(self, group: str = "/", only: Sequence[str] | None = None) -> dict[str, Any]:
        """Attributes of a group that are plain values: numbers, text, lists of them; of ``only`` those that it has."""
        found = self._open(group)
        values: dict[str, Any] = {}
        if found is None:
            return values
        try:
            for name in list(found.attrs) if only is None else [name for name in only if name in found.attrs]:
                value = plain(found.attrs[name])
                if value is not None:
                    values[name] = value
        except _ERRORS as error:
            raise DatasetError(f"{self.path}, attributes of '{group}' can not be read: {_brief(error)}") from None
        return values

    def texts(self, name: str) -> list[str]:
        """An array of byte strings or text, one axis or a single value; what is no text gives an empty list."""
        found = self._open(name)
        if not isinstance(found, self._h5py.Dataset):
            return []
        self._check_place(found, name)
        try:
            text = found.dtype.kind == "S" or self._h5py.check_string_dtype(found.dtype) is not None
            if not text or found.ndim > 1 or found.size > self._size:
                return []
            return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in np.ravel(found[()])]
        except _ERRORS as error:
            raise DatasetError(f"{self.path}, field '{name}': can not be read: {_brief(error)}") from None

    def _open(self, name: str) -> Any:
        """What has that path; None where there is nothing."""
        above, _, last = name.strip("/").rpartition("/")
        if not last:
            return self._file
        if above not in self._near:
            if len(self._near) > 7:  # a few: of many episodes each has its groups
                self._near.clear()
            self._near[above] = self._open(above)
        return self._child(self._near[above], last, name)

    def _child(self, group: Any, name: str, where: str) -> Any:
        """What a group holds itself under that name; None where it holds nothing or is no group."""
        if not isinstance(group, self._h5py.Group):
            return None
        try:
            links, key = group.id.links, name.encode()
            if not links.exists(key):
                return None
            # A link is looked at before it is followed: that would open the file that it names.
            if links.get_info(key).type == self._h5py.h5l.TYPE_HARD:
                return group[name]
        except _ERRORS as error:
            raise DatasetError(f"{self.path}, '{where}': can not be opened: {_brief(error)}") from None
        raise DatasetError(
            f"{self.path}, '{where}': '{name}' is a link to elsewhere; accepted: data in its place (h5py's copy with "
            "expand_soft and expand_external makes it so)"
        )

    def _names(self, node: Any, where: str) -> list[str]:
        try:
            names = list(node)
        except _ERRORS as error:
            raise DatasetError(f"{self.path}, '{where}': can not be listed: {_brief(error)}") from None
        for name in names:
            if not isinstance(name, str):
                raise DatasetError(f"{self.path}, '{where}': holds the name {name!r}, which is no text; it is damaged")
        return names

    def _walk(
        self, node: Any, names: list[str], group: str, prefix: str, found: dict[str, Field], above: tuple[Any, ...]
    ) -> None:
        for name in names:
            where = f"{group}{prefix}{name}"
            child = self._child(node, name, where)
            if isinstance(child, self._h5py.Group):
                if child in above or len(above) > MAX_DEPTH:
                    raise DatasetError(f"{self.path}, '{where}': groups within groups without end; accepted: a tree")
                self._walk(child, self._names(child, where), group, f"{prefix}{name}/", found, (*above, child))
            elif isinstance(child, self._h5py.Dataset):
                field = self._field(child, where)
                if field is not None:
                    found[f"{prefix}{name}"] = field

    def _field(self, source: Any, name: str) -> Field | None:
        self._check_place(source, name)
        try:
            dtype, shape, stored = source.dtype, source.shape, source.id.get_storage_size()
            vlen = self._h5py.check_vlen_dtype(dtype)
            filters = source.id.get_create_plist().get_nfilters()
        except TypeError:  # a type that NumPy has no equivalent of
            return None
        except _ERRORS as error:
            raise DatasetError(f"{self.path}, field '{name}': can not be opened: {_brief(error)}") from None
        ragged = (
            self._ragged and vlen is not None and np.dtype(vlen) == np.uint8 and shape is not None and len(shape) == 1
        )
        if shape is None or not (ragged or dtype.kind in "fiub"):
            return None
        needed = dtype.itemsize
        for length in shape:
            needed *= length
        # Memory is taken for what the header claims: it must be there.
        if needed > stored * (MAX_RATIO if filters else 1) or stored > self._size:
            raise DatasetError(
                f"{self.path}, field '{name}': is {dtype} {shape}, {needed} bytes, of which the file holds "
                f"{min(stored, self._size)}. It was not written completely, or is damaged"
            )
        return Field(f"{self.path}, field '{name}'", shape, np.dtype(vlen or dtype), ragged, source)

    def _check_place(self, source: Any, name: str) -> None:
        try:
            elsewhere = source.is_virtual or source.external
        except _ERRORS as error:
            raise DatasetError(f"{self.path}, field '{name}': can not be opened: {_brief(error)}") from None
        if elsewhere:
            raise DatasetError(f"{self.path}, field '{name}': lies in other files; accepted: data in the file itself")


def plain(value: Any) -> Any:
    """A value as JSON takes it; None where it is not one."""
    if isinstance(value, np.ndarray):
        values = [plain(v) for v in value.tolist()] if value.dtype.kind in "fiubSUO" else [None]
        return None if any(v is None for v in values) else values
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, (bool, int, float, str)) else None


@contextmanager
def new_file(path: Path) -> Iterator[Any]:
    """A new HDF5 file (h5py's) that gets its name when the block ends, and vanishes if that fails."""
    h5py = require("h5py", "data")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, h5py.File(temporary, "w") as file:
        yield file


def chunk_rows(values: Array) -> int:
    """Rows of a chunk, of some 64 KiB; an image is one."""
    return int(np.clip(65536 // max(values[:1].nbytes, 1), 1, 4096))


def checked(path: Path, episodes: Iterable[Episode]) -> Iterator[Episode]:
    """The episodes, each one checked, and like the first.

    Raises:
        DatasetError: one is at fault, or there are none.
        OSError: the disk has no room for one.
    """
    first: Episode | None = None
    for index, episode in enumerate(episodes):
        try:
            check_episode(episode, first)
        except DatasetError as error:
            raise DatasetError(f"{path} is not written: episode {index} {episode.name}: {error}") from None
        first = first or first_step(episode)
        require_room(path, episode, 2)  # robomimic has observations twice
        yield episode
    if first is None:
        raise DatasetError(f"{path} is not written: there are no episodes")


def _brief(error: BaseException) -> str:
    """What h5py says, on one line."""
    return " ".join(str(error.args[0] if error.args else error).split())
