"""How fast this machine copies random rows: the limit that a replay store of images can reach."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROW_BYTES = 128 * 128 * 3
PASSES = 4  # in one call, so that starting threads is not what is measured


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
                pointer(source), size(ROW_BYTES), pointer(indices), size(rows), pointer(out), count, streaming, PASSES
            )

        return copy

    kinds = {"memcpy": 0} | ({"AVX2, non-temporal stores": 1} if library.has_avx2() else {})
    for kind, streaming in kinds.items():
        for count in threads:
            functions[f"{kind}, {count} thread{'s' * (count > 1)}"] = count, native(count, streaming)
    return functions


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
