"""From what users have (lists, float64, big-endian, Fortran order) to what the store holds, without loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_ACCEPTED = {"f": "fiub", "i": "iub", "u": "iub", "b": "biu"}


def stored_dtype(name: str, dtype: npt.DTypeLike) -> str:
    """Name the dtype in which the store keeps numbers of another dtype.

    float16, float32 and float64 are kept as float32; integers as the first of uint8, int32 and int64 that
    holds all their values; bool as bool.

    Args:
        name: the field, for the message.
        dtype: what the user's numbers are.

    Returns:
        ``"uint8"``, ``"int32"``, ``"int64"``, ``"float32"`` or ``"bool"``.

    Raises:
        TypeError: none of these holds such numbers.
    """
    given = np.dtype(dtype)
    if given.kind == "f":
        return "float32"
    if given.kind == "b":
        return "bool"
    for candidate in ("uint8", "int32", "int64"):
        if given.kind in "iu" and np.can_cast(given, candidate):
            return candidate
    raise TypeError(
        f"field '{name}' has dtype {given}, which cannot be stored; use uint8, int32, int64, float32 or bool"
    )


def to_stored(value: Any, name: str, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Bring a value to a field's dtype and shape, in C order and native byte order.

    Args:
        value: an array, a number or nested sequences of numbers.
        name: the field, for the messages.
        dtype: the field's dtype.
        shape: the shape that the value must have.

    Returns:
        The value itself where it already has the layout, otherwise a copy.

    Raises:
        TypeError: numbers of another kind (a float for an integer field, text, objects).
        ValueError: another shape, or a number that the dtype cannot hold.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # the latter two of a tensor that NumPy cannot read
        raise ValueError(f"field '{name}' is no array: {error}") from error
    wanted = np.dtype(dtype)
    if array.dtype.kind not in _ACCEPTED[wanted.kind]:
        raise TypeError(f"field '{name}' has dtype {array.dtype}; the store holds {wanted}")
    if array.shape != shape:
        raise ValueError(f"field '{name}' has shape {array.shape}; the store holds {shape}")
    if array.dtype != wanted:
        array = _cast(array, name, wanted)
    return np.asarray(array, order="C")


def _cast(array: npt.NDArray[Any], name: str, wanted: np.dtype[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(wanted)
        if array.dtype.kind == "f":  # rounding is accepted, overflow is not
            lost = np.isinf(cast) & np.isfinite(array)
        else:
            lost = cast.astype(array.dtype) != array
            # A value beyond the range can come back by wrapping around: its sign shows it.
            lost |= (cast < 0) != (array < 0)
    if lost.any():
        raise ValueError(f"field '{name}' holds {array[lost].flat[0]}, which {wanted} cannot hold")
    return cast
