"""Fields, and how they are read off an example or a gymnasium space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.replay.convert import stored_dtype

Leaf = tuple[str, Any, tuple[int, ...]]  # name, dtype, shape

REQUIRED = {"rewards": "float32", "terminated": "bool", "truncated": "bool"}
# Whatever number the example holds there, be it an integer 0.
_FIXED_DTYPES = {**REQUIRED, "grasp_penalty": "float32"}
_STANDARD = {
    "observations",
    "next_observations",
    "actions",
    "infos",
    "masks",
    "dones",
    "discounts",
    *REQUIRED,
}
# What batches may hold besides.
_DERIVED = {"full_observations", "next_actions", "terminals", "valid", "ids", "weights", "sources"}


@dataclass(frozen=True)
class Field:
    """One field: its name (``"observations/front"``), dtype, shape of one frame, number of stacked frames."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stack: int = 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape in a transition: ``(stack, *shape)``, or ``shape`` for a field that is no stack."""
        return (self.stack, *self.shape) if self.stack > 1 else self.shape


def step_fields(actions: Leaf, extras: Sequence[Leaf]) -> list[Field]:
    """The fields of a step: actions, rewards, terminated, truncated, extras."""
    required = [Field(name, dtype, ()) for name, dtype in REQUIRED.items()]
    return [_field(*actions), *required, *(_field(*extra) for extra in extras)]


def observation_fields(leaves: Sequence[Leaf], frame_stack: int | Mapping[str, int]) -> list[Field]:
    """The fields of an observation, those that ``frame_stack`` names stored frame by frame.

    Raises:
        TypeError, ValueError: a dtype cannot be stored, or ``frame_stack`` does not fit the shapes.
    """
    asked = dict(frame_stack) if isinstance(frame_stack, Mapping) else None
    for number in [frame_stack] if asked is None else asked.values():
        if not isinstance(number, (int, np.integer)):
            raise TypeError(f"frame_stack holds {number!r}; it is a number of frames, or one for each key")
    fields = []
    for leaf in leaves:
        field = _field(*leaf)
        if asked is not None:
            stack = int(asked.pop(field.name.removeprefix("observations/"), 1))
        else:  # a number means every image
            is_image = field.dtype == "uint8" and len(field.shape) >= 3
            stack = int(frame_stack) if is_image else 1  # type: ignore[arg-type]
        if stack < 1:
            raise ValueError(f"frame_stack is {stack} for field '{field.name}'; it is at least 1")
        if stack > 1:
            field = _stacked(field, stack)
        fields.append(field)
    if asked:
        raise ValueError(f"frame_stack names '{next(iter(asked))}', which is no observation field")
    return fields


def example_leaves(name: str, tree: Any) -> list[Leaf]:
    """Name, dtype and shape of every array in an array or nested mapping."""
    if isinstance(tree, Mapping):
        children = ((_child_name(name, key), child) for key, child in tree.items())
        return [leaf for child_name, child in children for leaf in example_leaves(child_name, child)]
    array = np.asarray(tree)
    return [(name, array.dtype, array.shape)]


def space_leaves(name: str, space: Any) -> list[Leaf]:
    """Name, dtype and shape of every array in a gymnasium space, told by its attributes, not its class."""
    spaces, shape, dtype = (getattr(space, key, None) for key in ("spaces", "shape", "dtype"))
    if isinstance(spaces, Mapping):
        children = ((_child_name(name, key), child) for key, child in spaces.items())
        return [leaf for child_name, child in children for leaf in space_leaves(child_name, child)]
    if shape is None or dtype is None:
        kind = type(space).__name__
        raise TypeError(f"field '{name}': a {kind} space cannot be stored; use Box, Discrete or Dict")
    return [(name, dtype, tuple(shape))]


def extra_leaf(name: str, dtype: npt.DTypeLike, shape: Sequence[int]) -> Leaf:
    """An extra field of a step; raises ValueError for a name that means something else."""
    require_extra_name(name)
    return (name, dtype, tuple(shape))


def require_extra_name(name: str) -> None:
    """Raise an error unless ``name`` can be that of an extra field."""
    if not isinstance(name, str):
        raise TypeError(f"the key {name!r} cannot be an extra field; keys are text")
    if name in _STANDARD | _DERIVED or "/" in name or not name:
        raise ValueError(f"field '{name}' cannot be an extra field: the name means something else; choose another")


def extra_leaves(transition: Mapping[str, Any]) -> list[Leaf]:
    """The extra fields of an example: all that is not standard."""
    leaves = []
    for name in transition:
        if name in _STANDARD:
            continue
        if isinstance(transition[name], Mapping):
            raise TypeError(f"field '{name}' is a mapping; only observations may be nested")
        array = np.asarray(transition[name])
        leaves.append(extra_leaf(name, array.dtype, array.shape))
    return leaves


def describe(field: Field | None) -> str:
    """A field without its name, for messages: ``"uint8 (128, 128, 3) x 3 frames"``."""
    if field is None:
        return "missing"
    return f"{field.dtype} {field.shape}" + (f" x {field.stack} frames" if field.stack > 1 else "")


def _field(name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Field:
    stored = _FIXED_DTYPES.get(name) or stored_dtype(name, dtype)
    return Field(name, stored, tuple(int(length) for length in shape))


def _stacked(field: Field, stack: int) -> Field:
    if not field.shape or field.shape[0] != stack:
        raise ValueError(
            f"field '{field.name}' has shape {field.shape}; frame_stack {stack} needs a first axis of {stack}"
        )
    return Field(field.name, field.dtype, field.shape[1:], stack)


def _child_name(name: str, key: Any) -> str:
    if not isinstance(key, str) or "/" in key or not key:
        raise ValueError(f"field '{name}' has the key {key!r}; keys are text without '/'")
    return f"{name}/{key}"
