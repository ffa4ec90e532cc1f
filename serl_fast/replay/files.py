"""Replay stores on disk: how they are opened, described and written out as plain arrays."""

from __future__ import annotations

import math
import operator
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from serl_fast.replay import _native
from serl_fast.replay.fields import Field
from serl_fast.replay.layout import Column, columns_of
from serl_fast.replay.schema import Schema

if TYPE_CHECKING:
    from serl_fast.replay.store import ReplayStore

Store = _native.Store
Mode = Literal["a", "r"]
Sync = Literal["none", "interval", "each"]
Verify = Literal["lazy", "all"]
OnDamage = Literal["raise", "skip"]
Progress = Callable[[int], None]
Self = TypeVar("Self", bound="InFiles")

_CHUNK = 1024  # transitions checked or copied between two reports of progress


@dataclass(frozen=True)
class Damage:
    """A block that is not what was written: the transition that needs it, the file, the byte and what is wrong."""

    id: int
    file: str
    offset: int
    what: str

    def __str__(self) -> str:
        """One line."""
        return f"transition {self.id}: {self.file}, byte {self.offset}: {self.what}"


class InFiles:
    """The part of a ``ReplayStore`` that has to do with files."""

    schema: Schema
    _native: Store

    @classmethod
    def _of(cls: type[Self], native: Store, schema: Schema) -> Self:
        store = cls.__new__(cls)
        store._start(native, schema)
        return store

    def _start(self, native: Store, schema: Schema) -> None:
        raise NotImplementedError

    @classmethod
    def open(
        cls: type[Self],
        path: str | os.PathLike[str],
        schema: Schema | None = None,
        capacity: int | None = None,
        *,
        seed: int = 0,
        mode: Mode = "a",
        sync: Sync = "none",
        sync_interval: float = 1.0,
        verify: Verify = "lazy",
        damaged: OnDamage = "raise",
    ) -> Self:
        """Open the store in a folder, or make one there: every transition is in its files once ``append`` returns.

        A process that is killed at any instant loses nothing of that. What a power failure can take is what was
        not yet forced to the disk, see ``sync``; it never makes a store give out something else than was stored.

        One process at a time writes. Others, also several, open the same path with ``mode="r"`` and sample what it
        has appended so far. A forked child may sample from a store that it inherited; a spawned one opens the path.

        Args:
            path: the folder.
            schema: needed where there is no store yet; one that is there must have the same.
            capacity: the same.
            seed: of the sampling of a store that is made now; an existing one has its own.
            mode: "a" to append, "r" to read only.
            sync: when appends are forced to the disk: "none", when the system sees fit, and at ``flush`` and
                ``close``; "interval", every ``sync_interval`` seconds by a thread, an error is raised by the next
                append; "each", before ``append`` returns.
            sync_interval: seconds, above 0.
            verify: "lazy" checks every block before it is first given out, "all" checks everything now.
            damaged: "raise" an error that names the block where a transition is asked for that needs it; "skip"
                has samplers, ``snapshot`` and exports pass over such transitions.

        Returns:
            The store. Priorities are not in the files: ``prioritize`` begins anew.

        Raises:
            FileNotFoundError: no store is there, and making one needs a schema and a capacity.
            BlockingIOError: another process writes to it; the message names it.
            OSError: a file cannot be opened, or the disk is full.
            ValueError: schema, capacity or format differ, an argument is unknown, or (verify="all") a block is
                damaged.
        """
        _choice("mode", mode, ("a", "r"))
        _choice("sync", sync, ("none", "interval", "each"))
        _choice("verify", verify, ("lazy", "all"))
        _choice("damaged", damaged, ("raise", "skip"))
        if not (math.isfinite(sync_interval) and sync_interval > 0):
            raise ValueError(f"sync_interval is {sync_interval}; it is a number of seconds above 0")
        if capacity is not None and operator.index(capacity) < 1:
            raise ValueError(f"the capacity is {capacity}; a store holds at least one transition")
        native = _native.open_store(
            os.fspath(path),
            None if schema is None else (_tuples(schema.observations), _tuples(schema.steps)),
            capacity or 0,
            word("seed", seed),
            mode == "a",
            sync,
            float(sync_interval),
            verify == "all",
            damaged == "skip",
            "" if schema is None else schema.to_json(),
        )
        return cls._of(native, schema or schema_at(path))

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike[str], damaged: OnDamage = "raise") -> Self:
        """Read a snapshot, or any store on disk, into memory.

        Args:
            path: the folder.
            damaged: "skip" leaves damaged transitions out.

        Returns:
            A store whose uniform draws are those that the other one would have made next. Its files are not used
            any more.

        Raises:
            FileNotFoundError: there is no store.
            ValueError: a block is damaged, or it is something else; the message names the file.
        """
        _choice("damaged", damaged, ("raise", "skip"))
        return cls._of(_native.load_store(os.fspath(path), damaged == "skip"), schema_at(path))

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Make a folder that holds what this store holds now, while appends and samples go on.

        It takes the place of an older snapshot at once and only when it is whole and on the disk. Nothing else is
        replaced: no store that ``open`` made, no snapshot of another schema or with transitions appended since,
        no folder with other files in it. ``load`` reads it, ``open`` goes on with it.

        Raises:
            OSError: the disk is full, or a process writes to the store at ``path``. Nothing has changed.
            ValueError: ``path`` is something that is not replaced, or a block is damaged (see ``open``).
        """
        _native.snapshot(self._native, os.fspath(path), self.schema.to_json())

    def verify(self, progress: Progress | None = None) -> list[Damage]:
        """Check every block; a store in memory has no damage.

        Args:
            progress: called with the number of transitions checked since the last call.

        Returns:
            One entry per damaged transition, oldest first.
        """
        found: list[Damage] = []
        first, last = self._native.first_id, self._native.appended
        for start in range(first, last, _CHUNK):
            end = min(start + _CHUNK, last)
            found += [Damage(*damage) for damage in _native.verify(self._native, start, end)]
            if progress is not None:
                progress(end - start)
        return found

    def flush(self) -> None:
        """Force everything to the disk; nothing to do for a store in memory."""
        _native.flush(self._native)

    def close(self) -> None:
        """``flush``, and let another process write; the store can still be read, not appended to."""
        _native.close(self._native)

    def __enter__(self: Self) -> Self:
        """The store; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the store."""
        self.close()


def schema_at(path: str | os.PathLike[str]) -> Schema:
    """The schema of a store on disk."""
    return _schema(_native.inspect_store(os.fspath(path)))


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the files say before any of their contents are looked at.

    Returns:
        ``schema``, ``capacity``, ``format``, ``disk_bytes``, ``closed`` (whether the last writer closed it),
        ``writer`` (the process that writes to it now, 0 for none) and ``damage`` (what is wrong with one of the two
        copies of the header, "" for nothing).
    """
    info = _native.inspect_store(os.fspath(path))
    known = ("capacity", "format", "disk_bytes", "closed", "writer", "damage")
    return {"schema": _schema(info), **{key: info[key] for key in known}}


