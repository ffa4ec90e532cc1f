"""Writes LeRobotDataset v3.0; :mod:`serl_fast.data.formats.lerobot` describes what is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.disk import require_room
from serl_fast.data.episodes import Array, DatasetError, Episode, check_episode
from serl_fast.data.formats.lerobot_stats import Totals, statistics
from serl_fast.data.video import VideoWriter
from serl_fast.errors import require

_CHUNK_FILES = 1000  # files in a folder
_PLACE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA, _EPISODES = f"data/{_PLACE}.parquet", f"meta/episodes/{_PLACE}.parquet"
_VIDEO = "videos/{video_key}/" + _PLACE + ".mp4"
_INDEX = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_EXTRA_NAMES = {"grasp_penalty": "complementary_info.discrete_penalty", "success": "next.success"}


def extra_name(feature: str) -> str:
    """The name among an episode's extras of a feature."""
    known = {theirs: ours for ours, theirs in _EXTRA_NAMES.items()}
    return known.get(feature, feature.removeprefix("complementary_info."))


def _feature_name(extra: str) -> str:
    if extra.startswith(("observation.", "next.")):
        return extra
    return _EXTRA_NAMES.get(extra, "complementary_info." + extra.replace("/", "."))


def _extras(episode: Episode) -> dict[str, Array]:
    """By feature; without the time, which is written anew, and fields without values, which a table can not hold."""
    return {_feature_name(key): value for key, value in episode.extras.items() if key != "timestamp" and value[0].size}


