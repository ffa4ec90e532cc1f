"""What the headers of a LeRobotDataset say, v2.0 to v3.x; nothing of it is believed."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.episodes import DatasetError
from serl_fast.data.formats.lerobot_tables import IMAGES, Feature, damage, first_line, open_table

INFO = Path("meta", "info.json")
INDEX_FEATURES = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that every data set has beside its own."""

_MAX_SIDE = 1 << 14  # px, and widths of vectors: far above any camera, far below what would fill the memory
_SPEC = re.compile(r"(0?[0-9]{1,2}d)?\Z")


@dataclass(frozen=True)
class Recording:
    """Where an episode is.

    Attributes:
        index: its number.
        length: frames.
        tasks: what was to be done, in words.
        file: parquet file.
        row: of its first frame in ``file``.
        videos: by feature, the file and at which second of it the episode begins.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    file: Path
    row: int
    videos: dict[str, tuple[Path, float]]

    @property
    def name(self) -> str:
        """For messages."""
        return f"episode {self.index}"


@dataclass(frozen=True)
class Headers:
    """All that is known before a frame is read; see the files' own description for the names."""

    version: str
    fps: float
    robot_type: str | None
    features: dict[str, Feature]
    recordings: tuple[Recording, ...]
    tasks: dict[int, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)


def read_headers(root: Path) -> Headers:
    """Read everything in ``meta``, and how many rows the data files have where they hold many episodes.

    Raises:
        DatasetError: a file is missing or damaged, or they contradict one another.
    """
    info = _Info(root / INFO)
    version = info.get("codebase_version", str)
    features = info.features()
    if re.match(r"v2\.[01]\Z", version):
        recordings = _recordings_v2(root, info, features)
        tasks = {row.get("task_index", int): row.get("task", str) for row in _json_lines(root / "meta" / "tasks.jsonl")}
    elif re.match(r"v3\.\d+\Z", version):
        recordings = _recordings_v3(root, info, features)
        tasks = _tasks_v3(root / "meta" / "tasks.parquet")
    else:
        raise DatasetError(f"{info.path}: 'codebase_version' is {version!r}; accepted: v2.0, v2.1 and v3.0")
    if not recordings:
        raise DatasetError(f"{root}: there are no episodes")
    for name, counted in (("episodes", len(recordings)), ("frames", sum(part.length for part in recordings))):
        if info.get(f"total_{name}", int) != counted:
            claimed = info.get(f"total_{name}", int)
            raise DatasetError(f"{info.path}: 'total_{name}' is {claimed}; the list of episodes has {counted}")
    fps = float(info.get("fps", (int, float)))
    if not 0 < fps < 1e6:
        raise DatasetError(f"{info.path}: 'fps' is {fps}; accepted: above 0")
    robot, splits = info.get("robot_type", str, None), info.get("splits", dict, {})
    return Headers(version, fps, robot, features, tuple(recordings), tasks, {key: str(splits[key]) for key in splits})


