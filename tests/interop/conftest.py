"""Parameters recorded from the original, and small agents to convert."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serl_fast.interop.flax_trees import ParameterTrees, read_trees

GOLDEN = Path(os.environ.get("SERL_FAST_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
KEPT = Path(__file__).parents[1] / "parity" / "data"


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], ParameterTrees]:
    """Reads the parameters of a recording by name, or skips the test."""

    def read(name: str, file: str = "arrays.npz") -> ParameterTrees:
        for folder in (GOLDEN, KEPT):
            if (folder / name / file).exists():
                return read_trees(folder / name / file)
        pytest.skip(f"recordings of the original are not here: {GOLDEN / name} (set SERL_FAST_GOLDEN)")

    return read
