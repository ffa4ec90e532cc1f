"""Minari: a folder ``.../name-v0/data`` with ``metadata.json`` and the episodes, as HDF5, arrow or parquet files.

Given the data set's folder, its ``data`` folder or ``main_data.hdf5``; the package minari is not needed.

* Observations are flattened as environments are here: a Box is ``state``; of a Dict ``state`` is kept (a Dict below it
  is joined in alphabetical order), or else all boxes of floating point are joined in alphabetical order; of a Tuple in
  their order. ``state_keys`` chooses others: ``("achieved_goal", "observation")`` gives D4RL's 29 values of antmaze.
  The data set's ``state_parts`` says what was joined.
* Boxes of uint8 [H, W, C] are cameras under their names (``images/front`` for one in a Dict within), a Box alone is
  ``image``. Images stored as JPEG, which is Minari's default, are decoded.
* ``terminations`` and ``truncations`` are ``terminated`` and ``truncated``; should an episode go on after one, the rest
  is another. Actions must be a Box of floating point.
* ``infos`` of numbers are extras ``infos/...``, each step's as it came back from that step; what the reset returned is
  left out.

Source: https://minari.farama.org/content/dataset_standards
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.episodes import Array, Dataset, DatasetError, Episode, ReadOptions
from serl_fast.data.hdf5 import Hdf5
from serl_fast.data.images import decode, resize
from serl_fast.data.pieces import split_at_ends
from serl_fast.errors import require

CAMERA = "image"
_METADATA = "metadata.json"
_SUFFIXES = {"arrow": ".arrow", "parquet": ".parquet"}
_NOT_KEPT = (  # how the data are stored, and what is derived from it
    "observation_space", "action_space", "total_episodes", "total_steps", "dataset_size", "env_spec", "data_format",
    "jpeg_encoding",
)  # fmt: skip
_JPEG_SIDE = 32  # px; images with a shorter side are stored as arrays


@dataclass(frozen=True)
class _Leaf:
    """A space without spaces in it.

    Attributes:
        keys: the way to it: names in a Dict, numbers in a Tuple.
        kind: "Box", "Discrete" and so on.
        shape: of one value.
        dtype: of a Box.
        jpeg: whether values are stored as image files.
    """

    keys: tuple[str | int, ...]
    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    jpeg: bool = False

    @property
    def name(self) -> str:
        return "/".join(map(str, self.keys))

    @property
    def is_vector(self) -> bool:
        return self.kind == "Box" and np.dtype(self.dtype).kind == "f"

    @property
    def is_camera(self) -> bool:
        return self.kind == "Box" and self.dtype == "uint8" and len(self.shape) == 3


@dataclass(frozen=True)
class _Contents:
    """What the metadata says, and what of it is wanted."""

    folder: Path
    format: str
    episodes: int
    state: tuple[_Leaf, ...]
    cameras: dict[str, _Leaf]
    action: _Leaf
    image_size: tuple[int, int] | None


def matches(path: Path) -> bool:
    """Whether it is a folder with Minari's metadata, or the HDF5 file beside them."""
    folder = _folder(path)
    return folder is not None and "data_format" in _metadata(folder)


def read(path: Path, options: ReadOptions) -> Dataset:
    """Open a data set. See the module for the rules."""
    folder = _folder(path)
    if folder is None:
        raise DatasetError(f"{path} has no {_METADATA}, nor has its folder 'data'; give the folder .../name-v0")
    if options.filter_key is not None:
        raise DatasetError(f"{path}: Minari's data sets have no selections of episodes; leave out filter_key")
    metadata = _metadata(folder)
    contents = _contents(folder, metadata, options)
    attributes = {name: value for name, value in metadata.items() if name not in _NOT_KEPT}
    if isinstance(metadata.get("env_spec"), str):
        attributes["env_spec"] = _json(folder / _METADATA, metadata["env_spec"])
        attributes["env"] = attributes["env_spec"].get("id", "")
    if contents.state:
        attributes["state_parts"] = {leaf.name or "state": int(np.prod(leaf.shape)) for leaf in contents.state}
    steps = metadata.get("total_steps") if options.max_episodes is None else None
    return Dataset(path, "minari", partial(_read, contents), contents.episodes, steps, attributes)


