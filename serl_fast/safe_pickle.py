"""Reads pickles of NumPy arrays and plain containers without running anything that the file asks for.

Python's own unpickler imports and calls whatever a file names. Here the file is first walked opcode by opcode
(so that no claimed size is believed), then unpickled with a table of stand-ins for the few globals that NumPy
arrays need: no foreign function is ever looked up, and even NumPy's own reconstruction code never sees the
file's values unchecked.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MAX_DEPTH = 64
"""Deepest nesting of containers that is read."""

_DTYPE = re.compile(r"(\?|[biufc]\d{1,2}|[SU]\d{1,9})\Z")  # no objects, no structures, no dates
_PLAIN = (str, bytes, int, float, complex, bool, type(None), np.generic)

# Opcodes of protocols 2 to 5 that data can contain. Absent: text opcodes of protocol 0, persistent ids,
# the extension registry and out-of-band buffers.
_OPCODE_NAMES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4
    BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
    SHORT_BINSTRING BINSTRING EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET BINGET LONG_BINGET BINPUT LONG_BINPUT
    MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ NEWOBJ_EX
    """
_OPCODES = frozenset(_OPCODE_NAMES.split())
_HARMLESS = _OPCODES - {"STOP", "LONG_BINPUT"}
"""Of those that have an argument of a fixed length: there is nothing to look at but that length."""


class _Refused(ValueError):
    """A message that is complete except for the file's name."""


def load(path: str | Path) -> Any:
    """Read a pickle file of NumPy arrays, numbers, strings and plain containers.

    Args:
        path: file of pickle protocol 2 to 5, written with NumPy 1 or 2.

    Returns:
        What was pickled; ``OrderedDict`` comes back as ``dict``, arrays are writable copies.

    Raises:
        ValueError: the file is truncated, no such pickle, or names anything but NumPy arrays and plain
            containers; the message names the file and what was refused.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        if file.seek(0, io.SEEK_END) == 0:
            raise ValueError(f"{path} is empty; expected a pickle")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return loads(data, str(path))


def loads(data: bytes | mmap.mmap, name: str = "the pickle") -> Any:
    """:func:`load` from memory; ``name`` stands for the file in messages."""
    try:
        _scan(data)
        stream = data if isinstance(data, mmap.mmap) else io.BytesIO(data)
        return _finish(_Unpickler(stream, encoding="latin1").load(), {}, 0)
    except _Refused as refused:
        raise ValueError(f"{name}: {refused}") from None
    except (Exception, MemoryError) as error:
        raise ValueError(f"{name} is not a readable pickle: {type(error).__name__}: {error}") from None


def _opcode_table() -> list[tuple[str, int] | None]:
    """For each byte: the opcode's name and its argument's length (negative: see :mod:`pickletools`)."""
    table: list[tuple[str, int] | None] = [None] * 256
    for opcode in pickletools.opcodes:
        if opcode.name in _OPCODES:
            table[ord(opcode.code)] = (opcode.name, opcode.arg.n if opcode.arg else 0)
    return table


_TABLE = _opcode_table()
_COUNT_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def _scan(data: bytes | mmap.mmap) -> None:
    """Walk the opcodes: known ones only, every claimed length inside the file, memo indices no larger than
    needed.

    The unpickler allocates what an opcode claims before it reads, so claims are checked first.
    """
    size = len(data)
    if data[:1] != b"\x80":
        raise _Refused("this is no pickle of protocol 2 to 5")
    position = opcodes = 0
    while position < size:
        entry = _TABLE[data[position]]
        if entry is None:
            raise _Refused(f"byte {position} ({data[position]:#04x}) is no opcode that array data needs")
        name, length = entry
        start = position + 1
        opcodes += 1
        if length >= 0:
            position = start + length
            if name in _HARMLESS and position <= size:
                continue  # most of them
        elif length == pickletools.UP_TO_NEWLINE:  # GLOBAL: module and name, one line each
            module_end = data.find(b"\n", start)
            name_end = data.find(b"\n", module_end + 1)
            position = size + 1 if min(module_end, name_end) < 0 else name_end + 1
        else:
            width = _COUNT_BYTES[length]
            position = start + width + int.from_bytes(data[start : start + width], "little")
        if position > size:
            raise _Refused(f"the file is truncated: {name} at byte {start - 1} reaches past its end ({size} bytes)")
        if name == "STOP":
            if position != size:
                raise _Refused(f"{size - position} bytes follow the end of the pickle")
            return
        # The memo is a table as long as its largest index.
        if name == "LONG_BINPUT" and int.from_bytes(data[start:position], "little") > opcodes:
            raise _Refused(f"memo index at byte {start - 1} is larger than the number of values")
    raise _Refused("the file is truncated: it ends without a STOP opcode")


class _Dtype:
    """Stands in for ``numpy.dtype`` while unpickling; holds simple numeric and string types only."""

    __slots__ = ("value",)

    def __init__(self, code: Any) -> None:
        code = code.decode("latin1") if isinstance(code, bytes) else code
        code = "?" if code == "b1" else code  # NumPy writes bool as b1; as a type code that would be a byte
        if not isinstance(code, str) or not _DTYPE.match(code):
            raise _Refused(f"arrays of dtype {code!r:.40} are refused; only numbers, booleans and strings are read")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise _Refused("a structured dtype is refused; only numbers, booleans and strings are read")
        self.value = self.value.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """Stands in for ``numpy.ndarray`` while unpickling."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.fill(raw, dtype, shape, "F" if is_fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: str) -> None:
        """Take the bytes of an array of this shape; they must be exactly as many as it needs."""
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # written by Python 2
        if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray)) or order not in ("C", "F"):
            raise _Refused("an array without a plain dtype and plain bytes is refused")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
            raise _Refused(f"array shape {shape!r:.80} is no tuple of sizes")
        needed = math.prod(shape) * dtype.value.itemsize
        if needed != len(raw):
            raise _Refused(f"an array of shape {shape!r:.80} needs {needed} bytes but has {len(raw)}")
        array = np.ndarray(shape, dtype.value, bytes(raw), order=order)  # type: ignore[arg-type]
        self.value = np.array(array, order="K")


