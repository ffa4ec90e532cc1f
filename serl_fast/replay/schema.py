"""What a store holds, and where each part of a transition goes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.replay.convert import stored_dtype, to_stored

Array = npt.NDArray[Any]
Transition = Mapping[str, Any]
Batch = dict[str, Any]
# Of an observation: None stands for an array, a dict has a structure for every key.
Structure = dict[str, Any] | None

_REQUIRED = {"rewards": "float32", "terminated": "bool", "truncated": "bool"}
# Whatever number the example holds there, be it an integer 0.
_FIXED_DTYPES = {**_REQUIRED, "grasp_penalty": "float32"}
_NOT_EXTRA = {"observations", "next_observations", "actions", "infos", "masks", "dones", "discounts", *_REQUIRED}


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


class Schema:
    """The fields of a store: those of an observation, kept once per instant, and those of a step.

    Args:
        observations: one field named ``"observations"``, or fields named ``"observations/<key>[/<key>…]"``.
        steps: ``actions``, ``rewards``, ``terminated``, ``truncated`` and the extra fields.

    Attributes:
        inputs: the columns of a transition: observations, next observations, steps.
        outputs: the columns of a batch: the inputs, ``masks`` and ``discounts``.
    """

    def __init__(self, observations: Sequence[Field], steps: Sequence[Field]) -> None:
        self.observations = tuple(observations)
        self.steps = tuple(steps)
        following = tuple(Field("next_" + f.name, f.dtype, f.shape, f.stack) for f in observations)
        self.inputs = (*self.observations, *following, *self.steps)
        self.outputs = (*self.inputs, Field("masks", "float32", ()), Field("discounts", "float32", ()))
        self._structure = _structure_of(self.observations)
        self._step_names = tuple(field.name for field in steps)
        self._known = {"observations", "next_observations", "infos", "masks", "dones", *self._step_names}

    @classmethod
    def from_example(cls, transition: Transition, frame_stack: int | Mapping[str, int] = 1) -> Schema:
        """Take names, dtypes and shapes from one transition; see ``ReplayStore.from_example``."""
        observations = _observation_fields(_leaves(_get(transition, "observations")), frame_stack)
        steps = [_array_field("actions", _get(transition, "actions"))]
        steps += [Field(name, dtype, ()) for name, dtype in _REQUIRED.items()]
        steps += [_array_field(name, transition[name]) for name in transition if name not in _NOT_EXTRA]
        schema = cls(observations, steps)
        schema.convert(schema.columns(transition))  # the rest of the example must fit as well
        return schema

    @classmethod
    def from_space(
        cls,
        observation_space: Any,
        action_space: Any,
        frame_stack: int | Mapping[str, int] = 1,
        extra: Mapping[str, Any] | None = None,
    ) -> Schema:
        """Take names, dtypes and shapes from gymnasium spaces; see ``ReplayStore.from_space``."""
        observations = _observation_fields(_space_leaves("observations", observation_space), frame_stack)
        steps = [_field(*leaf) for leaf in _space_leaves("actions", action_space)]
        if [field.name for field in steps] != ["actions"]:
            raise TypeError("the action space is a Dict; the store holds one array of actions")
        steps += [Field(name, dtype, ()) for name, dtype in _REQUIRED.items()]
        for name, form in (extra or {}).items():
            dtype, shape = form if isinstance(form, tuple) else (form, ())
            if name in _NOT_EXTRA or "/" in name:
                raise ValueError(f"field '{name}' cannot be an extra field; the name has a meaning of its own")
            steps.append(_field(name, dtype, tuple(shape)))
        return cls(observations, steps)

    def to_json(self) -> str:
        """The schema as text, from which ``from_json`` makes an equal one."""
        return json.dumps({key: [asdict(f) for f in getattr(self, key)] for key in ("observations", "steps")})

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read what ``to_json`` wrote; raises ValueError for anything else."""
        try:
            tables = json.loads(text)
            observations, steps = (
                [Field(f["name"], f["dtype"], tuple(f["shape"]), f["stack"]) for f in tables[key]]
                for key in ("observations", "steps")
            )
            return cls(observations, steps)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no schema of a replay store: {error!r}") from error

    def columns(self, transition: Transition, rows: int | None = None) -> list[Any]:
        """The parts of a transition in the order of ``inputs``, still as the user gave them.

        Args:
            transition: one transition, or with ``rows`` a dict of columns.
            rows: the length of the leading axis; None for one transition without such an axis.

        Returns:
            One value per field of ``inputs``; ``masks`` and ``dones`` have become terminated and truncated.

        Raises:
            TypeError, ValueError: a field is missing or unknown, or the ends of the episode are unclear.
        """
        values: list[Any] = []
        for key in ("observations", "next_observations"):
            _flatten(_get(transition, key), self._structure, key, values)
        if not transition.keys() <= self._known:
            raise ValueError(self._unknown(transition))
        explicit = "masks" not in transition and "dones" not in transition
        terminated, truncated = (None, None) if explicit else _ends(transition, rows)
        for name in self._step_names:
            if name == "terminated" and not explicit:
                values.append(terminated)
            elif name == "truncated" and not explicit:
                values.append(truncated)
            else:
                values.append(_get(transition, name))
        return values

    def convert(self, values: Sequence[Any], rows: int | None = None) -> list[Array]:
        """Bring values in the order of ``inputs`` to the stored dtypes and shapes; see ``to_stored``."""
        leading = () if rows is None else (rows,)
        return [
            to_stored(value, field.name, field.dtype, (*leading, *field.row_shape))
            for value, field in zip(values, self.inputs, strict=True)
        ]

    def empty_batch(self, batch_size: int) -> Batch:
        """Uninitialised arrays of the right names, shapes ``[B, …]`` and dtypes for ``batch_size`` rows."""
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}; it is at least 1")
        arrays = [np.empty((batch_size, *field.row_shape), field.dtype) for field in self.outputs]
        return self.batch(arrays)

    def batch(self, arrays: Sequence[Array]) -> Batch:
        """Name the columns: arrays in the order of ``outputs`` become a batch, nested like the observations."""
        parts = iter(arrays)
        batch = {key: _unflatten(self._structure, parts) for key in ("observations", "next_observations")}
        return {**batch, **{field.name: next(parts) for field in self.outputs[2 * len(self.observations) :]}}

    def batch_columns(self, batch: Batch) -> tuple[list[Array], int]:
        """The arrays of a batch in the order of ``outputs``, and its number of rows; raises ValueError."""
        values: list[Any] = []
        for key in ("observations", "next_observations"):
            _flatten(_get(batch, key), self._structure, key, values)
        names = [field.name for field in self.outputs[2 * len(self.observations) :]]
        values += [_get(batch, name) for name in names]
        if len(batch) != len(names) + 2:
            unknown = sorted(batch.keys() - {"observations", "next_observations", *names})
            raise ValueError(f"field '{unknown[0]}' is unknown; a batch holds {_names(self.outputs)}")
        for value, field in zip(values, self.outputs, strict=True):
            if not isinstance(value, np.ndarray) or value.ndim == 0:
                raise TypeError(f"field '{field.name}' must be a NumPy array with a leading batch axis")
            if len(value) != len(values[0]):
                raise ValueError(f"field '{field.name}' has {len(value)} rows; '{self.outputs[0].name}' has {len(values[0])}")
        return values, len(values[0])

    def require_equal(self, other: Schema, whose: str) -> None:
        """Raise a ValueError that names the first field in which ``other``, ``whose`` schema it is, differs."""
        if self == other:
            return
        mine, others = ({f.name: f for f in (*s.observations, *s.steps)} for s in (self, other))
        for name in [*mine, *others]:
            if mine.get(name) != others.get(name):
                has, wanted = (_describe(fields.get(name)) for fields in (others, mine))
                raise ValueError(f"field '{name}' of {whose} is {has}; here it is {wanted}")
        raise ValueError(f"the fields of {whose} have the order {_names(other.inputs)}, not {_names(self.inputs)}")

    def _unknown(self, transition: Transition) -> str:
        name = sorted(map(str, transition.keys() - self._known))[0]
        hint = "; discounts are derived when sampling" if name == "discounts" else ""
        return f"field '{name}' is unknown; the store holds {_names(self.inputs)}{hint}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and (self.observations, self.steps) == (other.observations, other.steps)

    def __hash__(self) -> int:
        return hash((self.observations, self.steps))

    def __repr__(self) -> str:
        return "Schema(" + ", ".join(f"{f.name}: {_describe(f)}" for f in (*self.observations, *self.steps)) + ")"