def _folder(path: Path) -> Path | None:
    """Where the metadata are."""
    folders = (path, path / "data") if path.is_dir() else (path.parent,) if path.name == "main_data.hdf5" else ()
    return next((folder for folder in folders if (folder / _METADATA).is_file()), None)


def _metadata(folder: Path) -> dict[str, Any]:
    path = folder / _METADATA
    try:
        return _json(path, path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} can not be read: {error}") from None


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{path} holds {type(value).__name__}; accepted: a dict")
    return value


def _contents(folder: Path, metadata: Mapping[str, Any], options: ReadOptions) -> _Contents:
    path = folder / _METADATA
    form, total = metadata.get("data_format"), metadata.get("total_episodes")
    if form not in ("hdf5", *_SUFFIXES):
        raise DatasetError(f"{path}: data_format is {form!r}; accepted: hdf5, {', '.join(_SUFFIXES)}")
    if not isinstance(total, int) or total < 1:
        raise DatasetError(f"{path}: total_episodes is {total!r}; accepted: 1 or more")
    spaces = {}
    for name in ("observation_space", "action_space"):
        if not isinstance(metadata.get(name), str):
            raise DatasetError(f"{path}: has no {name}; it was written by a Minari before 0.5, which must convert it")
        try:
            spaces[name] = tuple(_leaves(_json(path, metadata[name]), bool(metadata.get("jpeg_encoding", True))))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DatasetError(f"{path}: {name} can not be understood: {type(error).__name__} {error}") from None
    actions = spaces["action_space"]
    if len(actions) != 1 or actions[0].keys or not actions[0].is_vector:
        kinds = ", ".join(f"{leaf.kind} {leaf.dtype}".strip() for leaf in actions)
        raise DatasetError(f"{path}: the action space is {kinds}; accepted: one Box of floating point")
    state, cameras = _chosen(path, spaces["observation_space"], options)
    episodes = total if options.max_episodes is None else min(total, options.max_episodes)
    return _Contents(folder, form, episodes, state, cameras, actions[0], options.image_size)


def _leaves(space: Mapping[str, Any], jpeg: bool, keys: tuple[str | int, ...] = ()) -> Iterator[_Leaf]:
    """A space's leaves: a Dict's in alphabetical order, a Tuple's in its own."""
    kind = space["type"]
    if kind == "Dict":
        for name in sorted(space["subspaces"]):
            yield from _leaves(space["subspaces"][name], jpeg, (*keys, name))
    elif kind == "Tuple":
        for index, part in enumerate(space["subspaces"]):
            yield from _leaves(part, jpeg, (*keys, index))
    elif kind == "Box":
        shape, dtype = tuple(int(n) for n in space["shape"]), str(np.dtype(space["dtype"]))
        is_image = dtype == "uint8" and len(shape) in (2, 3) and min(shape[:2]) >= _JPEG_SIDE
        is_image = is_image and not np.any(space["low"]) and bool(np.all(np.equal(space["high"], 255)))
        yield _Leaf(keys, kind, shape, dtype, jpeg and is_image)
    else:
        yield _Leaf(keys, str(kind))


def _chosen(path: Path, leaves: tuple[_Leaf, ...], options: ReadOptions) -> tuple[tuple[_Leaf, ...], dict[str, _Leaf]]:
    """The vectors that make up the state, and the cameras by name."""
    cameras = {leaf.name or CAMERA: leaf for leaf in leaves if leaf.is_camera}
    vectors = {leaf.name or "state": leaf for leaf in leaves if leaf.kind == "Box" and not leaf.is_camera}
    for wanted, there, kind in ((options.image_keys, cameras, "camera"), (options.state_keys, vectors, "vector")):
        for name in wanted or ():
            if name not in there:
                raise DatasetError(f"{path}: the observations have no {kind} {name!r}; they have {_list(there)}")
    if options.image_keys is not None:
        cameras = {name: cameras[name] for name in options.image_keys}
    if options.state_keys is not None:
        return tuple(vectors[name] for name in options.state_keys), cameras
    own = [leaf for leaf in vectors.values() if leaf.keys[:1] in ((), ("state",))]
    floating = [leaf for leaf in vectors.values() if leaf.is_vector]
    # Environments flattened here join the boxes beside one another; those within a further Dict only if that is all.
    beside = [leaf for leaf in floating if len(leaf.keys) == 1]
    return tuple(own or beside or floating), cameras


