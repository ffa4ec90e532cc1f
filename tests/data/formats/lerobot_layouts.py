"""LeRobotDataset folders, made with pyarrow and PyAV alone as LeRobot's own library lays them out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
FRONT, WRIST = "observation.images.front", "observation.images.wrist"


def film(frames: int, seed: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Smooth pictures, every one far from the others: uint8 [frames, height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    t = np.arange(frames)[:, None, None]
    planes = np.broadcast_arrays(
        x + 25 * (t % 7) + 0 * y, 2 * y + 9 * t + 20 * seed + 0 * x, 40 + 13 * (t % 11) + 0 * x * y
    )
    return np.minimum(np.stack(planes, -1), 255).astype(np.uint8)


def frames_of(length: int, seed: int, done: bool) -> dict[str, Any]:
    """The columns of an episode, by feature, images among them."""
    rng = np.random.default_rng(seed)
    reward, mark = np.zeros(length, np.float32), np.zeros(length, bool)
    reward[-1], mark[-1] = done, done
    return {
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "observation.environment_state": rng.normal(size=(length, 2)).astype(np.float32),
        "action": rng.normal(size=(length, 4)).astype(np.float32),
        "next.reward": reward,
        "next.done": mark,
        "complementary_info.discrete_penalty": rng.normal(size=length).astype(np.float32),
        FRONT: film(length, seed),
        WRIST: film(length, seed + 3, 24, 24),
    }


def v21(root: Path, episodes: list[dict[str, Any]], tasks: list[str], videos: tuple[str, ...] = (FRONT,)) -> Path:
    """Version 2.1: one parquet file and one film of each camera in ``videos`` for an episode, other cameras as PNG."""
    lines: dict[str, list[Any]] = {"episodes": [], "episodes_stats": [], "tasks": []}
    names = list(dict.fromkeys(tasks))
    total = 0
    for index, (columns, task) in enumerate(zip(episodes, tasks, strict=True)):
        length = len(columns["action"])
        table = _table(columns, videos, index, total, names.index(task))
        _write(root / f"data/chunk-000/episode_{index:06d}.parquet", table)
        for key in videos:
            encode(root / f"videos/chunk-000/{key}/episode_{index:06d}.mp4", columns[key])
        lines["episodes"].append({"episode_index": index, "tasks": [task], "length": length})
        lines["episodes_stats"].append({"episode_index": index, "stats": _statistics(columns)})
        total += length
    lines["tasks"] = [{"task_index": index, "task": task} for index, task in enumerate(names)]
    info = _info("v2.1", episodes, videos, names) | {
        "total_videos": len(videos) * len(episodes),
        "total_chunks": 1,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        if videos
        else None,
    }
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    for name, rows in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def v30(root: Path, episodes: list[dict[str, Any]], tasks: list[str], videos: tuple[str, ...] = (FRONT,)) -> Path:
    """Version 3.0: all episodes but the last in one file, the last in another."""
    names = list(dict.fromkeys(tasks))
    starts = np.cumsum([0, *(len(columns["action"]) for columns in episodes)])
    places = [0] * (len(episodes) - 1) + [1]
    rows: list[dict[str, Any]] = []
    for number in (0, 1):
        members = [index for index, place in enumerate(places) if place == number]
        tables = [
            _table(episodes[index], videos, index, int(starts[index]), names.index(tasks[index])) for index in members
        ]
        _write(root / f"data/chunk-000/file-{number:03d}.parquet", pa.concat_tables(tables))
        for key in videos:
            encode(
                root / f"videos/{key}/chunk-000/file-{number:03d}.mp4",
                np.concatenate([episodes[i][key] for i in members]),
            )
        for index in members:
            start, end = (int(value) for value in starts[index : index + 2])
            row = {"episode_index": index, "tasks": [tasks[index]], "length": end - start,
                   "data/chunk_index": 0, "data/file_index": number,
                   "dataset_from_index": start, "dataset_to_index": end}  # fmt: skip
            for key in videos:
                begin = (start - int(starts[members[0]])) / FPS
                row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": number,
                        f"videos/{key}/from_timestamp": begin,
                        f"videos/{key}/to_timestamp": begin + (end - start) / FPS}  # fmt: skip
            rows.append(
                row | {"stats/action/min": [0.0] * 4, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
            )
    _write(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    _write(root / "meta/tasks.parquet", pa.table({"task_index": np.arange(len(names)), "__index_level_0__": names}))
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    info = _info("v3.0", episodes, videos, names) | {
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": f"data/{place}.parquet",
        "video_path": "videos/{video_key}/" + place + ".mp4" if videos else None,
    }
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    return root


def encode(path: Path, frames: np.ndarray) -> None:
    """H.264, yuv420p, a key frame every other frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", FPS, options={"g": "2", "crf": "10"})
        stream.pix_fmt, (stream.height, stream.width) = "yuv420p", frames.shape[1:3]
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _table(columns: dict[str, Any], videos: tuple[str, ...], index: int, start: int, task: int) -> pa.Table:
    length = len(columns["action"])
    arrays = {}
    for name, values in columns.items():
        if name in videos:
            continue
        if values.ndim == 4:
            arrays[name] = pa.array(
                [{"bytes": png(image), "path": f"frame-{row:06d}.png"} for row, image in enumerate(values)]
            )
        elif values.ndim == 2:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        else:
            arrays[name] = pa.array(values)
    row = np.arange(length)
    arrays |= {
        "timestamp": pa.array((row / FPS).astype(np.float32)),
        "frame_index": pa.array(row),
        "episode_index": pa.array(np.full(length, index)),
        "index": pa.array(row + start),
        "task_index": pa.array(np.full(length, task)),
    }
    return pa.table(arrays)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _statistics(columns: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, values in columns.items():
        if values.ndim == 4:
            one = np.ones((3, 1, 1))
            found[name] = {key: one.tolist() for key in ("min", "max", "mean", "std")}
        else:
            numbers = values.astype(np.float64).reshape(len(values), -1)
            found[name] = {key: getattr(numbers, key)(0).tolist() for key in ("min", "max", "mean", "std")}
        found[name]["count"] = [len(values)]
    return found


def _info(version: str, episodes: list[dict[str, Any]], videos: tuple[str, ...], tasks: list[str]) -> dict[str, Any]:
    features: dict[str, Any] = {}
    for name, values in episodes[0].items():
        if values.ndim == 4:
            height, width = values.shape[1:3]
            features[name] = {"dtype": "video" if name in videos else "image", "shape": [height, width, 3],
                              "names": ["height", "width", "channels"]}  # fmt: skip
            if name in videos:
                facts = {"height": height, "width": width, "codec": "h264", "is_depth_map": False, "fps": FPS}
                features[name]["info"] = {f"video.{key}": value for key, value in facts.items()}
        else:
            features[name] = {"dtype": str(values.dtype), "shape": list(values.shape[1:] or (1,)), "names": None}
    features["action"]["names"] = {"motors": ["x", "y", "z", "gripper"]}
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
    return {
        "codebase_version": version,
        "robot_type": "toy",
        "total_episodes": len(episodes),
        "total_frames": sum(len(columns["action"]) for columns in episodes),
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(episodes) - 1}", "test": f"{len(episodes) - 1}:{len(episodes)}"},
        "features": features,
    }
