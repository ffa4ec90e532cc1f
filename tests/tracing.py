"""A compiler that only traces."""

from __future__ import annotations

from typing import Any

import torch

_compile = torch.compile


def trace_only(function: Any, *, options: Any = None, **named: Any) -> Any:
    """Stands in for ``torch.compile``: trace through autograd and functionalisation, run the graph as it is.

    What is checked before a call is as for the real compiler; Inductor's own options have no meaning here.
    """
    kept = {key: value for key, value in (options or {}).items() if key == "guard_filter_fn"}
    return _compile(function, **{**named, "backend": "aot_eager", "options": kept})
