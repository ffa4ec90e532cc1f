"""One transition as SERL and HIL-SERL write it: every field checked, the first problem or all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Transition = dict[str, Any]
"""``observations`` and ``next_observations`` (``state`` float32 [P] if there is one, cameras uint8 [H, W,
C]), ``actions`` float32 [A], ``rewards`` float32, ``terminated`` bool, ``truncated`` bool; where the file has them
``grasp_penalty`` float32 and ``labels`` int64."""

ACTION_TOLERANCE = 1e-6
PARTS = ("observations", "next_observations")
REQUIRED = ("observations", "actions", "next_observations", "rewards", "masks", "dones")


class Problem(Exception):
    """A field, and what is wrong with it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field

    def __str__(self) -> str:
        """As it stands in messages."""
        return f"field '{self.field}': {self.args[0]}"


@dataclass(frozen=True)
class Wanted:
    """What a transition must have, and what of it is kept.

    Attributes:
        image_keys: cameras; None for all that there are.
        state_keys: vectors that are joined to ``state``, in this order; None for ``state`` itself, where there is one.
        action_dim: width of the actions; None for any.
        bounded: whether actions must lie in [-1, 1]; what is beyond by rounding alone is clipped.
        extras: which of ``grasp_penalty`` (0 where it is missing) and ``labels`` are kept.
    """

    image_keys: Sequence[str] | None = None
    state_keys: Sequence[str] | None = None
    action_dim: int | None = None
    bounded: bool = True
    extras: Sequence[str] = ("grasp_penalty",)


def parse(raw: Any, wanted: Wanted) -> Transition:
    """The transition of a file's dict.

    A leading time axis of 1, as in the files of HIL-SERL, is dropped.

    Raises:
        Problem: the first one.
    """
    transition, problems = parse_all(raw, wanted)
    if problems:
        raise problems[0]
    return transition


def parse_all(raw: Any, wanted: Wanted) -> tuple[Transition, list[Problem]]:
    """The transition, of use only where there are no problems, and one problem for every field that has one."""
    problems: list[Problem] = []

    def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Problem as problem:
            problems.append(problem)
            return None

    attempt(_require_keys, raw)
    if problems:
        return {}, problems
    mask, done = attempt(_flag, raw["masks"], "masks"), attempt(_flag, raw["dones"], "dones")
    transition = {
        "observations": _observation(raw["observations"], "observations", wanted, attempt),
        "actions": attempt(_action, raw["actions"], wanted),
        "next_observations": _observation(raw["next_observations"], "next_observations", wanted, attempt),
        "rewards": attempt(_number, raw["rewards"], "rewards"),
        "terminated": not mask,
        "truncated": done and mask,
    }
    if "grasp_penalty" in wanted.extras:
        transition["grasp_penalty"] = attempt(_grasp_penalty, raw)
    if "labels" in wanted.extras:
        transition["labels"] = attempt(_label, raw)
    if not problems:
        attempt(_require_same_observations, transition)
    return transition, problems


def extras_of(raw: Any) -> set[str]:
    """Which of ``grasp_penalty`` and ``labels`` a file's dict has."""
    if not isinstance(raw, Mapping):
        return set()
    infos = raw.get("infos")
    found = {name for name in ("grasp_penalty", "labels") if name in raw}
    return found | ({"grasp_penalty"} if isinstance(infos, Mapping) and "grasp_penalty" in infos else set())


def different_shapes(
    given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], whose: str
) -> Problem | None:
    """The first field that is not there in both with one shape.

    Args:
        given: shapes of an item's fields by name.
        expected: those that it must have.
        whose: what to call the other one.
    """
    for field in {**expected, **given} if given != expected else ():
        if field not in given:
            return Problem(field, f"is missing; {whose} has it, with shape {expected[field]}")
        if field not in expected:
            return Problem(field, f"has shape {given[field]}; {whose} has no such field")
        if given[field] != expected[field]:
            return Problem(field, f"has shape {given[field]}; {whose} has {expected[field]}")
    return None


def shapes_of(transition: Transition) -> dict[str, tuple[int, ...]]:
    """Shapes of actions and observations by name."""
    shapes = {"actions": np.shape(transition["actions"])}
    for part in PARTS:
        for key, array in transition[part].items():
            shapes[f"{part}/{key}"] = np.shape(array)
    return shapes


def _require_keys(raw: Any) -> None:
    if not isinstance(raw, Mapping):
        raise Problem("", f"is a {type(raw).__name__}; accepted: a dict with {', '.join(REQUIRED)}")
    for key in REQUIRED:
        if key not in raw:
            raise Problem(key, f"is missing; the transition has {_names(raw)}")


def _observation(value: Any, name: str, wanted: Wanted, attempt: Callable[..., Any]) -> dict[str, Array]:
    if not isinstance(value, Mapping):
        value = {"state": value}
    observation: dict[str, Any] = {}
    if wanted.state_keys:
        observation["state"] = attempt(_joined, value, name, wanted.state_keys)
    elif wanted.state_keys is None and "state" in value:
        observation["state"] = attempt(_vector, value["state"], f"{name}/state")
    for key in _cameras(value, wanted) if wanted.image_keys is None else wanted.image_keys:
        observation[key] = attempt(_camera, value, name, key)
    if not observation:
        attempt(_nothing, value, name)
    return observation


