"""robomimic: one HDF5 file with a group for every demonstration.

``data/demo_7`` holds ``obs/*`` and, in most files, ``next_obs/*`` [T, ...], ``actions`` [T, A], ``rewards`` [T],
``dones`` [T] and the simulator's ``states`` [T, S]. Demonstrations are read in the order of their numbers;
``mask/train`` and the like name selections of them, of which ``filter_key`` chooses one. ``env_args``, which robosuite
needs to build the environment again, is among the data set's attributes.

* ``state`` joins the usual keys: end effector's position and quaternion, gripper's joints of ``robot0`` and ``robot1``,
  then ``object``. ``state_keys`` chooses others. A file with none of the usual ones gives ``state``, or all its vectors
  of floating point in the order of their names. The data set's ``state_parts`` says what was joined.
* Cameras are all arrays of uint8 images, ``agentview_image`` for example.
* The observation after the last step stands in ``next_obs``. In a file without, each step is followed by the next row,
  and the last one is left out.
* ``dones`` are taken as they stand, step by step, as ``terminated``. In files of human demonstrations every step in the
  goal and the last one have it: the demonstration ends at the first, and each step after it is an episode of its own
  (``max_episodes`` counts demonstrations). Their attribute ``demo`` is the same; written in a row they become one
  again.
* A demonstration whose last step is not done is ``truncated`` there. A file written here has ``truncated`` beside
  ``dones``, which is read back.
* All other arrays of T rows are extras. A demonstration's attributes (``model_file``) are the episode's, with
  ``split``, the selections that name it.

Source: https://robomimic.github.io/docs/datasets/overview.html
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serl_fast.data.episodes import Array, Dataset, DatasetError, Episode, ReadOptions
from serl_fast.data.hdf5 import Field, Hdf5, checked, chunk_rows, is_hdf5, new_file
from serl_fast.data.images import resize
from serl_fast.data.pieces import continues, joined, split_at_ends

STATE_KEYS = (
    "robot0_eef_pos",
    "robot0_eef_quat",
    "robot0_gripper_qpos",
    "robot1_eef_pos",
    "robot1_eef_quat",
    "robot1_gripper_qpos",
    "object",
)
"""What robomimic's policies see of a file's vectors, in our order; those that a file has."""
SAME = 1e-5
"""How far apart, relative and absolute, ``next_obs`` and the next row's ``obs`` may be."""
_OWN = ("actions", "rewards", "dones", "truncated")
_JSON = "attributes"  # what HDF5 and robomimic have no place for


@dataclass(frozen=True)
class _Keys:
    """What of the observations is read: names of vectors, in order, and of cameras."""

    state: tuple[str, ...]
    images: tuple[str, ...]
    image_size: tuple[int, int] | None


def matches(path: Path) -> bool:
    """Whether it is an HDF5 file with a group ``data`` of demonstrations."""
    if not is_hdf5(path):
        return False
    with Hdf5(path) as file:
        return any(name.startswith("demo") for name in file.names("data"))


def read(path: Path, options: ReadOptions) -> Dataset:
    """Open a file. See the module for the rules."""
    with Hdf5(path) as file:
        demos, masks = _demos(file, options)
        first = file.fields(f"data/{demos[0]}")
        keys = _keys(path, demos[0], first, options)
        shortened = not any(name.startswith("next_obs/") for name in first)
        steps = sum(_length(file, demo) - shortened for demo in demos)
        attributes = file.attributes("data")
    extra = _json(path, _JSON, attributes.pop(_JSON, "{}"))
    attributes.pop("total", None)
    if "env_args" in attributes:
        attributes["env_args"] = _json(path, "env_args", attributes["env_args"])
        attributes["env"] = attributes["env_args"].get("env_name", "")
    if keys.state:
        attributes["state_parts"] = {key: int(np.prod(first[f"obs/{key}"].shape[1:])) for key in keys.state}
    if masks:
        attributes["filter_keys"] = sorted(masks)
    return Dataset(path, "robomimic", partial(_read, path, options), steps=steps, attributes=attributes | extra)