def _read(contents: _Contents) -> Iterator[Episode]:
    path = contents.folder / "main_data.hdf5"
    if contents.format == "hdf5" and not path.is_file():
        raise DatasetError(f"{path} is not there; {_METADATA} says that the data are in it")
    with Hdf5(path, ragged=True) if contents.format == "hdf5" else nullcontext() as file:
        for index in range(contents.episodes):
            if file is not None:
                source: _Hdf5Episode | _ArrowEpisode = _Hdf5Episode(file, index)
            else:
                source = _ArrowEpisode(contents.folder / str(index), contents.format)
            yield from split_at_ends(_episode(contents, source, index))


def _episode(contents: _Contents, source: _Hdf5Episode | _ArrowEpisode, index: int) -> Episode:
    columns = {name: source.column((name,)) for name in ("rewards", "terminations", "truncations")}
    steps = len(columns["rewards"])
    for name, value in columns.items():
        if value.shape not in ((steps,), (steps, 1)) or value.dtype.kind not in "fiub":
            raise DatasetError(
                f"{source.where}, field '{name}': is {value.dtype} {value.shape}; accepted: numbers ({steps},)"
            )
    observations: dict[str, Array] = {}
    with np.errstate(over="ignore"):  # what becomes infinite is reported by check_episode
        if contents.state:
            parts = [_values(source, ("observations", *leaf.keys), leaf, steps + 1) for leaf in contents.state]
            observations["state"] = np.concatenate([p.reshape(steps + 1, -1).astype(np.float32) for p in parts], 1)
        actions = _values(source, ("actions",), contents.action, steps).reshape(steps, -1).astype(np.float32)
        rewards = columns["rewards"].reshape(-1).astype(np.float32)
    for name, leaf in contents.cameras.items():
        images = _values(source, ("observations", *leaf.keys), leaf, steps + 1)
        observations[name] = resize(images, contents.image_size)
    # A step's own information came with the observation after it; the first one is the reset's.
    extras = {f"infos/{name}": v[len(v) - steps :] for name, v in source.infos().items() if len(v) - steps in (0, 1)}
    terminated, truncated = (columns[name].reshape(-1).astype(bool) for name in ("terminations", "truncations"))
    attributes = {"id": index} | source.attributes()
    attributes.pop("total_steps", None)
    return Episode(
        observations, actions, rewards, terminated, truncated, extras, f"episode {index}", attributes
    )  # fmt: skip


def _values(source: _Hdf5Episode | _ArrowEpisode, keys: tuple[str | int, ...], leaf: _Leaf, rows: int) -> Array:
    """Values of a leaf, [rows, *shape]."""
    where = f"{source.where}, field '{'/'.join(map(str, keys))}'"
    values = source.column(keys)
    if len(values) == rows and leaf.jpeg:
        try:
            return decode(list(values), leaf.shape)
        except ValueError as error:
            raise DatasetError(f"{where}: {error}") from None
    if len(values) != rows or values.size != rows * int(np.prod(leaf.shape)) or values.dtype.kind not in "fiub":
        raise DatasetError(
            f"{where}: is {values.dtype} {values.shape}; the metadata say {leaf.dtype} {(rows, *leaf.shape)}"
        )
    return values.reshape(rows, *leaf.shape)


class _Hdf5Episode:
    """One group of ``main_data.hdf5``."""

    def __init__(self, file: Hdf5, index: int) -> None:
        self._file, self._group = file, f"episode_{index}"
        self.where = f"{file.path}, {self._group}"
        self._fields = file.fields(self._group)
        if not self._fields:
            raise DatasetError(f"{self.where} is missing or empty; {_METADATA} says that it is there")

    def column(self, keys: tuple[str | int, ...]) -> Array:
        """Values of one name, or contents of image files [rows] of dtype object, or uint8 [rows, bytes]."""
        name = "/".join(key if isinstance(key, str) else f"_index_{key}" for key in keys)
        if name not in self._fields:
            raise DatasetError(f"{self.where}, field '{name}': is missing; it has {_list(self._fields)}")
        return np.atleast_1d(self._fields[name].rows())

    def infos(self) -> dict[str, Array]:
        """What environments returned beside observations, if it is numbers."""
        names = [name for name, field in self._fields.items() if name.startswith("infos/") and not field.ragged]
        return {name.removeprefix("infos/"): self.column(tuple(name.split("/"))) for name in names}

    def attributes(self) -> dict[str, Any]:
        """Seed and options."""
        return self._file.attributes(self._group)


