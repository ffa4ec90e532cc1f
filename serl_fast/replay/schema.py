"""What a store holds, and where each part of a transition goes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.replay.convert import to_stored
from serl_fast.replay.fields import (
    REQUIRED,
    Field,
    describe,
    example_leaves,
    extra_leaf,
    extra_leaves,
    observation_fields,
    require_extra_name,
    space_leaves,
    step_fields,
)

Array = npt.NDArray[Any]
Transition = Mapping[str, Any]
# Of an observation: None stands for an array, a dict has a structure for every key.
Structure = dict[str, Any] | None


class Schema:
    """The fields of a store: those of an observation, kept once per instant, and those of a step.

    Args:
        observations: one field named ``"observations"``, or fields named ``"observations/<key>[/<key>…]"``.
        steps: ``actions``, ``rewards``, ``terminated``, ``truncated`` and the extra fields.

        on_request: names of observation fields (or of dicts of them) that batches hold only where asked for,
            such as the camera of the reward classifier.

    Attributes:
        inputs: the columns of a transition: observations, next observations, steps.
    """

    def __init__(self, observations: Sequence[Field], steps: Sequence[Field], on_request: Collection[str] = ()) -> None:
        # In an order of their own, so that the order of the user's keys does not matter.
        self.observations = tuple(sorted(observations, key=lambda field: field.name))
        standard = ["actions", *REQUIRED]
        extras = sorted((field for field in steps if field.name not in standard), key=lambda field: field.name)
        for field in extras:
            require_extra_name(field.name)
        self.steps = (*(field for field in steps if field.name in standard), *extras)
        following = tuple(Field("next_" + f.name, f.dtype, f.shape, f.stack) for f in self.observations)
        self.inputs = (*self.observations, *following, *self.steps)
        self.on_request = frozenset(_on_request(self.observations, on_request))
        self._structure = _structure_of(self.observations)
        self._step_names = tuple(field.name for field in self.steps)
        self._known = {"observations", "next_observations", "infos", "masks", "dones", *self._step_names}

    @classmethod
    def from_example(
        cls, transition: Transition, frame_stack: int | Mapping[str, int] = 1, on_request: Collection[str] = ()
    ) -> Schema:
        """Take names, dtypes and shapes from one transition; see ``ReplayStore.from_example``."""
        leaves = example_leaves("observations", _get(transition, "observations"))
        (actions, *more) = example_leaves("actions", _get(transition, "actions"))
        if more or actions[0] != "actions":
            raise TypeError("field 'actions' is a mapping; only observations may be nested")
        observations = observation_fields(leaves, frame_stack)
        steps = step_fields(actions, extra_leaves(transition))
        schema = cls(observations, steps, on_request)
        schema.convert(schema.columns(transition))  # the rest of the example must fit as well
        return schema

    @classmethod
    def from_space(
        cls,
        observation_space: Any,
        action_space: Any,
        frame_stack: int | Mapping[str, int] = 1,
        extra: Mapping[str, Any] | None = None,
        on_request: Collection[str] = (),
    ) -> Schema:
        """Take names, dtypes and shapes from gymnasium spaces; see ``ReplayStore.from_space``."""
        observations = observation_fields(space_leaves("observations", observation_space), frame_stack)
        (actions, *more) = space_leaves("actions", action_space)
        if more or actions[0] != "actions":
            raise TypeError("the action space is a Dict; the store holds one array of actions")
        forms = ((name, form if isinstance(form, tuple) else (form, ())) for name, form in (extra or {}).items())
        steps = step_fields(actions, [extra_leaf(name, *form) for name, form in forms])
        return cls(observations, steps, on_request)

    def to_json(self) -> str:
        """The schema as text, from which ``from_json`` makes an equal one."""
        tables = {key: [asdict(f) for f in getattr(self, key)] for key in ("observations", "steps")}
        return json.dumps({**tables, "on_request": sorted(self.on_request)})

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read what ``to_json`` wrote; raises ValueError for anything else."""
        try:
            tables = json.loads(text)
            observations, steps = (
                [Field(f["name"], f["dtype"], tuple(f["shape"]), f["stack"]) for f in tables[key]]
                for key in ("observations", "steps")
            )
            return cls(observations, steps, tables["on_request"])
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
        if not isinstance(transition, Mapping):
            raise TypeError(f"a transition is a mapping with observations, …, not {type(transition).__name__}")
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

    def require_equal(self, other: Schema, whose: str) -> None:
        """Raise a ValueError that names the first field in which ``other``, that of ``whose``, differs."""
        mine, others = ({f.name: f for f in (*s.observations, *s.steps)} for s in (self, other))
        for name in [*mine, *others]:
            if mine.get(name) != others.get(name):
                has, wanted = (describe(fields.get(name)) for fields in (others, mine))
                raise ValueError(f"field '{name}' of {whose} is {has}; here it is {wanted}")

    def _unknown(self, transition: Transition) -> str:
        name = sorted(map(str, transition.keys() - self._known))[0]
        hint = "; discounts are derived when sampling" if name == "discounts" else ""
        return f"field '{name}' is unknown; the store holds {_names(self.inputs)}{hint}"

    def __eq__(self, other: object) -> bool:
        """Whether both have the same fields."""
        return isinstance(other, Schema) and self.inputs == other.inputs and self.on_request == other.on_request

    def __hash__(self) -> int:
        """Equal schemas have equal hashes."""
        return hash(self.inputs)

    def __repr__(self) -> str:
        """The fields, one after the other."""
        fields = ", ".join(f"{field.name}: {describe(field)}" for field in (*self.observations, *self.steps))
        return f"Schema({fields})"


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


