"""The state of a store as a flat dict of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from serl_fast.replay.schema import Array, Schema

FORMAT = 1
_NUMBERS = ("capacity", "seed", "draws", "appended")


def pack(
    schema: Schema, numbers: Mapping[str, int], continues: Array, records: list[Array], steps: list[Array]
) -> dict[str, Array]:
    """Name the parts of a state.

    Args:
        schema: of the store.
        numbers: ``capacity``, ``seed``, ``draws`` and ``appended``.
        continues: [N] bool, whether each step follows the one before it; oldest step first.
        records: per observation field ``[R, …]``, the frames in the order of time.
        steps: per step field ``[N, …]``.

    Returns:
        A dict of arrays that ``unpack`` takes.
    """
    state: dict[str, Array] = {"format": np.array(FORMAT), "schema": np.array(schema.to_json())}
    state.update({key: np.array(numbers[key], np.uint64) for key in _NUMBERS})
    state["continues"] = continues
    for field, column in zip(schema.observations, records, strict=True):
        state[f"records/{field.name}"] = column
    for field, column in zip(schema.steps, steps, strict=True):
        state[f"steps/{field.name}"] = column
    return state


def unpack(schema: Schema, state: Mapping[str, Any]) -> tuple[dict[str, int], Array, list[Array], list[Array]]:
    """Undo ``pack``: numbers, continues, records and steps of a state whose schema is ``schema``.

    Raises:
        ValueError: a part is missing, the format is unknown or the schema another one.
    """
    require_format(state)
    schema.require_equal(schema_of(state), "the state")
    numbers = {key: int(_part(state, key)) for key in _NUMBERS}
    records = [np.asarray(_part(state, f"records/{field.name}"), order="C") for field in schema.observations]
    steps = [np.asarray(_part(state, f"steps/{field.name}"), order="C") for field in schema.steps]
    return numbers, np.asarray(_part(state, "continues"), order="C"), records, steps


def schema_of(state: Mapping[str, Any]) -> Schema:
    """The schema of a state; raises ValueError."""
    return Schema.from_json(str(_part(state, "schema")))


def require_format(state: Mapping[str, Any]) -> None:
    """Raise a ValueError unless this version of the package can read the state."""
    version = int(_part(state, "format"))
    if version != FORMAT:
        raise ValueError(f"the state has format {version}; this version of serl_fast reads format {FORMAT}")


def _part(state: Mapping[str, Any], key: str) -> Any:
    try:
        return state[key]
    except KeyError:
        raise ValueError(f"the state has no part '{key}'") from None
