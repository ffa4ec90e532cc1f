"""How fast this machine copies random rows: the limit that a replay store of images can reach."""

from __future__ import annotations

import ctypes
import functools
import mmap
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROW_BYTES = 128 * 128 * 3
PASSES = 4  # in one call, so that starting threads is not what is measured
BATCHES = 16  # of states in one call, for the same reason
DRAWN = 1 << 18  # rows drawn beforehand


def row_gathers(rows: int, stored: int, threads: tuple[int, ...]) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Threads and functions that copy ``rows`` random rows out of ``stored``, ``PASSES`` times, by name.

    NumPy's always; those of row_gather.cpp where there is a C++ compiler.
    """
    source, out = huge_pages(stored), huge_pages(rows)
    source[:], out[:] = 1, 0
    indices = np.random.default_rng(0).integers(0, stored, rows)

    def numpy_take() -> None:
        for _ in range(PASSES):
            np.take(source, indices, axis=0, out=out, mode="clip")

    functions: dict[str, tuple[int, Callable[[], Any]]] = {"NumPy take(out=)": (1, numpy_take)}
    library = compiled()
    if library is None:
        return functions
    size, pointer = ctypes.c_size_t, lambda array: ctypes.c_void_p(array.ctypes.data)

    def native(count: int, streaming: int) -> Callable[[], None]:
        def copy() -> None:
            library.gather(
                pointer(source), size(ROW_BYTES), size(ROW_BYTES), pointer(indices), size(rows), pointer(out), count,
                streaming, PASSES,
            )  # fmt: skip

        return copy

    kinds = {"memcpy": 0} | ({"AVX2, non-temporal stores": 1} if library.has_avx2() else {})
    for kind, streaming in kinds.items():
        for count in threads:
            functions[f"{kind}, {count} thread{'s' * (count > 1)}"] = count, native(count, streaming)
    return functions


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """row_gather.cpp as a library; None without a compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "row_gather.so"
        flags = ["-O3", "-march=native", "-std=c++20", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def huge_pages(rows: int) -> np.ndarray:
    """Memory for rows, [rows, ROW_BYTES], on huge pages where the system has them."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, rows * ROW_BYTES, **private)  # shared memory, the default, gets no huge pages
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8).reshape(rows, ROW_BYTES)


class RowGather:
    """Random rows of any length copied out of a store of them: what a replay store of states can reach.

    The C++ function where there is a compiler, else NumPy's indexing. A call copies :data:`BATCHES` batches, so that
    neither starting threads nor the call from Python is what is measured, and every call copies other rows, so that
    they are not in the caches already. ``benchmarks.measure`` measures it in turns with the stores.

    Args:
        row_bytes: of one row.
        stride: bytes between the beginnings of two neighbours; less than ``row_bytes`` where they share some.
        rows: of a batch.
        stored: rows to choose from.
        threads: counts of threads of the C++ function; the fastest is kept in ``threads``.
    """

    def __init__(self, row_bytes: int, stride: int, rows: int, stored: int, threads: Sequence[int] = (1,)) -> None:
        self._stride = stride
        self._source = np.ones(stored * stride + row_bytes, np.uint8)
        self._rows = np.lib.stride_tricks.as_strided(self._source, (stored, row_bytes), (stride, 1))
        self._out = np.zeros((BATCHES * rows, row_bytes), np.uint8)
        turns = max(2, DRAWN // (BATCHES * rows))
        self._indices = np.random.default_rng(0).integers(0, stored, (turns, BATCHES * rows))
        self._turn = 0
        self._library = compiled()
        self.threads = threads[0] if len(threads) == 1 else min(threads, key=self._seconds)

    def _seconds(self, threads: int) -> float:
        """The best of a few calls with so many threads, after one that does not count."""
        self.threads = threads
        self()
        return min(self.seconds_per_call(0) for _ in range(5))

    def __call__(self) -> None:
        """Copy :data:`BATCHES` batches."""
        self._turn = (self._turn + 1) % len(self._indices)
        indices = self._indices[self._turn]
        if self._library is None:
            self._out[:] = self._rows[indices]  # np.take would make a copy of overlapping rows first
            return
        size, (rows, row_bytes) = ctypes.c_size_t, self._out.shape
        source, chosen, out = (ctypes.c_void_p(array.ctypes.data) for array in (self._source, indices, self._out))
        stride = size(self._stride)
        self._library.gather(source, size(row_bytes), stride, chosen, size(rows), out, self.threads, 0, 1)

    def seconds_per_call(self, seconds: float) -> float:
        """Of one batch, measured for about ``seconds``."""
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < seconds:
            self()
            calls += 1
        return (time.perf_counter() - start) / calls / BATCHES