def write(path: Path, episodes: Iterable[Episode], attributes: Mapping[str, Any]) -> None:
    """Write a v3.0 data set, complete or not at all, an episode at a time.

    Args:
        path: folder, which must not exist.
        episodes: at least one.
        attributes: those that the module :mod:`serl_fast.data.formats.lerobot` names.

    Raises:
        DatasetError: there are no episodes, one is not as it should be, or an attribute is not.
        OSError: the disk has no room for one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        with _Writer(temporary, attributes) as writer:
            for episode in episodes:
                try:
                    check_episode(episode, writer.first)
                    require_room(path, episode, 1 / 8)  # films take less; a failed write of others is an error
                    writer.add(episode)
                except DatasetError as error:
                    raise DatasetError(f"{path}, {episode.name or writer.count}: {error}") from None
            if writer.first is None:
                raise DatasetError(f"{path}: there are no episodes to write")
        writer.write_headers()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Writer:
    """A data set that grows by episodes."""

    def __init__(self, root: Path, attributes: Mapping[str, Any]) -> None:
        self.root, self.attributes = root, attributes
        self.first: Episode | None = None
        self.count = self.frames = 0
        self.fps = _number(attributes, "fps", 10)
        self.fps = int(self.fps) if self.fps == int(self.fps) else self.fps
        self.limits = {f"{kind}_files_size_in_mb": _number(attributes, f"{kind}_files_size_in_mb", size)
                       for kind, size in (("data", 100), ("video", 200))}  # fmt: skip
        self.features: dict[str, dict[str, Any]] = {}
        self.tasks: dict[str, int] = {}
        self.totals = Totals()
        limit = self.limits["data_files_size_in_mb"]
        self.data, self.episodes = _Tables(root, _DATA, limit), _Tables(root, _EPISODES, limit)
        self.films: dict[str, _Films] = {}

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        for part in (self.data, self.episodes, *self.films.values()):
            part.close()

    def add(self, episode: Episode) -> None:
        if self.first is None:
            self.first = episode
            self._describe(episode)
        columns, images = self._columns(episode)
        frames = len(columns["action"])
        facts: dict[str, Any] = {"episode_index": self.count, "tasks": [self._task(episode)], "length": frames}
        facts |= self.data.place("data")
        for key, frames_of in images.items():
            if key in self.films:
                facts |= self.films[key].add(frames_of, f"videos/{key}")
        facts |= {"dataset_from_index": self.frames, "dataset_to_index": self.frames + frames}
        found = {name: statistics(images[name] if name in images else columns[name]) for name in self.features}
        self.totals.add(found)
        facts |= {f"stats/{name}/{key}": value.tolist() for name, part in found.items() for key, value in part.items()}
        self.data.write(self._table(columns, images))
        facts |= self.episodes.place("meta/episodes")
        self.episodes.write(_row(facts))
        self.count, self.frames = self.count + 1, self.frames + frames

    def _describe(self, episode: Episode) -> None:
        """Features, and which cameras are films: those whose size the colours of a film can be halved of."""
        named: dict[str, tuple[Array, Any]] = {"action": (episode.actions, self.attributes.get("action_names"))}
        films = self.attributes.get("video", True)
        for key, values in episode.observations.items():
            if key == "state":
                named["observation.state"] = (values, self.attributes.get("state_names"))
                continue
            height, width, channels = values.shape[1:]
            if channels != 3:
                raise DatasetError(f"camera {key!r} has {channels} channels; LeRobot takes 3")
            name = f"observation.images.{key}"
            film = bool(films) and height % 2 == 0 and width % 2 == 0
            self.features[name] = {"dtype": "video" if film else "image", "shape": [height, width, 3],
                                   "names": ["height", "width", "channels"]}  # fmt: skip
            if film:
                codec = self.attributes.get("video_codec", "libx264")
                limit = self.limits["video_files_size_in_mb"]
                self.films[name] = _Films(self.root, _VIDEO.replace("{video_key}", name), limit, self.fps, codec)
        flags = {"next.reward": episode.rewards, "next.done": episode.terminated, "next.truncated": episode.truncated}
        for key, value in {**flags, **_extras(episode)}.items():
            named[key] = (value, None)
        for name, (values, labels) in named.items():
            shape = list(values.shape[1:] or (1,))
            labels = list(labels) if labels and [len(labels)] == shape else None
            self.features[name] = {"dtype": str(values.dtype), "shape": shape, "names": labels}
        for name in self.features:
            if "/" in name:
                raise DatasetError(f"{name!r} would be the name of a feature; LeRobot's have no slash")
        self.features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _INDEX.items()}

    def _columns(self, episode: Episode) -> tuple[dict[str, Array], dict[str, Array]]:
        """Numbers and images of all frames, by feature."""
        over = bool(episode.terminated[-1])
        frames = len(episode) + (not over)

        def padded(values: Array, last: Any = None) -> Array:
            return (
                values
                if over
                else np.append(values, values[-1:] if last is None else np.full_like(values[-1:], last), 0)
            )

        columns = {"action": padded(episode.actions), "next.reward": padded(episode.rewards, 0)}
        columns |= {
            "next.done": padded(episode.terminated, False),
            "next.truncated": padded(episode.truncated & ~episode.terminated, False),
        }
        columns |= {name: padded(value) for name, value in _extras(episode).items()}
        row, task = np.arange(frames), self.tasks.setdefault(self._task(episode), len(self.tasks))
        columns |= {
            "timestamp": (row / self.fps).astype(np.float32),
            "frame_index": row,
            "episode_index": np.full(frames, self.count),
            "index": row + self.frames,
            "task_index": np.full(frames, task),
        }
        images = {}
        for key, values in episode.observations.items():
            if key == "state":
                columns["observation.state"] = values[:frames]
            else:
                images[f"observation.images.{key}"] = values[:frames]
        return columns, images

    def _task(self, episode: Episode) -> str:
        return str(episode.attributes.get("task", self.attributes.get("task", "")))

    def _table(self, columns: Mapping[str, Array], images: Mapping[str, Array]) -> Any:
        arrow = require("pyarrow", "data")
        arrays = {}
        for name in self.features:
            if name in columns:
                arrays[name] = _vectors(columns[name])
            elif name not in self.films:
                stored = [
                    {"bytes": _png(image), "path": f"frame-{row:06d}.png"} for row, image in enumerate(images[name])
                ]
                arrays[name] = arrow.array(stored, arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]))
        return arrow.table(arrays)

    def write_headers(self) -> None:
        """``info.json``, ``stats.json`` and ``tasks.parquet``."""
        for name, films in self.films.items():
            height, width, channels = self.features[name]["shape"]
            self.features[name]["info"] = {
                "video.height": height, "video.width": width, "video.codec": films.codec_name,
                "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": self.fps,
                "video.channels": channels, "has_audio": False,
            }  # fmt: skip
        info = {
            "codebase_version": "v3.0",
            "robot_type": None if (robot := self.attributes.get("robot_type")) is None else str(robot),
            "total_episodes": self.count,
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": _CHUNK_FILES,
            **self.limits,
            "fps": self.fps,
            "splits": {"train": f"0:{self.count}"},
            "data_path": _DATA,
            "video_path": _VIDEO if self.films else None,
            "features": self.features,
        }
        for name, content in (("info", info), ("stats", self.totals.plain())):
            text = json.dumps(content, indent=4, ensure_ascii=False)
            (self.root / "meta" / f"{name}.json").write_text(text, encoding="utf-8")
        _write_tasks(self.root / "meta" / "tasks.parquet", list(self.tasks))


class _Numbered:
    """Files of limited size: a new one begins when the one before has reached it."""

    def __init__(self, root: Path, pattern: str, limit_mb: float) -> None:
        self._root, self._pattern, self._limit = root, pattern, limit_mb * 2**20
        self._number = -1
        self.open: Any = None

    def place(self, prefix: str) -> dict[str, Any]:
        """Where the next episode goes: ``PREFIX/chunk_index`` and ``PREFIX/file_index``."""
        if self.open is None or self._size() >= self._limit:
            self.close()
            self._number += 1
        chunk, file = divmod(self._number, _CHUNK_FILES)
        return {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": file}

    def _path(self) -> Path:
        chunk, file = divmod(self._number, _CHUNK_FILES)
        path = self._root / self._pattern.format(chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _size(self) -> int:
        return self._path().stat().st_size

    def close(self) -> None:
        if self.open is not None:
            self.open.close()
            self.open = None


class _Tables(_Numbered):
    """Parquet files, a row group for every table."""

    def write(self, table: Any) -> None:
        arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
        try:
            if self.open is None:
                self.open = parquet.ParquetWriter(self._path(), table.schema, compression="snappy")
            self.open.write_table(table)
        except (arrow.ArrowException, ValueError) as error:
            raise DatasetError(f"the columns are not those of the episodes before ({error})") from None


class _Films(_Numbered):
    """Films of one camera, with many episodes one after the other."""

    def __init__(self, root: Path, pattern: str, limit_mb: float, fps: float, codec: str) -> None:
        super().__init__(root, pattern, limit_mb)
        self._fps, self._codec = fps, codec

    @property
    def codec_name(self) -> str:
        return {"libx264": "h264", "libsvtav1": "av1", "libx265": "hevc"}.get(self._codec, self._codec)

    def add(self, frames: Array, prefix: str) -> dict[str, Any]:
        place = self.place(prefix)
        if self.open is None:
            self.open = VideoWriter(self._path(), self._fps, self._codec)
        begin = self.open.frames
        for frame in frames:
            self.open.add(frame)
        end = self.open.frames
        return place | {f"{prefix}/from_timestamp": begin / self._fps, f"{prefix}/to_timestamp": end / self._fps}

    def _size(self) -> int:
        return int(self.open.size)


def _number(attributes: Mapping[str, Any], name: str, default: float) -> float:
    value = attributes.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise DatasetError(f"attribute '{name}' is {value!r}; accepted: a number above 0")
    return value


def _vectors(values: Array) -> Any:
    """An Arrow column of one value, or a list of fixed length, for each row."""
    arrow = require("pyarrow", "data")
    column = arrow.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim > 1 and values.shape[1:] != (1,):
        for size in reversed(values.shape[1:]):
            column = arrow.FixedSizeListArray.from_arrays(column, size)
    return column


def _row(facts: Mapping[str, Any]) -> Any:
    return require("pyarrow", "data").table({name: [value] for name, value in facts.items()})


def _png(image: Array) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    require("PIL.Image", "data").fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """The table as pandas writes it, with the tasks as its index: LeRobot looks them up by name."""
    arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    index = "__index_level_0__"
    columns = (("task_index", "task_index", "int64"), (None, index, "unicode"))
    pandas = {
        "index_columns": [index],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
                            "metadata": {"encoding": "UTF-8"}}],
        "columns": [{"name": name, "field_name": field, "pandas_type": kind, "metadata": None,
                     "numpy_type": "object" if kind == "unicode" else kind} for name, field, kind in columns],
        "creator": {"library": "pyarrow", "version": arrow.__version__},
        "pandas_version": "2.0.0",
    }  # fmt: skip
    table = arrow.table({"task_index": np.arange(len(tasks)), index: tasks})
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)