def export_npz(store: ReplayStore, path: str | os.PathLike[str], progress: Progress | None = None) -> int:
    """Write the good transitions of a store that nobody appends to into one file, column by column.

    Args:
        store: opened with ``damaged="skip"``.
        path: the ``.npz`` file to make, and folders above it; its arrays are those of ``batch_at`` and ``ids``
            without ``discounts``, with names like ``next_observations/front``, oldest transition first.
        progress: called with the number of transitions of one column written just now.

    Returns:
        The number of transitions.

    Raises:
        FileExistsError: there is such a file.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{os.fspath(path)} exists; give the path of a new file")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    lost = {damage.id for damage in store.verify()}
    ages = np.array([id - store.first_id for id in range(store.first_id, store.appended) if id not in lost], np.int64)
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for column in exported(store.schema):
                sampler = store.sampler(fields=(column.name,))
                header = {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(column.dtype)),
                    "fortran_order": False,
                    "shape": (len(ages), *column.shape),
                }
                with archive.open(f"{column.name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_2_0(file, header)  # type: ignore[arg-type]
                    for start in range(0, len(ages), _CHUNK):
                        part = ages[start : start + _CHUNK]
                        file.write(memoryview(_leaf(sampler.batch_at(part))).cast("B"))
                        if progress is not None:
                            progress(len(part))
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return len(ages)


def exported(schema: Schema) -> list[Column]:
    """The columns that an ``.npz`` file gets: not those that depend on a discount or on priorities."""
    return [column for column in columns_of(schema) if column.name not in ("discounts", "weights")]


def word(name: str, value: int) -> int:
    """A number of 64 bits; raises ValueError for another."""
    number = operator.index(value)
    if not 0 <= number < 2**64:
        raise ValueError(f"{name} is {number}; it lies in [0, 2^64)")
    return number


def _leaf(batch: Any) -> Any:
    while isinstance(batch, dict):
        (batch,) = batch.values()
    return np.ascontiguousarray(batch)


def _schema(info: dict[str, Any]) -> Schema:
    if info["note"]:
        return Schema.from_json(info["note"])
    observations, steps = ([Field(n, d, tuple(s), k) for n, d, s, k in info[key]] for key in ("observations", "steps"))
    return Schema(observations, steps)


def _tuples(fields: Sequence[Field]) -> list[tuple[str, str, tuple[int, ...], int]]:
    return [(field.name, field.dtype, field.shape, field.stack) for field in fields]


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it is {' or '.join(map(repr, known))}")
