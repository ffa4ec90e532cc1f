"""Other packages on the work of the suite, each behind one interface and in a process of its own.

``replay`` holds stores, ``update`` learners; ``benchmarks/bench_peers.py`` measures them.
"""

from __future__ import annotations

import inspect


def settings(kind: type) -> str:
    """The docstring of an adapter, which says how its package is set to the common work, as one line."""
    return " ".join((inspect.getdoc(kind) or "").split())