def _get(tree: Mapping[str, Any], key: str) -> Any:
    try:
        return tree[key]
    except KeyError:
        pass
    if key in ("terminated", "truncated"):
        raise ValueError(
            f"field '{key}' is missing; a transition has terminated and truncated, or masks and dones"
        ) from None
    raise ValueError(f"field '{key}' is missing") from None


def _flatten(tree: Any, structure: Structure, name: str, values: list[Any]) -> None:
    if structure is None:
        if isinstance(tree, Mapping):
            raise TypeError(f"field '{name}' is a mapping; the store holds an array")
        values.append(tree)
        return
    if not isinstance(tree, Mapping):
        keys = ", ".join(structure)
        raise TypeError(f"field '{name}' must be a mapping with the keys {keys}, not {type(tree).__name__}")
    for key, child in structure.items():
        if key not in tree:
            raise ValueError(f"field '{name}/{key}' is missing")
        if child is None and not isinstance(tree[key], Mapping):
            values.append(tree[key])
        else:
            _flatten(tree[key], child, f"{name}/{key}", values)
    if len(tree) != len(structure):
        unknown = sorted(map(str, tree.keys() - structure.keys()))[0]
        raise ValueError(f"field '{name}/{unknown}' is unknown; '{name}' has the keys {', '.join(structure)}")