def _recordings_v2(root: Path, info: _Info, features: dict[str, Feature]) -> list[Recording]:
    """One parquet file and one film of every camera for each episode."""
    chunk_size = max(info.get("chunks_size", int, 1000), 1)
    recordings = []
    for row in sorted(_json_lines(root / "meta" / "episodes.jsonl"), key=lambda row: row.get("episode_index", int)):
        index = row.get("episode_index", int)
        place = {"episode_index": index, "episode_chunk": index // chunk_size}
        videos = {
            name: (root / info.pattern("video_path", place | {"video_key": name}), 0.0)
            for name, feature in features.items()
            if feature.dtype == "video"
        }
        file = root / info.pattern("data_path", place)
        tasks = tuple(str(task) for task in row.get("tasks", list, []))
        recordings.append(Recording(index, row.count("length"), tasks, file, 0, videos))
    return recordings


def _recordings_v3(root: Path, info: _Info, features: dict[str, Feature]) -> list[Recording]:
    """Many episodes in a file.

    ``data/file_index`` is not relied on: LeRobot's converter from v2.1 gives the episode that begins a new file the
    number of the file before, and its reader only uses the row in all files together. So does this one.
    """
    folder = root / "meta" / "episodes"
    rows = [row for path in sorted(folder.glob("*/*.parquet")) for row in _episode_rows(path)]
    if not rows:
        raise DatasetError(f"{folder} holds no list of episodes (chunk-*/file-*.parquet)")
    files = sorted((root / "data").glob("*/*.parquet"))
    claimed = {info.pattern("data_path", row.place("data")) for row in rows}
    for path in sorted(root / path for path in claimed):
        if path not in files:
            raise DatasetError(f"{path} is missing; {rows[0].path} names it")
    ends = np.cumsum([0, *(_row_count(path) for path in files)])
    total = info.get("total_frames", int)
    if ends[-1] != total:
        raise DatasetError(f"{root / 'data'} holds {ends[-1]} frames; {info.path} says 'total_frames' is {total}")
    films = [name for name, feature in features.items() if feature.dtype == "video"]
    recordings = []
    for row in sorted(rows, key=lambda row: row.get("dataset_from_index", int)):
        start, length = row.get("dataset_from_index", int), row.count("length")
        if start < 0 or start + length > total or row.get("dataset_to_index", int) != start + length:
            raise DatasetError(f"{row.path}: frames {start} to {row.get('dataset_to_index', int)} are not {length} of "
                               f"the {total} that there are")  # fmt: skip
        number = int(np.searchsorted(ends, start, side="right")) - 1
        videos = {}
        for name in films:
            begin = float(row.get(f"videos/{name}/from_timestamp", (int, float)))
            if not 0 <= begin < 1e9:
                raise DatasetError(f"{row.path}: 'videos/{name}/from_timestamp' is {begin}; accepted: from 0 on")
            place = row.place(f"videos/{name}") | {"video_key": name}
            videos[name] = (root / info.pattern("video_path", place), begin)
        tasks = tuple(str(task) for task in row.get("tasks", list, []))
        index, first = row.get("episode_index", int), int(start - ends[number])
        recordings.append(Recording(index, length, tasks, files[number], first, videos))
    return recordings


class _Row:
    """Named values of a header, each checked when it is asked for."""

    def __init__(self, path: Any, values: Any) -> None:
        if not isinstance(values, dict):
            raise DatasetError(f"{path} holds a {type(values).__name__}; accepted: named values")
        self.path, self.values = path, values

    def get(self, name: str, kind: Any, default: Any = ...) -> Any:
        value = self.values.get(name)
        if value is None and default is not ...:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = " or ".join(part.__name__ for part in (kind if isinstance(kind, tuple) else (kind,)))
            found = "is missing" if name not in self.values else f"is {str(value)[:60]!r}"
            raise DatasetError(f"{self.path}: field '{name}' {found}; accepted: {names}")
        return value

    def count(self, name: str) -> int:
        value: int = self.get(name, int)
        if not 0 < value < 1 << 40:
            raise DatasetError(f"{self.path}: field '{name}' is {value}; accepted: at least 1")
        return value

    def place(self, prefix: str) -> dict[str, Any]:
        return {name: self.get(f"{prefix}/{name}", int) for name in ("chunk_index", "file_index")}


class _Info(_Row):
    """``meta/info.json``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _json(path, path.read_bytes() if path.is_file() else b""))

    def pattern(self, name: str, values: dict[str, Any]) -> Path:
        """A path below the data set; patterns come from strangers, and ``str.format`` would do as they say."""
        text = self.get(name, str)
        parts = []
        try:
            for literal, key, spec, conversion in string.Formatter().parse(text):
                parts.append(literal)
                if key is not None:
                    if conversion or key not in values or not _SPEC.match(spec or ""):
                        raise ValueError
                    parts.append(format(values[key], spec or ""))
        except ValueError:
            raise DatasetError(f"{self.path}: '{name}' is {text!r}; accepted: a path with the fields "
                               f"{', '.join(values)}, each like {{{next(iter(values))}:03d}}") from None  # fmt: skip
        path = Path("".join(parts))
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise DatasetError(f"{self.path}: '{name}' is {text!r}, which leads out of the data set")
        return path

    def features(self) -> dict[str, Feature]:
        features = {}
        for name, values in self.get("features", dict).items():
            row = _Row(f"{self.path}, features/{name}", values)
            shape, names = row.get("shape", list), values.get("names")
            if "/" in name or "\\" in name or name in ("", ".", ".."):
                raise DatasetError(f"{self.path}: a feature is called {name!r}; accepted: names without a slash")
            if not all(isinstance(size, int) and 0 < size <= _MAX_SIDE for size in shape) or len(shape) > 5:
                raise DatasetError(f"{row.path}: 'shape' is {shape}; accepted: sizes from 1 to {_MAX_SIDE}")
            dtype, facts = row.get("dtype", str), values.get("info") or values.get("video_info") or {}
            depth = isinstance(facts, dict) and any(
                bool(facts.get(key)) for key in ("video.is_depth_map", "is_depth_map")
            )
            if dtype in IMAGES:
                if len(shape) != 3:
                    raise DatasetError(f"{row.path}: 'shape' is {shape}; accepted: height, width, channels")
                first = isinstance(names, list) and len(names) == 3 and str(names[0]).startswith("channel")
                shape = [*shape[1:], shape[0]] if first or (names is None and shape[0] in (1, 3)) else shape
            features[name] = Feature(name, dtype, tuple(shape), _labels(names), depth)
        return features


def _labels(names: Any) -> tuple[str, ...]:
    """Names of a vector's entries: a list, or a dict with one list (``{"motors": [...]}``)."""
    if isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _json(path: Any, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        if not content:
            raise DatasetError(f"{path} is missing or empty") from None
        raise DatasetError(f"{path} is no JSON ({error})") from None


def _json_lines(path: Path) -> list[_Row]:
    if not path.is_file():
        raise DatasetError(f"{path} is missing")
    with open(path, "rb") as file:
        places = ((f"{path}, line {number}", line) for number, line in enumerate(file, 1) if line.strip())
        return [_Row(place, _json(place, line)) for place, line in places]


def _episode_rows(path: Path) -> Iterator[_Row]:
    """Rows of the list of episodes without their statistics, which are most of it."""
    file = open_table(path)
    names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
    try:
        for batch in file.iter_batches(columns=names):
            yield from (_Row(path, row) for row in batch.to_pylist())
    except damage() as error:
        raise DatasetError(f"{path} is damaged ({first_line(error)})") from None


def _tasks_v3(path: Path) -> dict[int, str]:
    """The task is the index that pandas put beside the columns, or a column."""
    table = open_table(path)
    try:
        rows = [_Row(path, row) for row in table.read().to_pylist()]
    except damage() as error:
        raise DatasetError(f"{path} is damaged ({first_line(error)})") from None
    names = [name for name in ("__index_level_0__", "task") if name in table.schema_arrow.names]
    if rows and not names:
        raise DatasetError(f"{path} has the columns {table.schema_arrow.names}; accepted: task_index and task")
    return {row.get("task_index", int): row.get(names[0], str) for row in rows}


def _row_count(path: Path) -> int:
    return int(open_table(path).metadata.num_rows)
