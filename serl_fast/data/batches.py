"""Batches from the replay store as tensors on the learner's device."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from serl_fast.core import Batch


class BatchSource(Protocol):
    """What a ``ReplayStore`` and a ``Mixture`` of them have in common."""

    def empty_batch(self, batch_size: int) -> dict[str, Any]:
        """Uninitialised arrays for a batch."""

    def sample_into(self, batch: dict[str, Any]) -> None:
        """Fill ``batch`` with sampled transitions."""


class BatchReader:
    """Draws batches into ONE set of arrays and hands them out as tensors.

    On the CPU the tensors are the arrays' own memory: no copy is made, and a batch is valid until the next call.
    On another device each batch is copied there.

    Args:
        batch_size: rows.
        device: where the batches are needed.
    """

    def __init__(self, batch_size: int, device: torch.device | str = "cpu") -> None:
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._arrays: dict[str, Any] | None = None
        self._tensors: Batch = {}

    def read(self, source: BatchSource) -> Batch:
        """Sample one batch from ``source``."""
        if self._arrays is None:
            self._arrays = source.empty_batch(self.batch_size)
            self._tensors = _map(self._arrays, torch.from_numpy)
        source.sample_into(self._arrays)
        if self.device.type == "cpu":
            return self._tensors
        moved: Batch = _map(self._tensors, lambda tensor: tensor.to(self.device))
        return moved

    def blank(self, source: BatchSource) -> Batch:
        """A batch of zeros with the shapes of ``source``."""
        zeros: Batch = _map(source.empty_batch(self.batch_size), np.zeros_like)
        return to_tensors(zeros, self.device)


def to_tensors(batch: dict[str, Any], device: torch.device | str = "cpu") -> Batch:
    """A nested dict of arrays as tensors on ``device``."""
    tensors: Batch = _map(batch, lambda array: torch.as_tensor(np.asarray(array), device=device))
    return tensors


def _map(tree: Any, function: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _map(value, function) for key, value in tree.items()}
    return function(tree)
