"""LeRobotDataset v2.0, v2.1 and v3.0, read; v3.0, written: a folder with ``meta/info.json``, parquet files and films.

**Steps.** A LeRobot episode of T frames has no observation after its last action. Its last frame is a step only where
the task ended there: the value that follows a terminated step is never asked for, so the observation after it is the
last frame once more. Otherwise the last frame is only the observation after the step before it, the episode has T - 1
steps, and its last step is truncated. A recording that goes on after an end is several episodes. Which frame ended the
task is said by

* ``next.done`` and not ``next.truncated``. Without the second, ``next.done`` does not tell a time limit from an end; it
  is then an end, as LeRobot itself takes it;
* without ``next.done``: the last frame, where its ``next.success`` is true; without that too, where the episode's only
  reward stands there. So the reward of success is never lost.

**Names.** ``observation.state`` and then ``observation.environment_state`` make ``state`` (``state_keys`` chooses
others). Features of images, as films or as PNG in the tables, are cameras: ``observation.images.front`` is ``front``,
and ``image_keys`` takes either name; maps of depth are left out. ``next.reward`` gives the rewards, 0 without it. All
other numbers are extras, among them ``timestamp`` (s): ``next.success`` as ``success``, and
``complementary_info.NAME`` as ``NAME``, where HIL-SERL's ``discrete_penalty`` is ``grasp_penalty``. Texts in tables are
left out; an episode's ``task`` is an attribute, and ``tasks`` where it had several. ``filter_key`` is a name in
``splits`` of ``info.json``.

**Films.** Frames are found by their time, within half a frame. One episode is in memory, its images already resized.

**Written** is v3.0: H.264 (crf 18, a key frame every other frame), which loses a little, or PNG, which does not
(``video=False``, and always for cameras with an odd height or width). Attributes that are heeded: ``fps`` (10 without
it), ``task``, ``robot_type``, ``video``, ``video_codec`` ("libx264", "libsvtav1", "libx265"), ``action_names``,
``state_names``, ``data_files_size_in_mb``, ``video_files_size_in_mb``; and an episode's ``task``. An episode that ends
terminated is written as its T steps, as LeRobot does, without the observation after the last: a frame for it would be
one of success without its reward, on which LeRobot trains its classifier. Any other gets one frame more for that
observation, with the last action again and no reward; read back it has T steps again. ``next.done`` is true at ends
alone; beside it stands ``next.truncated``. A new file begins when one has reached its limit at the end of an episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.episodes import Array, Dataset, DatasetError, Episode, ReadOptions
from serl_fast.data.formats.lerobot_files import INDEX_FEATURES, INFO, Headers, Recording, read_headers
from serl_fast.data.formats.lerobot_tables import Feature, Rows, column
from serl_fast.data.formats.lerobot_write import extra_name, write
from serl_fast.data.images import decode, resize
from serl_fast.data.pieces import split_at_ends
from serl_fast.data.video import read_frames_at

__all__ = ["matches", "read", "write"]

STATE_KEYS = ("observation.state", "observation.environment_state")
_FLAGS: tuple[str, ...] = ("next.reward", "next.done", "next.truncated", "next.success")


def matches(path: Path) -> bool:
    """Whether it is a folder with ``meta/info.json``."""
    return path.is_dir() and (path / INFO).is_file()


def read(path: Path, options: ReadOptions) -> Dataset:
    """Open a data set of any of the versions.

    Raises:
        DatasetError: the headers are damaged or contradict one another, or have not what is wanted.
    """
    headers = read_headers(path)
    plan = _plan(path, headers, options)
    recordings = _selected(path, headers, options)
    frames = sum(recording.length for recording in recordings)
    facts = {
        "version": headers.version,
        "fps": headers.fps,
        "robot_type": headers.robot_type,
        "tasks": [headers.tasks[index] for index in sorted(headers.tasks)],
        "splits": headers.splits,
        "state_parts": {part.name: int(np.prod(part.shape)) for part in plan.state},
        "action_names": list(plan.action.labels),
        "state_names": [label for part in plan.state for label in part.labels],
    }
    return Dataset(
        path,
        "lerobot",
        partial(_episodes, headers, plan, recordings, options.max_episodes),
        None if {"next.done", "next.truncated"} & set(plan.flags) else len(recordings),
        None if plan.flags else frames - len(recordings),
        {name: value for name, value in facts.items() if value not in (None, [], {})},
    )


@dataclass(frozen=True)
class _Plan:
    """What is read of every frame: cameras and extras by the names that episodes have them under."""

    action: Feature
    state: tuple[Feature, ...]
    cameras: dict[str, Feature]
    extras: dict[str, Feature]
    flags: dict[str, Feature]
    image_size: tuple[int, int] | None

    def columns(self) -> list[str]:
        images = [camera for camera in self.cameras.values() if camera.dtype == "image"]
        parts = (self.action, *self.state, *images, *self.extras.values(), *self.flags.values())
        return list(dict.fromkeys([*INDEX_FEATURES[:-2], *(part.name for part in parts)]))


def _plan(path: Path, headers: Headers, options: ReadOptions) -> _Plan:
    features = headers.features
    if "action" not in features:
        raise DatasetError(f"{path}: there is no feature 'action'; the features are {', '.join(features)}")
    numbers = {
        name: feature
        for name, feature in features.items()
        if not feature.camera and feature.dtype.startswith(("float", "int", "uint", "bool"))
    }
    keys = tuple(key for key in STATE_KEYS if key in numbers) if options.state_keys is None else options.state_keys
    names = [key if key in numbers else f"observation.{key}" for key in keys]
    for key, name in zip(keys, names, strict=True):
        if name not in numbers:
            raise DatasetError(f"{path}: there is no feature {key!r} of numbers; choose from {', '.join(numbers)}")
    flags = {name: numbers[name] for name in _FLAGS if name in numbers}
    taken = {"action", *names, *(set(flags) - {"next.success"}), *INDEX_FEATURES[1:]}
    extras = {extra_name(name): feature for name, feature in numbers.items() if name not in taken}
    cameras = _cameras(path, features, options.image_keys)
    return _Plan(features["action"], tuple(numbers[name] for name in names), cameras, extras, flags, options.image_size)


def _cameras(path: Path, features: Mapping[str, Feature], keys: Sequence[str] | None) -> dict[str, Feature]:
    cameras: dict[str, Feature] = {}
    for name, feature in features.items():
        short = name.removeprefix("observation.").removeprefix("images.")
        if feature.camera and not feature.depth:
            if short in cameras or short == "state":
                raise DatasetError(f"{path}: the camera {name!r} would be called {short!r}, which is taken")
            cameras[short] = feature
    if keys is None:
        return cameras
    long = {feature.name: short for short, feature in cameras.items()}
    chosen = [long.get(key, key) for key in keys]
    for key in chosen:
        if key not in cameras:
            raise DatasetError(f"{path}: there is no camera {key!r}; choose from {', '.join(cameras) or 'none'}")
    return {key: cameras[key] for key in chosen}


def _selected(path: Path, headers: Headers, options: ReadOptions) -> tuple[Recording, ...]:
    recordings = headers.recordings
    if options.filter_key is not None:
        bounds = headers.splits.get(options.filter_key, "").split(":")
        if len(bounds) != 2 or not all(bound.isdecimal() for bound in bounds):
            known = ", ".join(f"{name} ({span})" for name, span in headers.splits.items())
            raise DatasetError(f"{path}: {options.filter_key!r} is no split FROM:TO; choose from {known or 'none'}")
        recordings = tuple(part for part in recordings if int(bounds[0]) <= part.index < int(bounds[1]))
    return recordings[: options.max_episodes]


def _episodes(headers: Headers, plan: _Plan, recordings: Sequence[Recording], limit: int | None) -> Iterator[Episode]:
    rows = Rows(plan.columns())
    found = (split_at_ends(_recorded(headers, plan, recording, rows)) for recording in recordings)
    return islice(chain.from_iterable(found), limit)


def _recorded(headers: Headers, plan: _Plan, recording: Recording, rows: Rows) -> Episode:
    table = rows.read(recording.file, recording.row, recording.length)
    try:
        return _episode(headers, plan, recording, table)
    except DatasetError as error:
        raise DatasetError(f"{recording.file}, {recording.name}: {error}") from None


def _episode(headers: Headers, plan: _Plan, recording: Recording, table: Any) -> Episode:
    frames = recording.length
    for name, expected in (("episode_index", recording.index), ("frame_index", np.arange(frames))):
        if not np.array_equal(
            found := column(table, Feature(name, "int64", (1,)))[:, 0], np.broadcast_to(expected, frames)
        ):
            raise DatasetError(
                f"field '{name}' is {found[:3].tolist()}...; accepted: that of the episode's {frames} frames"
            )
    flags = {name: column(table, feature).reshape(frames, -1)[:, 0] for name, feature in plan.flags.items()}
    rewards = flags.get("next.reward", np.zeros(frames)).astype(np.float32)
    terminated = _terminated(flags, rewards)
    truncated = flags.get("next.truncated", np.zeros(frames)).astype(bool)
    steps = frames if terminated[-1] else frames - 1
    if not steps:
        raise DatasetError("it has one frame and 'next.done' is not set; a step needs the observation after it")
    if steps < frames:  # the last frame is only an observation: if the recording ended there, it did so a step before
        truncated[steps - 1] |= "next.truncated" not in flags or truncated[-1]
    observations = {}
    if plan.state:
        parts = [column(table, part).reshape(frames, -1) for part in plan.state]
        last_again = np.minimum(np.arange(steps + 1), frames - 1)
        observations["state"] = np.concatenate(parts, 1).astype(np.float32)[last_again]
    observations |= _images(headers, plan, recording, table, steps + 1)
    extras = {name: _extra(column(table, feature), feature)[:steps] for name, feature in plan.extras.items()}
    tasks = list(recording.tasks)
    attributes = {"episode_index": recording.index, **({"task": tasks[0]} if tasks else {}),
                  **({"tasks": tasks} if len(tasks) > 1 else {})}  # fmt: skip
    if "next.success" in flags:
        attributes["success"] = bool(flags["next.success"].any())
    actions = column(table, plan.action).reshape(frames, -1)[:steps].astype(np.float32)
    return Episode(observations, actions, rewards[:steps], terminated[:steps], truncated[:steps], extras,
                   recording.name, attributes)  # fmt: skip


def _terminated(flags: Mapping[str, Array], rewards: Array) -> Array:
    """Which frames ended the task; the module says by which rule."""
    if "next.done" in flags:
        over = flags.get("next.truncated", np.zeros(len(rewards)))
        return flags["next.done"].astype(bool) & ~over.astype(bool)
    terminated = np.zeros(len(rewards), bool)
    if "next.success" in flags:
        terminated[-1] = bool(flags["next.success"][-1])
    else:
        terminated[-1] = rewards[-1] != 0 and not rewards[:-1].any()
    return terminated


def _extra(values: Array, feature: Feature) -> Array:
    return values[:, 0] if feature.shape == (1,) else values


def _images(headers: Headers, plan: _Plan, recording: Recording, table: Any, count: int) -> dict[str, Array]:
    """By camera: uint8 [count, H, W, C]; the last frame again where count is above the frames that there are."""
    times = column(table, Feature("timestamp", "float32", (1,)))[:, 0].astype(np.float64)
    if plan.cameras and not (np.isfinite(times).all() and (np.diff(times) >= 0).all() and times[0] >= 0):
        raise DatasetError("field 'timestamp' is not in order; accepted: seconds from the start of the episode")
    images = {}
    for name, feature in plan.cameras.items():
        try:
            if feature.dtype == "video":
                path, begin = recording.videos[feature.name]
                pictures = read_frames_at(path, begin + times, 0.5 / headers.fps, plan.image_size)
            else:
                pictures = _stored_images(table.column(feature.name), feature, plan.image_size)
            images[name] = _stack(pictures, count)
        except ValueError as error:
            raise DatasetError(f"camera {name!r}: {error}") from None
    return images


def _stored_images(values: Any, feature: Feature, size: tuple[int, int] | None) -> Iterator[Array]:
    for value in values:
        content = value.as_py()
        content = content.get("bytes") if isinstance(content, dict) else content
        if not isinstance(content, bytes):
            raise DatasetError("an image is not in the table; accepted: PNG or JPEG as bytes")
        yield resize(decode([content], feature.shape), size)[0]


def _stack(pictures: Iterator[Array], count: int) -> Array:
    """Copies images one at a time into their array, so that they are not twice in memory; the last fills the rest."""
    picture = next(pictures)
    stacked = np.empty((count, *picture.shape), np.uint8)
    rows = 0
    for rows, picture in enumerate(chain([picture], pictures), 1):  # noqa: B020 (the first one is among them)
        if picture.shape != stacked.shape[1:]:
            raise DatasetError(f"frame {rows - 1} has shape {picture.shape}; the first has {stacked.shape[1:]}")
        stacked[rows - 1] = picture
    stacked[rows:] = picture
    return stacked