def _read(path: Path, options: ReadOptions) -> Iterator[Episode]:
    with Hdf5(path) as file:
        demos, masks = _demos(file, options)
        keys = _keys(path, demos[0], file.fields(f"data/{demos[0]}"), options)
        for demo in demos:
            split = [name for name, members in masks.items() if demo in members]
            yield from split_at_ends(_episode(file, demo, keys, split))


def _demos(file: Hdf5, options: ReadOptions) -> tuple[list[str], dict[str, set[str]]]:
    """Names of the demonstrations that are wanted, sorted by number, and the members of each selection."""
    names = [name for name in file.names("data") if name.partition("_")[2].isdecimal()]
    masks = {name: set(file.texts(f"mask/{name}")) for name in file.names("mask")}
    if options.filter_key is not None:
        if options.filter_key not in masks:
            known = ", ".join(sorted(masks)) or "none"
            raise DatasetError(f"{file.path} has no selection 'mask/{options.filter_key}'; it has {known}")
        missing = sorted(masks[options.filter_key] - set(names))
        if missing:
            raise DatasetError(f"{file.path}: 'mask/{options.filter_key}' names {missing[0]}, which is not in 'data'")
        names = [name for name in names if name in masks[options.filter_key]]
    if not names:
        raise DatasetError(f"{file.path} has no demonstrations; expected groups data/demo_0, data/demo_1, ...")
    return sorted(names, key=lambda name: int(name.partition("_")[2]))[: options.max_episodes], masks


def _length(file: Hdf5, demo: str) -> int:
    length = file.attributes(f"data/{demo}", ("num_samples",)).get("num_samples")
    if isinstance(length, float) and length.is_integer():
        length = int(length)
    if not isinstance(length, int) or length < 1:
        raise DatasetError(
            f"{file.path}, data/{demo}: attribute 'num_samples' is {length}; accepted: a positive number"
        )
    return length


def _keys(path: Path, demo: str, fields: Mapping[str, Field], options: ReadOptions) -> _Keys:
    observed = {name[4:]: field for name, field in fields.items() if name.startswith("obs/")}
    if not observed:
        raise DatasetError(
            f"{path}, data/{demo}: has no observations 'obs/*'; a file of states alone is completed by robomimic's "
            "dataset_states_to_obs.py"
        )
    cameras = tuple(sorted(name for name, f in observed.items() if f.dtype == np.uint8 and len(f.shape) == 4))
    vectors = tuple(sorted(name for name, f in observed.items() if f.dtype.kind == "f" and len(f.shape) < 3))
    images = cameras if options.image_keys is None else tuple(options.image_keys)
    usual = tuple(name for name in STATE_KEYS if name in vectors) or ("state",) * ("state" in vectors) or vectors
    state = usual if options.state_keys is None else tuple(options.state_keys)
    for wanted, there, kind in ((images, cameras, "camera"), (state, tuple(observed), "array")):
        for name in wanted:
            if name not in there or (kind == "array" and name in cameras):
                have = ", ".join(there if kind == "camera" else vectors) or "none"
                raise DatasetError(f"{path}, data/{demo}: has no {kind} 'obs/{name}'; it has {have}")
    return _Keys(state, images, options.image_size)


def _wanted(file: Hdf5, group: str, keys: _Keys) -> tuple[dict[str, Field], dict[str, Field], bool]:
    """The arrays of a demonstration that are read, its extras, and whether it has ``next_obs``."""
    follows = bool(file.names(f"{group}/next_obs"))
    wanted = [f"{obs}/{name}" for obs in ("obs", "next_obs")[: 1 + follows] for name in (*keys.state, *keys.images)]
    found = file.fields(group, without=("obs", "next_obs"))
    found |= {name: field for name in wanted if (field := file.field(f"{group}/{name}")) is not None}
    rows = _length(file, group.removeprefix("data/"))
    for name in (*wanted, "actions", "rewards", "dones"):
        if name not in found:
            raise DatasetError(f"{file.path}, {group}, field '{name}': is missing")
        if found[name].shape[:1] != (rows,):
            raise DatasetError(f"{found[name].where}: has shape {found[name].shape}; accepted: ({rows}, ...)")
    extras = {
        name: field for name, field in found.items() if name not in (*wanted, *_OWN) and field.shape[:1] == (rows,)
    }
    return found, extras, follows


