"""The arrays of a batch: which there are, what they look like, and where they lie in the nested dict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.replay import _native
from serl_fast.replay.schema import Schema

Array = npt.NDArray[Any]
Batch = dict[str, Any]

_ALIGNMENT = 64
# Batches from this size on share one block of memory, which is used again when they are gone.
_LARGE = 1 << 20


@dataclass(frozen=True)
class Column:
    """One array of a batch: its name (``"next_observations/front"``), dtype, and shape without the batch axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def columns_of(schema: Schema, sequence_length: int | None = None) -> tuple[Column, ...]:
    """Every array that a batch can have, in the order of the C++ core (``csrc/include/serl_fast/view.h``)."""
    sequence = sequence_length is not None
    leading = (sequence_length,) if sequence_length is not None else ()
    each = [Column(f.name, f.dtype, f.row_shape) for f in schema.observations]
    steps = [Column(f.name, f.dtype, (*leading, *f.row_shape)) for f in schema.steps]
    full = [Column("full_" + c.name, c.dtype, (*leading, *c.shape)) for c in each] if sequence else []
    following = [Column("next_" + c.name, c.dtype, (*leading, *c.shape)) for c in each]
    actions = [Column("next_actions", c.dtype, c.shape) for c in steps if c.name == "actions" and sequence]
    derived = ["masks", "discounts", *(["terminals", "valid"] if sequence else [])]
    return (
        *each,
        *full,
        *following,
        *steps,
        *actions,
        *(Column(name, "float32", leading) for name in derived),
        Column("ids", "int64", ()),
        Column("weights", "float32", ()),
    )


class Layout:
    """The arrays of the batches of one sampler.

    Args:
        schema: of the store.
        sequence_length: None for transitions, L for sequences of L steps.
        fields: names of arrays, or of dicts of arrays (``"observations"``); None for all but those that the
            schema keeps on request, and but ``ids`` and ``weights``.
        also: names of further arrays.

    Attributes:
        columns: all arrays that a batch can have.
        names: per column its name, or "" if it is not wanted.

    Raises:
        ValueError: a name is unknown, or nothing is wanted.
    """

    def __init__(
        self,
        schema: Schema,
        sequence_length: int | None = None,
        fields: Iterable[str] | None = None,
        also: Iterable[str] = (),
    ) -> None:
        self.columns = columns_of(schema, sequence_length)
        asked = _default(schema, self.columns) if fields is None else self._named(fields)
        asked |= self._named(also)
        self.names = [column.name if column.name in asked else "" for column in self.columns]
        self.wanted = tuple(column for column, name in zip(self.columns, self.names, strict=True) if name)
        if not self.wanted:
            raise ValueError("no field is wanted; a batch holds at least one")

    def _named(self, fields: Iterable[str]) -> set[str]:
        if isinstance(fields, str):
            raise TypeError(f"fields is the text {fields!r}; it is a sequence of names")
        found: set[str] = set()
        for field in fields:
            matches = {c.name for c in self.columns if c.name == field or c.name.startswith(field + "/")}
            if not matches:
                raise ValueError(f"field '{field}' is unknown; a batch can hold {_list(self.columns)}")
            found |= matches
        return found

    def empty_batch(self, batch_size: int) -> Batch:
        """Uninitialised arrays ``[B, …]`` for ``batch_size`` rows, nested like observations."""
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}; it is at least 1")
        sizes = [batch_size * column.nbytes for column in self.wanted]
        if sum(sizes) < _LARGE:
            return self.batch([np.empty((batch_size, *column.shape), column.dtype) for column in self.wanted])
        places = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)])
        block = _native.block(int(places[-1]))
        return self.batch(
            [
                np.ndarray((batch_size, *column.shape), column.dtype, buffer=block.data, offset=int(place))
                for column, place in zip(self.wanted, places, strict=False)
            ]
        )

    def batch(self, arrays: Sequence[Array]) -> Batch:
        """Name arrays in the order of ``wanted``."""
        root: Batch = {}
        for column, array in zip(self.wanted, arrays, strict=True):
            *parents, leaf = column.name.split("/")
            node = root
            for key in parents:
                node = node.setdefault(key, {})
            node[leaf] = array
        return root

    def arrays(self, batch: Mapping[str, Any]) -> tuple[list[Any], int]:
        """The arrays of a batch in the order of ``columns``, None where not wanted, and its number of rows.

        Raises:
            TypeError, ValueError: one is missing, unknown, no array, or of another length.
        """
        leaves = dict(_leaves(batch))
        values = [leaves.pop(name, None) if name else None for name in self.names]
        for name, value in zip(self.names, values, strict=True):
            if name and value is None:
                raise ValueError(f"field '{name}' is missing")
        if leaves:
            unknown = sorted(leaves)[0]
            raise ValueError(f"field '{unknown}' is unknown; a batch holds {_list(self.wanted)}")
        rows: int | None = None
        for name, value in zip(self.names, values, strict=True):
            if not name:
                continue
            if not isinstance(value, np.ndarray) or value.ndim == 0:
                raise TypeError(f"field '{name}' must be a NumPy array with a leading batch axis")
            rows = len(value) if rows is None else rows
            if len(value) != rows:
                raise ValueError(f"field '{name}' has {len(value)} rows; '{self.wanted[0].name}' has {rows}")
        assert rows is not None
        if rows == 0:
            raise ValueError("the batch has no rows; it has at least one")
        return values, rows

    def __eq__(self, other: object) -> bool:
        """Whether batches of both are the same arrays."""
        return isinstance(other, Layout) and self.wanted == other.wanted

    def __hash__(self) -> int:
        """Equal layouts have equal hashes."""
        return hash(self.wanted)


def _default(schema: Schema, columns: Iterable[Column]) -> set[str]:
    on_request = {prefix + name for name in schema.on_request for prefix in ("", "full_", "next_")}
    return {c.name for c in columns} - on_request - {"ids", "weights"}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _list(columns: Iterable[Column]) -> str:
    return ", ".join(column.name for column in columns)