def _structure_of(observations: Sequence[Field]) -> Structure:
    root: dict[str, Any] = {}
    for field in observations:
        *parents, leaf = field.name.split("/")
        node = root
        for key in parents:
            node = node.setdefault(key, {})
            if node is None:
                raise ValueError(f"field '{field.name}' lies in another field; a field is an array or holds fields")
        if leaf in node:
            raise ValueError(f"field '{field.name}' is given twice, or holds other fields")
        node[leaf] = None
    if list(root) != ["observations"]:
        raise ValueError("a store needs observations, named 'observations' or 'observations/<key>'")
    structure: Structure = root["observations"]
    return structure


def _on_request(observations: Sequence[Field], names: Collection[str]) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"on_request is the text {names!r}; it is a sequence of names")
    found = []
    for name in names:
        full = name if name.startswith("observations/") else f"observations/{name}"
        matches = [f.name for f in observations if f.name == full or f.name.startswith(full + "/")]
        if not matches:
            raise ValueError(f"on_request names '{name}', which is no observation field")
        found += matches
    return found


def _ends(transition: Transition, rows: int | None) -> tuple[Any, Any]:
    """Terminated and truncated from SERL's masks (1 - terminated) and dones (over, either way)."""
    masks, dones = transition.get("masks"), transition.get("dones")
    shape = () if rows is None else (rows,)
    terminated: Any
    truncated: Any
    if dones is not None and not isinstance(dones, bool):
        dones = to_stored(dones, "dones", "bool", shape)
    if masks is None:
        terminated = dones
    elif rows is None and isinstance(masks, (int, float)) and masks in (0, 1):  # no array needed
        terminated = masks == 0
    else:
        masks = to_stored(masks, "masks", "float32", shape)
        wrong = masks[(masks != 0.0) & (masks != 1.0)]
        if wrong.size:
            raise ValueError(f"field 'masks' holds {wrong.flat[0]}; a mask is 0 (terminated) or 1")
        terminated = np.asarray(masks == 0.0)
    truncated = np.zeros(shape, bool) if dones is None else np.asarray(dones & ~np.asarray(terminated))
    for name, derived in (("terminated", terminated), ("truncated", truncated)):
        if name in transition and not np.array_equal(transition[name], derived):
            raise ValueError(f"field '{name}' contradicts masks and dones")
    return terminated, truncated


def _names(fields: Sequence[Field]) -> str:
    return ", ".join(field.name for field in fields)