def _episode(file: Hdf5, demo: str, keys: _Keys, split: list[str]) -> Episode:
    group = f"data/{demo}"
    fields, extras, follows = _wanted(file, group, keys)
    rows = fields["actions"].shape[0]
    steps = rows if follows else rows - 1
    if not steps:
        raise DatasetError(f"{file.path}, {group}: one row and no 'next_obs': what followed the step is not known")
    observations: dict[str, Array] = {}
    if keys.state:
        observations["state"] = np.concatenate([_vectors(fields, name, follows) for name in keys.state], 1)
    for name in keys.images:
        for field in (fields[f"obs/{name}"], fields[f"{'next_' * follows}obs/{name}"]):
            if field.dtype != np.uint8 or len(field.shape) != 4 or field.shape[1:] != fields[f"obs/{name}"].shape[1:]:
                raise DatasetError(f"{field.where}: is {field.dtype} {field.shape}; accepted: uint8 images of one size")
        images = fields[f"obs/{name}"].rows(dtype=np.uint8)
        after = [fields[f"next_obs/{name}"].rows(rows - 1, rows, np.uint8)] if follows else []
        observations[name] = resize(np.concatenate([images, *after]), keys.image_size)
    actions = fields["actions"]
    if actions.dtype.kind != "f" or len(actions.shape) != 2:
        raise DatasetError(f"{actions.where}: is {actions.dtype} {actions.shape}; accepted: floating point (T, A)")
    terminated = fields["dones"].rows(0, steps).reshape(-1) != 0
    if "truncated" in fields:
        truncated = fields["truncated"].rows(0, steps).reshape(-1) != 0
    else:
        truncated = np.arange(steps) == steps - 1
        truncated &= ~terminated
    columns = {name: field.rows(0, steps) for name, field in extras.items()}
    rewards = fields["rewards"].rows(0, steps, np.float32).reshape(-1)
    attributes = _episode_attributes(file, group, split)
    return Episode(
        observations, actions.rows(0, steps, np.float32), rewards, terminated, truncated, columns, group, attributes
    )


def _vectors(fields: Mapping[str, Field], name: str, follows: bool) -> Array:
    """Rows of a vector and the one after the last, float32 [T + 1, width]."""
    now = fields[f"obs/{name}"].rows(dtype=np.float32).reshape(fields[f"obs/{name}"].shape[0], -1)
    if not follows:
        return now
    after = fields[f"next_obs/{name}"].rows(dtype=np.float32).reshape(len(now), -1)
    if after.shape != now.shape or not np.allclose(after[:-1], now[1:], SAME, SAME, equal_nan=True):
        raise DatasetError(
            f"{fields[f'next_obs/{name}'].where}: is not what 'obs/{name}' has in the row after; accepted: "
            "demonstrations whose steps follow one another"
        )
    return np.concatenate([now, after[-1:]])


def _episode_attributes(file: Hdf5, group: str, split: list[str]) -> dict[str, Any]:
    attributes = file.attributes(group)
    attributes |= _json(file.path, _JSON, attributes.pop(_JSON, "{}"))
    del attributes["num_samples"]
    chosen = {"split": split[0] if len(split) == 1 else split} if split else {}
    return attributes | {"demo": group.removeprefix("data/")} | chosen


