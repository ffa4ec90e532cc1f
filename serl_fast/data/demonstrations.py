"""Demonstration files of SERL and HIL-SERL: read safely, checked field by field, written atomically."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serl_fast import safe_pickle

Array = npt.NDArray[Any]
Transition = dict[str, Any]
"""``observations`` and ``next_observations`` (``state`` float32 [P] if there is one, cameras uint8 [H, W,
C]), ``actions`` float32 [A], ``rewards`` float32, ``terminated`` bool, ``truncated`` bool, ``grasp_penalty``
float32."""

ACTION_TOLERANCE = 1e-6
REQUIRED = ("observations", "actions", "next_observations", "rewards", "masks", "dones")


class DemonstrationError(ValueError):
    """A demonstration file that can not be used; the message names file, transition and field."""


class Appends(Protocol):
    """What :func:`demonstrations_to_store` needs of a store."""

    def append(self, transition: Mapping[str, Any], /) -> Any:
        """Add one transition."""


class _Problem(Exception):
    """A field, and what is wrong with it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def load_demonstrations(
    paths: Sequence[str | Path] | str | Path,
    image_keys: Sequence[str] = (),
    action_dim: int | None = None,
    like: Transition | None = None,
) -> list[Transition]:
    """Read demonstration pickles: lists of transitions with the keys of SERL.

    Each transition is a dict of ``observations`` (a dict with ``state`` and cameras, or the state itself),
    ``actions``, ``next_observations``, ``rewards``, ``masks`` (1 - terminated) and ``dones``;
    ``grasp_penalty`` stands beside them or in ``infos``, and is 0 where there is none. A leading time axis of
    1, as in the files of HIL-SERL, is dropped. Cameras that are not in ``image_keys`` are left out.

    Args:
        paths: files of pickle protocol 2 to 5; one path or several.
        image_keys: cameras to keep.
        action_dim: width A that the actions must have; by default that of the first transition.
        like: a transition of the environment that the demonstrations are for; theirs must have its shapes.

    Returns:
        All transitions, in the order of the files. All or none: a problem anywhere returns nothing.

    Raises:
        DemonstrationError: a file is no safe pickle of such a list, or a field is missing, has another shape
            or dtype, is not finite or out of range.
        OSError: a file cannot be opened.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    transitions: list[Transition] = []
    reference, whose = like, "the environment"
    for path in paths:
        for index, raw in enumerate(_read(path)):
            where = f"{path}, transition {index}"
            try:
                transition = _parse(raw, image_keys, action_dim)
                if reference is not None:
                    _require_same_shapes(transition, reference, whose)
            except _Problem as problem:
                raise DemonstrationError(f"{where}, field '{problem.field}': {problem}") from None
            if reference is None:
                reference, whose = transition, where
            transitions.append(transition)
    return transitions


def save_demonstrations(path: str | Path, transitions: Iterable[Mapping[str, Any]]) -> None:
    """Write transitions as a demonstration pickle that SERL, HIL-SERL and :func:`load_demonstrations` read.

    The file appears complete or not at all: it is written under another name, flushed to disk and renamed.

    Args:
        path: the file; its folder must exist.
        transitions: with ``terminated`` and ``truncated``, or with ``masks`` and ``dones``. Of ``infos``
            numbers and strings are kept.

    Raises:
        DemonstrationError: a transition that :func:`load_demonstrations` would refuse.
    """
    path = Path(path)
    rows = []
    for index, transition in enumerate(transitions):
        row = _to_file(transition)
        try:
            _parse(row, _cameras(row), None)
        except _Problem as problem:
            raise DemonstrationError(f"transition {index}, field '{problem.field}': {problem}") from None
        rows.append(row)
    if not rows:
        raise DemonstrationError(f"{path}: there are no transitions to save")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            pickle.dump(rows, file, protocol=4)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def demonstrations_to_store(transitions: Iterable[Mapping[str, Any]], store: Appends) -> None:
    """Append transitions in order. Whether one continues the one before is for the store to find out.

    Args:
        transitions: as :func:`load_demonstrations` returns them.
        store: a :class:`serl_fast.replay.ReplayStore`, or anything with its ``append``.
    """
    for transition in transitions:
        store.append(transition)


def _read(path: str | Path) -> Sequence[Any]:
    try:
        content = safe_pickle.load(path)
    except ValueError as error:
        raise DemonstrationError(str(error)) from None
    if not isinstance(content, (list, tuple)):
        raise DemonstrationError(f"{path} holds a {type(content).__name__}; expected a list of transitions")
    if not content:
        raise DemonstrationError(f"{path} holds no transitions")
    return content


def _parse(raw: Any, image_keys: Sequence[str], action_dim: int | None) -> Transition:
    if not isinstance(raw, Mapping):
        raise _Problem("", f"is a {type(raw).__name__}; accepted: a dict with {', '.join(REQUIRED)}")
    for key in REQUIRED:
        if key not in raw:
            raise _Problem(key, f"is missing; the transition has {_names(raw)}")
    mask, done = _flag(raw["masks"], "masks"), _flag(raw["dones"], "dones")
    transition = {
        "observations": _observation(raw["observations"], "observations", image_keys),
        "actions": _action(raw["actions"], action_dim),
        "next_observations": _observation(raw["next_observations"], "next_observations", image_keys),
        "rewards": _number(raw["rewards"], "rewards"),
        "terminated": not mask,
        "truncated": done and mask,
        "grasp_penalty": _grasp_penalty(raw),
    }
    _require_same_observations(transition)
    return transition


def _observation(value: Any, name: str, image_keys: Sequence[str]) -> dict[str, Array]:
    if not isinstance(value, Mapping):
        value = {"state": value}
    observation: dict[str, Array] = {}
    if "state" in value:
        observation["state"] = _vector(value["state"], f"{name}/state")
    for key in image_keys:
        if key not in value:
            raise _Problem(f"{name}/{key}", f"is missing; the observation has {_names(value)}")
        observation[key] = _image(value[key], f"{name}/{key}")
    if not observation:
        raise _Problem(name, f"has no 'state' and no image_keys are asked for; the observation has {_names(value)}")
    return observation


def _array(value: Any, field: str, kinds: str, accepted: str) -> Array:
    """A numeric array; ``kinds`` are NumPy's dtype kinds."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise _Problem(field, f"is no array; accepted: {accepted}") from None
    if array.dtype.kind not in kinds:
        shown = type(value).__name__ if array.dtype.kind in "OUS" else str(array.dtype)
        raise _Problem(field, f"is of type {shown}; accepted: {accepted}")
    return array


