"""What the process does with memory that a step on the CPU is done with."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt, glibc's malloc.h
CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep what this process frees for its next allocations, in place of giving it back to the system.

    A step frees all of its intermediate results and allocates the same ones again a moment later. glibc gives large
    blocks back each time, and the system hands them out again page by page, each fault a microsecond or two: a fifth
    to a third of an update with cameras (``python -m benchmarks.freed_memory``). The process then stays as large as it
    once was; the engine calls this at its first update, behind the loading of data.

    Blocks that were allocated before are given back as ever. Nothing is changed where the user has set one of glibc's
    own variables (``MALLOC_TRIM_THRESHOLD_`` and so on), or where the C library is another one.

    Returns:
        Whether memory is kept.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
