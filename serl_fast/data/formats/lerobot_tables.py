"""Columns and rows of a LeRobotDataset's parquet files, each read as what ``info.json`` says it is or refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.episodes import Array, DatasetError
from serl_fast.errors import require

IMAGES = ("video", "image")
"""Kinds of features that are cameras."""


@dataclass(frozen=True)
class Feature:
    """A column of the frames.

    Attributes:
        name: of the column.
        dtype: "video", "image", or of the numbers.
        shape: of one frame's value; images (H, W, C).
        labels: names of the entries of a vector, if there are any.
        depth: it is a depth map.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    depth: bool = False

    @property
    def camera(self) -> bool:
        """Whether it holds images."""
        return self.dtype in IMAGES


def open_table(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``.

    Raises:
        DatasetError: it is missing or damaged.
    """
    parquet = require("pyarrow.parquet", "data")
    try:
        return parquet.ParquetFile(path, buffer_size=1 << 20)
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing") from None
    except damage() as error:
        raise DatasetError(f"{path} is no complete parquet file ({first_line(error)})") from None


def damage() -> tuple[type[BaseException], ...]:
    """What pyarrow raises for a damaged file."""
    arrow = require("pyarrow", "data")
    return (arrow.ArrowException, OSError, ValueError, KeyError)


def first_line(error: BaseException) -> str:
    """Of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class Rows:
    """Reads rows of parquet files in order; beside them at most one batch is in memory."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Choose what is read.

        Args:
            columns: names; each must be in every file.
        """
        self._columns = list(columns)
        self._path: Path | None = None
        self._batches: Iterator[Any] = iter(())
        self._rest: Any = None
        self._at = 0  # row of the file that ``_rest``, or the next batch, begins with

    def read(self, path: Path, start: int, length: int) -> Any:
        """``length`` rows from ``start`` on, as a ``pyarrow.Table``.

        Raises:
            DatasetError: the file is missing, damaged or too short, or lacks a column.
        """
        if path != self._path or start < self._at:
            self._enter(path, start)
        parts: list[Any] = []
        missing = length
        try:
            while missing:
                batch = self._rest if self._rest is not None else next(self._batches, None)
                if batch is None:
                    raise DatasetError(f"{path} ends at row {self._at}; wanted are {length} from {start} on")
                skipped = min(max(start - self._at, 0), batch.num_rows)
                taken = min(batch.num_rows - skipped, missing)
                parts += [batch.slice(skipped, taken)] if taken else []
                self._at += skipped + taken
                self._rest = batch.slice(skipped + taken) if skipped + taken < batch.num_rows else None
                missing -= taken
            return require("pyarrow", "data").Table.from_batches(parts)
        except DatasetError:
            raise
        except damage() as error:
            raise DatasetError(f"{path} is damaged near row {self._at} ({first_line(error)})") from None

    def _enter(self, path: Path, start: int) -> None:
        file = open_table(path)
        for name in self._columns:
            if name not in file.schema_arrow.names:
                raise DatasetError(f"{path} has no column '{name}'; it has {', '.join(file.schema_arrow.names)}")
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        ends = np.cumsum([0, *sizes])
        group = min(int(np.searchsorted(ends, start, side="right")) - 1, max(len(sizes) - 1, 0))
        self._batches = file.iter_batches(256, row_groups=range(group, len(sizes)), columns=self._columns)
        self._path, self._rest, self._at = path, None, int(ends[group])


def column(table: Any, feature: Feature) -> Array:
    """The numbers of a column, [T, *shape].

    Raises:
        DatasetError: it holds something else, or gaps.
    """
    arrow, compute = require("pyarrow", "data"), require("pyarrow.compute", "data")
    values = table.column(feature.name).combine_chunks()
    shape: tuple[int, ...] = (table.num_rows,)
    while True:
        if isinstance(values.type, arrow.BaseExtensionType):
            values = values.storage
        if not any(test(values.type) for test in (arrow.types.is_list, arrow.types.is_large_list,
                                                  arrow.types.is_fixed_size_list)):  # fmt: skip
            break
        sizes = compute.unique(compute.list_value_length(values)).to_pylist()
        if len(sizes) != 1 or sizes[0] is None:
            raise DatasetError(f"field '{feature.name}' has rows of different lengths ({sizes[:5]})")
        values, shape = values.flatten(), (*shape, int(sizes[0]))
    kinds = (arrow.types.is_floating, arrow.types.is_integer, arrow.types.is_boolean)
    if values.null_count or not any(test(values.type) for test in kinds):
        found = "has gaps" if values.null_count else f"holds {values.type}"
        raise DatasetError(f"field '{feature.name}' {found}; accepted: a number in every place")
    wanted = (table.num_rows, *feature.shape)
    if shape != wanted and not (len(shape) == 1 and feature.shape == (1,)):
        raise DatasetError(f"field '{feature.name}' has shape {shape[1:]}; meta/info.json says {feature.shape}")
    array: Array = values.to_numpy(zero_copy_only=False).reshape(wanted)
    return array