class _Global:
    """A callable that a pickle may name. It has nothing to overwrite and takes no state."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("state for a global is refused")


def _make_dtype(code: Any, *_flags: Any) -> _Dtype:
    return _Dtype(code)


def _reconstruct(kind: Any, _shape: Any, _code: Any) -> _Array:
    if kind is not _NDARRAY:
        raise _Refused("an array of a subclass is refused")
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> _Array:
    array = _Array()
    if order == "K":  # NumPy 2.3 and later: ``shape`` is the one in memory, then the axes are permuted
        array.fill(raw, dtype, shape, "C")
        assert array.value is not None
        array.value = array.value.transpose(axis_order)
    else:
        array.fill(raw, dtype, shape, order)
    return array


def _scalar(dtype: Any, raw: Any) -> Any:
    array = _Array()
    array.fill(raw, dtype, (1,), "C")
    assert array.value is not None
    return array.value[0]


def _encode(text: Any, encoding: Any) -> bytes:
    """Protocol 2 writes bytes as text in latin-1."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("_codecs.encode with another encoding than latin1 is refused")
    return text.encode("latin1")


def _bytes(*args: Any) -> bytes:
    """Protocol 2 writes empty bytes as a call without arguments. ``bytes(n)`` would allocate n."""
    if args:
        raise _Refused("bytes with arguments are refused")
    return b""


def _from_list(kind: type) -> Callable[..., Any]:
    def build(*args: Any) -> Any:
        if len(args) > 1 or not all(isinstance(arg, (list, tuple, bytes)) for arg in args):
            raise _Refused(f"{kind.__name__} of anything but one list is refused")
        return kind(*args)

    return build


def _number(kind: type) -> Callable[..., Any]:
    def build(*args: Any) -> Any:
        if not all(isinstance(arg, (int, float)) for arg in args):
            raise _Refused(f"{kind.__name__} of anything but numbers is refused")
        return kind(*args)

    return build


_NDARRAY = _Global(_Array)
_GLOBALS: dict[tuple[str, str], _Global] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Global(_make_dtype),
    ("collections", "OrderedDict"): _Global(lambda *pairs: dict(*pairs)),
    ("_codecs", "encode"): _Global(_encode),
}
for _core in ("numpy.core", "numpy._core"):
    _GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _Global(_reconstruct)
    _GLOBALS[f"{_core}.multiarray", "scalar"] = _Global(_scalar)
    _GLOBALS[f"{_core}.numeric", "_frombuffer"] = _Global(_frombuffer)
for _builtins in ("builtins", "__builtin__"):
    _GLOBALS[_builtins, "bytes"] = _Global(_bytes)
    _GLOBALS[_builtins, "bytearray"] = _Global(_from_list(bytearray))
    _GLOBALS[_builtins, "complex"] = _Global(_number(complex))
    _GLOBALS[_builtins, "set"] = _Global(_from_list(set))
    _GLOBALS[_builtins, "frozenset"] = _Global(_from_list(frozenset))


class _Unpickler(pickle.Unpickler):
    """Knows the stand-ins and nothing else."""

    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            message = f"refused the global '{module}.{name}'"[:200]
            raise _Refused(f"{message}; only NumPy arrays, numbers and plain containers are read") from None


def _finish(value: Any, done: dict[int, tuple[Any, Any]], depth: int) -> Any:
    """Replace the stand-ins by arrays, through all containers; each object once, so shared parts stay shared.

    ``done`` maps an id to (the object, what it became); holding the object keeps its id from being used
    again.
    """
    if type(value) is _Array:
        if value.value is None:
            raise _Refused("an array without data is refused")
        return value.value
    if type(value) is _Dtype:
        return value.value
    if isinstance(value, _PLAIN):
        return value
    if id(value) in done:
        if done[id(value)][1] is _OPEN:
            raise _Refused("a container that holds itself is refused")
        return done[id(value)][1]
    if depth > MAX_DEPTH:
        raise _Refused(f"containers nested more than {MAX_DEPTH} deep are refused")
    done[id(value)] = (value, _OPEN)
    finished: Any = value
    if type(value) is dict:
        for key in value:
            if type(key) is not str:  # as most are
                _require_plain(key)
        for key, item in value.items():
            value[key] = _finish(item, done, depth + 1)
    elif type(value) is list:
        for index, item in enumerate(value):
            value[index] = _finish(item, done, depth + 1)
    elif type(value) is tuple:
        finished = tuple(_finish(item, done, depth + 1) for item in value)
    elif type(value) in (set, frozenset):
        for item in value:
            _require_plain(item)
    elif type(value) is not bytearray:
        raise _Refused(f"a value of type {type(value).__name__} is refused")
    done[id(value)] = (value, finished)
    return finished


def _require_plain(key: Any) -> None:
    for part in key if type(key) is tuple else (key,):
        if not isinstance(part, _PLAIN):
            raise _Refused(f"a key or set element of type {type(part).__name__} is refused")


_OPEN = object()
