"""Numbered policy parameters on their way from the learner to the actor."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PolicySnapshot:
    """A complete, immutable copy of what acting needs.

    Attributes:
        version: 1, 2, 3 ... in the order of publication.
        updates: gradient steps taken when it was made.
        tensors: name -> value, detached copies that nobody writes to.
    """

    version: int
    updates: int
    tensors: dict[str, Tensor]

    def load_into(self, networks: nn.ModuleDict) -> None:
        """Copy the values into ``networks``, in place; networks that acting does not need stay as they are."""
        theirs = trained_tensors(networks)
        with torch.no_grad():
            for name, value in self.tensors.items():
                theirs[name].copy_(value)


class PolicyPublisher:
    """Hands the newest snapshot from the learner's thread to the actor's.

    A snapshot is made complete before it becomes visible and is never changed afterwards, so that an actor can not see
    parameters of two different steps.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: PolicySnapshot | None = None

    def publish(self, networks: nn.ModuleDict, names: tuple[str, ...], updates: int) -> PolicySnapshot:
        """Copy the trained tensors of ``names`` and make them the newest snapshot. Called by the learner only."""
        chosen = nn.ModuleDict({name: networks[name] for name in names})
        tensors = {name: tensor.detach().clone() for name, tensor in trained_tensors(chosen).items()}
        with self._changed:
            version = self._newest.version + 1 if self._newest else 1
            self._newest = PolicySnapshot(version, updates, tensors)
            self._changed.notify_all()
            return self._newest

    def newest(self, after: int = 0) -> PolicySnapshot | None:
        """The newest snapshot whose version exceeds ``after``, or None. Never blocks on the learner's work."""
        with self._changed:
            return self._newest if self._newest and self._newest.version > after else None


def trained_tensors(networks: nn.ModuleDict) -> dict[str, Tensor]:
    """Trained parameters and buffers by name; frozen weights are the same everywhere and stay out."""
    tensors: dict[str, Tensor] = {name: p for name, p in networks.named_parameters() if p.requires_grad}
    tensors.update(networks.named_buffers())
    return tensors