class _ArrowEpisode:
    """One folder of arrow or parquet files. Each column has a row more than there are steps."""

    def __init__(self, folder: Path, form: str) -> None:
        self.where, self._folder = str(folder), folder
        self._arrow: Any = require("pyarrow", "data")
        self._compute: Any = require("pyarrow.compute", "data")
        paths = sorted(folder.glob(f"*{_SUFFIXES[form]}"))
        if not paths:
            raise DatasetError(f"{folder} has no {_SUFFIXES[form]} file; {_METADATA} says that it is there")
        tables = [self._table(path, form) for path in paths]
        try:
            self._table_of = self._arrow.concat_tables(tables)
        except self._arrow.ArrowException as error:
            raise DatasetError(f"{folder}: its files do not fit together: {error}") from None

    def _table(self, path: Path, form: str) -> Any:
        try:
            if form == "parquet":
                table = require("pyarrow.parquet", "data").ParquetFile(path).read()
            else:
                with self._arrow.memory_map(str(path)) as file:
                    table = require("pyarrow.ipc", "data").open_file(file).read_all()
            table.validate(full=True)
            return table
        except (self._arrow.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
            raise DatasetError(f"{path} can not be read as {form}: {error}") from None

    def column(self, keys: tuple[str | int, ...]) -> Array:
        """As that of an HDF5 episode."""
        name = "/".join(map(str, keys))
        try:
            column = self._table_of.column(keys[0])
            for key in keys[1:]:
                column = self._compute.struct_field(column, str(key))
            rows = self._rows(column)
        except (self._arrow.ArrowException, ValueError, KeyError, IndexError, NotImplementedError) as error:
            raise DatasetError(f"{self.where}, field '{name}': can not be read: {error}") from None
        return rows if keys[0] == "observations" else rows[:-1]

    def infos(self) -> dict[str, Array]:
        """As those of an HDF5 episode."""
        if "infos" not in self._table_of.column_names:
            return {}
        try:
            return dict(self._numbers(self._table_of.column("infos"), self._table_of.schema.field("infos")))
        except (self._arrow.ArrowException, ValueError, TypeError) as error:
            raise DatasetError(f"{self.where}, field 'infos': can not be read: {error}") from None

    def attributes(self) -> dict[str, Any]:
        """Seed and options."""
        return _metadata(self._folder)

    def _rows(self, column: Any) -> Array:
        kinds = self._arrow.types
        if kinds.is_binary(column.type):
            rows = np.empty(len(column), object)
            rows[:] = column.to_pylist()
            return rows
        rows_of = len(column)
        while kinds.is_fixed_size_list(column.type):
            column = self._compute.list_flatten(column)
        if column.null_count or not (kinds.is_primitive(column.type) or kinds.is_boolean(column.type)):
            raise ValueError(f"is {column.type} with {column.null_count} gaps; accepted: numbers")
        values: Array = column.to_numpy()
        return values.reshape(rows_of, -1) if len(values) != rows_of else values

    def _numbers(self, column: Any, field: Any, prefix: str = "") -> Iterator[tuple[str, Array]]:
        for part in field.type:
            name, values = f"{prefix}{part.name}", self._compute.struct_field(column, part.name)
            if self._arrow.types.is_struct(part.type):
                yield from self._numbers(values, part, f"{name}/")
                continue
            try:
                rows = self._rows(values)
            except (self._arrow.ArrowException, ValueError):  # text, or gaps: no numbers
                continue
            shape = (part.metadata or {}).get(b"shape", b"").decode()
            if rows.dtype.kind in "fiub":
                yield name, rows.reshape(len(rows), *(int(n) for n in shape.split(",") if n)) if shape else rows


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