def _unflatten(structure: Structure, parts: Any) -> Any:
    if structure is None:
        return next(parts)
    return {key: _unflatten(child, parts) for key, child in structure.items()}


def _structure_of(observations: Sequence[Field]) -> Structure:
    root: dict[str, Any] = {}
    for field in observations:
        *parents, leaf = field.name.split("/")
        node = root
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = None
    if list(root) != ["observations"]:
        raise ValueError("a store needs observations, named 'observations' or 'observations/<key>'")
    structure: Structure = root["observations"]
    return structure


def _ends(transition: Transition, rows: int | None) -> tuple[Array, Array]:
    """Terminated and truncated from SERL's masks (1 - terminated) and dones (the episode ended either way)."""
    shape = () if rows is None else (rows,)
    dones = masks = None
    if "dones" in transition:
        dones = to_stored(transition["dones"], "dones", "bool", shape)
    if "masks" in transition:
        masks = to_stored(transition["masks"], "masks", "float32", shape)
        if not np.isin(masks, (0.0, 1.0)).all():
            wrong = masks[~np.isin(masks, (0.0, 1.0))].flat[0]
            raise ValueError(f"field 'masks' holds {wrong}; a mask is 0 (terminated) or 1")
    if masks is not None:
        terminated = np.asarray(masks == 0.0)
    elif dones is not None:
        terminated = dones
    else:
        raise AssertionError("called without masks and dones")
    truncated = np.asarray(dones & ~terminated) if dones is not None else np.zeros(shape, bool)
    for name, derived in (("terminated", terminated), ("truncated", truncated)):
        if name in transition and not np.array_equal(transition[name], derived):
            raise ValueError(f"field '{name}' contradicts masks and dones")
    return terminated, truncated


def _leaves(tree: Any, name: str = "observations") -> list[tuple[str, Any, tuple[int, ...]]]:
    if not isinstance(tree, Mapping):
        array = np.asarray(tree)
        return [(name, array.dtype, array.shape)]
    leaves = []
    for key, child in tree.items():
        leaves += _leaves(child, _child_name(name, key))
    return leaves


def _space_leaves(name: str, space: Any) -> list[tuple[str, Any, tuple[int, ...]]]:
    # By what a space has, not by its class: gymnasium is not needed here.
    if isinstance(getattr(space, "spaces", None), Mapping):
        return [leaf for key, child in space.spaces.items() for leaf in _space_leaves(_child_name(name, key), child)]
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    if shape is None or dtype is None:
        raise TypeError(f"field '{name}': a {type(space).__name__} space cannot be stored; use Box, Discrete or Dict")
    return [(name, dtype, tuple(shape))]


def _child_name(name: str, key: Any) -> str:
    if not isinstance(key, str) or "/" in key or not key:
        raise ValueError(f"field '{name}' has the key {key!r}; keys are text without '/'")
    return f"{name}/{key}"


def _field(name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Field:
    return Field(name, _FIXED_DTYPES.get(name) or stored_dtype(name, dtype), tuple(int(n) for n in shape))


def _array_field(name: str, value: Any) -> Field:
    if isinstance(value, Mapping):
        raise TypeError(f"field '{name}' is a mapping; only observations may be nested")
    array = np.asarray(value)
    return _field(_child_name("", name)[1:], array.dtype, array.shape)


def _observation_fields(
    leaves: Sequence[tuple[str, Any, tuple[int, ...]]], frame_stack: int | Mapping[str, int]
) -> list[Field]:
    asked = dict(frame_stack) if isinstance(frame_stack, Mapping) else None
    fields = []
    for name, dtype, shape in leaves:
        field = _field(name, dtype, shape)
        if asked is not None:
            stack = asked.pop(name.removeprefix("observations/"), 1)
        else:  # a number means every image
            stack = frame_stack if field.dtype == "uint8" and len(shape) >= 3 else 1  # type: ignore[assignment]
        if stack < 1:
            raise ValueError(f"frame_stack is {stack} for field '{name}'; it is at least 1")
        if stack > 1:
            if not shape or shape[0] != stack:
                raise ValueError(f"field '{name}' has shape {shape}; frame_stack {stack} needs ({stack}, …)")
            field = Field(name, field.dtype, field.shape[1:], stack)
        fields.append(field)
    if asked:
        raise ValueError(f"frame_stack names '{next(iter(asked))}', which is no observation field")
    return fields


def _describe(field: Field | None) -> str:
    if field is None:
        return "missing"
    return f"{field.dtype} {field.shape}" + (f" x {field.stack} frames" if field.stack > 1 else "")


def _names(fields: Sequence[Field]) -> str:
    return ", ".join(field.name for field in fields)
