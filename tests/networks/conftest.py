"""Numbers recorded from the original."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

GOLDEN = Path(os.environ.get("SERL_FAST_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))


class Recording(dict[str, Tensor]):
    """The arrays of one recording by name, with its ``config``."""

    def __init__(self, path: Path) -> None:
        with np.load(path / "arrays.npz") as arrays:
            tensors = {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in arrays.files}
        super().__init__({key: t.float() if t.dtype == torch.float16 else t for key, t in tensors.items()})
        self.config: dict[str, Any] = json.loads((path / "meta.json").read_text())["config"]

    def dense(self, layer: nn.Linear, prefix: str) -> None:
        """Fill a dense layer from a recorded kernel [in, out] and bias."""
        layer.load_state_dict({"weight": self[f"{prefix}/kernel"].T, "bias": self[f"{prefix}/bias"]})

    def mlp(self, layers: nn.ModuleList, norms: nn.ModuleList, prefix: str) -> None:
        """Fill the layers and norms of a (possibly stacked) network."""
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.Linear):
                self.dense(layer, f"{prefix}/Dense_{index}")
            else:
                self.stacked(layer, f"{prefix}/Dense_{index}", "kernel")
        for index, norm in enumerate(norms):
            if list(norm.parameters()):
                self.stacked(norm, f"{prefix}/LayerNorm_{index}", "scale")

    def stacked(self, layer: nn.Module, prefix: str, weight: str) -> None:
        """Fill a layer whose parameters are laid out as recorded, but for axes of length one."""
        for name, parameter in (("weight", layer.weight), ("bias", layer.bias)):
            value = self[f"{prefix}/{weight if name == 'weight' else 'bias'}"]
            assert isinstance(parameter, nn.Parameter)
            parameter.data.copy_(value.reshape(parameter.shape))


@pytest.fixture(scope="session")
def recording() -> Callable[[str], Recording]:
    """Reads a recording by name, or skips the test."""

    def read(name: str) -> Recording:
        path = GOLDEN / name
        if not (path / "arrays.npz").exists():
            pytest.skip(f"recordings of the original are not here: {path} (set SERL_FAST_GOLDEN)")
        return Recording(path)

    return read


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """Largest difference, relative to the largest expected magnitude."""

    def measure(actual: Tensor, expected: Tensor) -> float:
        assert actual.shape == expected.shape
        difference = (actual.detach().double() - expected.double()).abs().max()
        return float(difference / expected.double().abs().max().clamp(min=1e-12))

    return measure
