"""One revision's side of benchmarks/regression.py: builds cases and times their variants when it is asked to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.children import answers_alone, serve


class Worker:
    """Answers of a child.

    Args:
        device: see :class:`benchmarks.suite.Run`.
        scale: also.
    """

    def __init__(self, device: str, scale: str) -> None:
        self._device, self._scale = device, scale
        self._work: Any = None
        self._timers: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def where(self) -> dict[str, str]:
        """The folder of the serl_fast that this process measures."""
        import serl_fast
        import serl_fast.replay  # the extension is built and loads

        return {"package": str(Path(serl_fast.__file__).parent)}

    def build(self, module: str, case: str) -> dict[str, Any]:
        """Build a case of a module; its variants, and why some are missing."""
        import importlib

        from benchmarks.measure import timer_of
        from benchmarks.suite import REGISTRY, Run

        importlib.import_module(module)  # no other: what they need may be missing in an older revision
        self._work = REGISTRY[case].build(Run(self._device, self._scale))
        self._timers = {name: timer_of(function, self._device) for name, function in self._work.functions.items()}
        self._counts = {}
        return {"variants": list(self._timers), "without": self._work.missing}

    def time(self, variant: str, seconds: float) -> dict[str, float]:
        """Seconds per call of a variant."""
        return {"seconds": self._timers[variant](seconds, self._counts, variant)}

    def free(self) -> dict[str, str]:
        """Close what was built."""
        work, self._work, self._timers = self._work, None, {}
        if work is not None and work.close is not None:
            work.close()
        return {}


if __name__ == "__main__":
    out = answers_alone()
    serve(Worker(*sys.argv[1:]), out)
