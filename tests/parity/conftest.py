"""Numbers recorded from the original, and where each recorded parameter stands in our networks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from serl_fast.networks.critic import CriticEnsemble, GraspCritic
from serl_fast.networks.encoder import ProprioceptionBranch
from serl_fast.networks.policy import Policy, Temperature

GOLDEN = Path(os.environ.get("SERL_FAST_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))


class Recording(dict[str, Tensor]):
    """The arrays of one recording by name, with its ``config``.

    A recorded Dense kernel is [in, out]. A recorded critic has ONE last layer for all members: it is copied to every
    member of ours, and the gradients of ours are added up to compare with the gradient of theirs.
    """

    def __init__(self, path: Path) -> None:
        with np.load(path / "arrays.npz") as arrays:
            tensors = {key: torch.from_numpy(arrays[key].copy()) for key in arrays.files}
        super().__init__({key: t.float() if t.dtype == torch.float16 else t for key, t in tensors.items()})
        self.config: dict[str, Any] = json.loads((path / "meta.json").read_text())["config"]

    def fill(self, module: nn.Module, prefix: str) -> None:
        """Copy the recorded parameters below ``prefix`` into ``module``."""
        with torch.no_grad():
            for name, parameter, transposed in leaves(module):
                value = self[f"{prefix}/{name}"]
                if transposed:
                    value = value.T
                elif value.numel() == parameter.numel():
                    value = value.reshape(parameter.shape)
                parameter.copy_(value.expand(parameter.shape))

    def error(
        self, module: nn.Module, prefix: str, values: Mapping[Tensor, Tensor] | None = None, within: str = ""
    ) -> float:
        """Largest error of any leaf, relative to the largest magnitude in that leaf.

        Args:
            module: whose parameters are compared.
            prefix: of the recorded leaves.
            values: what to compare in place of a parameter's own value, such as its gradient.
            within: only leaves whose recorded name starts so.
        """
        worst = 0.0
        for name, parameter, transposed in leaves(module):
            if not name.startswith(within):
                continue
            ours, expected = values[parameter] if values else parameter.detach(), self[f"{prefix}/{name}"]
            if transposed:
                ours = ours.T
            elif ours.numel() != expected.numel():
                ours = ours.sum(0)
            worst = max(worst, relative_error(ours.reshape(expected.shape), expected))
        return worst


def leaves(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """(recorded name, our parameter, whether ours is transposed) of every parameter."""
    if isinstance(module, Temperature):
        yield "lagrange", module.raw, False
        return
    for prefix, layer in layers(module):
        normalises = "LayerNorm" in prefix
        yield f"{prefix}/{'scale' if normalises else 'kernel'}", layer.weight, isinstance(layer, nn.Linear)
        yield f"{prefix}/bias", layer.bias, False


def layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """(recorded name, our layer) of every layer."""
    stacks: list[tuple[str, Any]] = []
    if isinstance(module, ProprioceptionBranch):
        yield from (("Dense_0", module.dense), ("LayerNorm_0", module.norm))
    elif isinstance(module, Policy):
        yield from (("Dense_0", module.mean), ("Dense_1", module.log_std))
        stacks = [("network", module.trunk)]
    elif isinstance(module, GraspCritic):
        yield "Dense_0", module.head
        stacks = [("network", module.trunk)]
    elif isinstance(module, CriticEnsemble):
        yield "Dense_0", module.head
        stacks = [("network/VmapMLP_0", module)]
    for prefix, stack in stacks:
        yield from ((f"{prefix}/Dense_{index}", layer) for index, layer in enumerate(stack.layers))
        yield from ((f"{prefix}/LayerNorm_{index}", layer) for index, layer in enumerate(stack.norms))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected magnitude."""
    assert actual.shape == expected.shape
    difference = (actual.detach().double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp(min=1e-12))


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
    """See :func:`relative_error`."""
    return relative_error