def _vector(value: Any, field: str) -> Array:
    accepted = "finite numbers of shape (n,) or (1, n)"
    array = _array(value, field, "fiu", accepted)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 1 or not array.size:
        raise _Problem(field, f"has shape {array.shape}; accepted: {accepted}")
    with np.errstate(over="ignore"):
        vector = array.astype(np.float32)
    if not np.isfinite(vector).all():
        worst = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise _Problem(field, f"is {array[worst]} at index {worst}; accepted: {accepted}")
    return vector


def _action(value: Any, action_dim: int | None) -> Array:
    action = _vector(value, "actions")
    if action_dim is not None and len(action) != action_dim:
        raise _Problem("actions", f"has {len(action)} values; accepted: {action_dim}")
    outside = np.abs(action) > np.float32(1 + ACTION_TOLERANCE)
    if outside.any():
        worst = int(np.flatnonzero(outside)[0])
        raise _Problem("actions", f"is {action[worst]:g} at index {worst}; accepted: values in [-1, 1]")
    return np.clip(action, -1.0, 1.0)


def _image(value: Any, field: str) -> Array:
    accepted = "uint8 of shape (height, width, channels) or (1, height, width, channels)"
    array = _array(value, field, "fiub", accepted)
    if array.dtype != np.uint8:
        raise _Problem(field, f"has dtype {array.dtype}; accepted: {accepted}")
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or not array.size:
        raise _Problem(field, f"has shape {array.shape}; accepted: {accepted}")
    if array.shape[2] not in (1, 3, 4):
        order = "; the channels come last" if array.shape[0] in (1, 3, 4) else ""
        raise _Problem(field, f"has shape {array.shape}; accepted: {accepted} with 1, 3 or 4 channels{order}")
    return np.ascontiguousarray(array)


def _number(value: Any, field: str) -> np.float32:
    accepted = "one finite number"
    array = _array(value, field, "fiub", accepted)
    if array.size != 1:
        raise _Problem(field, f"has shape {array.shape}; accepted: {accepted}")
    with np.errstate(over="ignore"):
        number = array.astype(np.float32).reshape(())[()]
    if not np.isfinite(number):
        raise _Problem(field, f"is {array.reshape(())}; accepted: {accepted}")
    return np.float32(number)


def _flag(value: Any, field: str) -> bool:
    number = _number(value, field)
    if number not in (0, 1):
        raise _Problem(field, f"is {number:g}; accepted: 0 or 1")
    return bool(number)


def _grasp_penalty(raw: Mapping[str, Any]) -> np.float32:
    if "grasp_penalty" in raw:
        return _number(raw["grasp_penalty"], "grasp_penalty")
    infos = raw.get("infos")
    if isinstance(infos, Mapping) and "grasp_penalty" in infos:
        return _number(infos["grasp_penalty"], "infos/grasp_penalty")
    return np.float32(0.0)


def _require_same_shapes(transition: Transition, first: Transition, where: str) -> None:
    ours, theirs = _shapes(transition), _shapes(first)
    for field in {**theirs, **ours}:
        given, expected = ours.get(field), theirs.get(field)
        if given is None:
            raise _Problem(field, f"is missing; {where} has it, with shape {expected}")
        if expected is None:
            raise _Problem(field, f"has shape {given}; {where} has no such field")
        if given != expected:
            raise _Problem(field, f"has shape {given}; {where} has {expected}")


def _require_same_observations(transition: Transition) -> None:
    """``observations`` and ``next_observations`` must hold the same fields."""
    shapes = _shapes(transition)
    for key in {**transition["observations"], **transition["next_observations"]}:
        now, following = shapes.get(f"observations/{key}"), shapes.get(f"next_observations/{key}")
        if now != following:
            raise _Problem(f"next_observations/{key}", f"has shape {following}; in observations it has {now}")


def _shapes(transition: Transition) -> dict[str, tuple[int, ...]]:
    shapes = {"actions": transition["actions"].shape}
    for part in ("observations", "next_observations"):
        shapes |= {f"{part}/{key}": array.shape for key, array in transition[part].items()}
    return shapes


def _to_file(transition: Mapping[str, Any]) -> dict[str, Any]:
    """The transition under the keys of the file format."""
    row = dict(transition)
    if "terminated" in row:
        terminated, truncated = bool(row.pop("terminated")), bool(row.pop("truncated", False))
        row |= {"masks": 1.0 - terminated, "dones": terminated or truncated}
    infos = row.get("infos") or {}
    row["infos"] = {
        key: value for key, value in infos.items() if isinstance(value, (bool, int, float, str, np.number, np.bool_))
    }
    return row


def _cameras(row: Mapping[str, Any]) -> list[str]:
    observations = row.get("observations")
    return [key for key in observations if key != "state"] if isinstance(observations, Mapping) else []


def _names(mapping: Mapping[Any, Any]) -> str:
    return ", ".join(repr(key) for key in mapping) or "nothing"