def _cameras(value: Mapping[str, Any], wanted: Wanted) -> list[str]:
    """All that is not the state; beside named parts of a state other vectors are passed over."""
    if wanted.state_keys is None:
        return [key for key in value if key != "state"]
    return [key for key in value if key not in wanted.state_keys and np.ndim(value[key]) > 2]


def _camera(value: Mapping[str, Any], name: str, key: str) -> Array:
    if key not in value:
        raise Problem(f"{name}/{key}", f"is missing; the observation has {_names(value)}")
    return _image(value[key], f"{name}/{key}")


def _joined(value: Mapping[str, Any], name: str, keys: Sequence[str]) -> Array:
    for key in keys:
        if key not in value:
            raise Problem(f"{name}/{key}", f"is missing; the observation has {_names(value)}")
    return np.concatenate([_vector(value[key], f"{name}/{key}") for key in keys])


def _nothing(value: Mapping[str, Any], name: str) -> None:
    raise Problem(name, f"has no 'state' and no image_keys are asked for; the observation has {_names(value)}")


def _array(value: Any, field: str, kinds: str, accepted: str) -> Array:
    """A numeric array; ``kinds`` are NumPy's dtype kinds."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise Problem(field, f"is no array; accepted: {accepted}") from None
    if array.dtype.kind not in kinds:
        shown = type(value).__name__ if array.dtype.kind in "OUS" else str(array.dtype)
        raise Problem(field, f"is of type {shown}; accepted: {accepted}")
    return array


def _vector(value: Any, field: str) -> Array:
    accepted = "finite numbers of shape (n,) or (1, n)"
    array = _array(value, field, "fiu", accepted)
    if array.ndim == 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 1 or not array.size:
        raise Problem(field, f"has shape {array.shape}; accepted: {accepted}")
    vector = array if array.dtype == np.float32 else _as_float32(array)
    if not np.isfinite(vector).all():
        worst = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise Problem(field, f"is {array[worst]} at index {worst}; accepted: {accepted}")
    return vector


def _action(value: Any, wanted: Wanted) -> Array:
    action = _vector(value, "actions")
    if wanted.action_dim is not None and len(action) != wanted.action_dim:
        raise Problem("actions", f"has {len(action)} values; accepted: {wanted.action_dim}")
    if not wanted.bounded:
        return action
    outside = np.abs(action) > np.float32(1 + ACTION_TOLERANCE)
    if outside.any():
        worst = int(np.flatnonzero(outside)[0])
        raise Problem("actions", f"is {action[worst]:g} at index {worst}; accepted: values in [-1, 1]")
    return np.clip(action, -1.0, 1.0)


def _image(value: Any, field: str) -> Array:
    accepted = "uint8 of shape (height, width, channels) or (1, height, width, channels)"
    array = _array(value, field, "fiub", accepted)
    if array.dtype != np.uint8:
        raise Problem(field, f"has dtype {array.dtype}; accepted: {accepted}")
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or not array.size:
        raise Problem(field, f"has shape {array.shape}; accepted: {accepted}")
    if array.shape[2] not in (1, 3, 4):
        order = "; the channels come last" if array.shape[0] in (1, 3, 4) else ""
        raise Problem(field, f"has shape {array.shape}; accepted: {accepted} with 1, 3 or 4 channels{order}")
    return np.ascontiguousarray(array)


def _as_float32(array: Array) -> Array:
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _number(value: Any, field: str) -> np.float32:
    if type(value) in (bool, int, float) and abs(value) < 1e38:
        return np.float32(value)
    accepted = "one finite number"
    array = _array(value, field, "fiub", accepted)
    if array.size != 1:
        raise Problem(field, f"has shape {array.shape}; accepted: {accepted}")
    number = _as_float32(array).reshape(())[()]
    if not np.isfinite(number):
        raise Problem(field, f"is {array.reshape(())}; accepted: {accepted}")
    return np.float32(number)


def _flag(value: Any, field: str) -> bool:
    number = _number(value, field)
    if number not in (0, 1):
        raise Problem(field, f"is {number:g}; accepted: 0 or 1")
    return bool(number)


def _label(raw: Mapping[str, Any]) -> np.int64:
    if "labels" not in raw:
        raise Problem("labels", f"is missing, and others have it; the transition has {_names(raw)}")
    number = _number(raw["labels"], "labels")
    if number != int(number):
        raise Problem("labels", f"is {number:g}; accepted: a whole number")
    return np.int64(number)


def _grasp_penalty(raw: Mapping[str, Any]) -> np.float32:
    if "grasp_penalty" in raw:
        return _number(raw["grasp_penalty"], "grasp_penalty")
    infos = raw.get("infos")
    if isinstance(infos, Mapping) and "grasp_penalty" in infos:
        return _number(infos["grasp_penalty"], "infos/grasp_penalty")
    return np.float32(0.0)


def _require_same_observations(transition: Transition) -> None:
    """``observations`` and ``next_observations`` must hold the same fields."""
    before, after = ({key: array.shape for key, array in transition[part].items()} for part in PARTS)
    for key in {**before, **after} if before != after else ():
        now, following = before.get(key), after.get(key)
        if now != following:
            raise Problem(f"next_observations/{key}", f"has shape {following}; in observations it has {now}")


def _names(mapping: Mapping[Any, Any]) -> str:
    return ", ".join(repr(key) for key in mapping) or "nothing"
