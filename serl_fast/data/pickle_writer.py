"""Pickled lists of transitions, written element by element: complete or not at all, and read by any NumPy."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, BinaryIO

PROTOCOL = 3
"""The last one that numbers shared values explicitly: elements that were pickled apart can stand in one list."""

_NEW, _OLD = b"numpy._core.", b"numpy.core."


class ListWriter:
    """A pickled list that grows by one element at a time; values that elements share are written once.

    ``pickle.load`` gives the list. NumPy 2 writes the name of a module that NumPy 1 does not have; the older name,
    which both have, is put in its place.

    Args:
        file: open for writing in binary.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._buffer = file, io.BytesIO()
        self._pickler = pickle.Pickler(self._buffer, PROTOCOL)
        self._file.write(pickle.PROTO + bytes([PROTOCOL]) + pickle.EMPTY_LIST)

    def add(self, element: Any) -> None:
        """Append an element."""
        self._buffer.seek(0)
        self._buffer.truncate()
        self._pickler.dump(element)
        self._file.write(_for_any_numpy(self._buffer.getvalue()[2:-1]))  # without PROTO and STOP
        self._file.write(pickle.APPEND)

    def forget(self) -> None:
        """Let go of the elements so far: later ones share nothing with them."""
        self._pickler.clear_memo()

    def end(self) -> None:
        """Nothing follows."""
        self._file.write(pickle.STOP)


def _for_any_numpy(body: bytes) -> bytes:
    if _NEW not in body:
        return body
    parts, done = [], 0
    for opcode, argument, position in pickletools.genops(body + pickle.STOP):
        if opcode.name == "GLOBAL" and str(argument).encode().startswith(_NEW):
            assert position is not None
            parts += [body[done : position + 1], _OLD]
            done = position + 1 + len(_NEW)
    return b"".join([*parts, body[done:]])