def _json(path: Path, name: str, text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: attribute '{name}' is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: attribute '{name}' holds {type(value).__name__}; accepted: a dict")
    return value


def write(
    path: Path, episodes: Iterable[Episode], attributes: Mapping[str, Any], compression: str | None = None
) -> None:
    """Write a file that robomimic reads, and from which the same episodes come back.

    ``state`` is split into the ``state_parts`` of the attributes (widths by name, in order), or stands as
    ``obs/state``. Extras stand beside ``actions``; an episode's ``split``, one name or several, becomes ``mask/*``;
    other attributes of an episode stand at its group, numbers and text as they are. Without ``env_args`` among the
    attributes robomimic reads the file but can not build its environment.

    Args:
        path: which must not exist.
        episodes: at least one.
        attributes: of the whole.
        compression: of the cameras, as in h5py ("gzip"); none is what robomimic does.

    Raises:
        DatasetError: ``state_parts`` do not add up, or an episode is like ``check_episode`` refuses.
    """
    attributes = dict(attributes)
    parts = attributes.pop("state_parts", None)
    attributes.pop("filter_keys", None)
    masks: dict[str, list[str]] = {}
    total = 0
    with new_file(path) as file:
        data = file.create_group("data")
        for index, episode in enumerate(_demonstrations(checked(path, episodes))):
            demo = data.create_group(f"demo_{index}")
            _write_episode(demo, episode, _parts(path, episode, parts), compression)
            split = episode.attributes.get("split", [])
            for name in [split] if isinstance(split, str) else split:
                masks.setdefault(name, []).append(f"demo_{index}")
            total += len(episode)
        for name, members in masks.items():
            file[f"mask/{name}"] = np.array(members, "S")
        data.attrs["total"] = total
        env = {"env_name": attributes.pop("env", ""), "env_version": "", "type": 2, "env_kwargs": {}}
        data.attrs["env_args"] = json.dumps(attributes.pop("env_args", env))
        data.attrs[_JSON] = json.dumps(attributes)


def _demonstrations(episodes: Iterable[Episode]) -> Iterator[Episode]:
    """Episodes; those that are pieces of one demonstration, which say so and follow one another, as one."""
    pieces: list[Episode] = []
    for episode in episodes:
        demo = episode.attributes.get("demo")
        if pieces and (demo is None or demo != pieces[0].attributes.get("demo") or not continues(pieces[-1], episode)):
            yield joined(pieces)
            pieces = []
        pieces.append(episode)
    if pieces:
        yield joined(pieces)


def _parts(path: Path, episode: Episode, parts: Any) -> dict[str, slice]:
    """Where each part of ``state`` is; none without a state."""
    if "state" not in episode.observations:
        return {}
    width = episode.observations["state"].shape[1]
    widths = dict(parts) if isinstance(parts, Mapping) else {"state": width}
    if sum(widths.values()) != width or any(name in episode.observations and name != "state" for name in widths):
        raise DatasetError(f"{path}: 'state' has {width} values; the parts {widths} do not make it up")
    ends = np.cumsum(list(widths.values())).tolist()
    return {name: slice(end - size, end) for (name, size), end in zip(widths.items(), ends, strict=True)}


def _write_episode(demo: Any, episode: Episode, parts: Mapping[str, slice], compression: str | None) -> None:
    observations: dict[str, Array] = {}
    for name, value in episode.observations.items():
        if name == "state":
            observations |= {part: value[:, where] for part, where in parts.items()}
        else:
            observations[name] = value
    for name, value in observations.items():
        packed: dict[str, Any] = {}
        if value.ndim == 4:
            packed = {"compression": compression, "chunks": (chunk_rows(value), *value.shape[1:])}
            packed["chunks"] = (min(packed["chunks"][0], len(episode)), *value.shape[1:])
        demo.create_dataset(f"obs/{name}", data=value[:-1], **packed)
        demo.create_dataset(f"next_obs/{name}", data=value[1:], **packed)
    columns = {"actions": episode.actions, "rewards": episode.rewards, "dones": episode.terminated.astype(np.int64)}
    for name, value in (columns | {"truncated": episode.truncated} | episode.extras).items():
        demo.create_dataset(name, data=value)
    demo.attrs["num_samples"] = len(episode)
    rest: dict[str, Any] = {}
    for name, value in episode.attributes.items():
        if isinstance(value, (bool, int, float, str)) and name not in ("split", "demo", "num_samples", _JSON):
            demo.attrs[name] = value
        elif name not in ("split", "demo"):
            rest[name] = value
    if rest:
        demo.attrs[_JSON] = json.dumps(rest)
