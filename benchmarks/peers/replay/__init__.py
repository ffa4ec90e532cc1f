"""Replay stores on the transitions of :mod:`benchmarks.peers.replay.transitions`, each behind one interface."""

from __future__ import annotations

import importlib

from benchmarks.peers.replay.store import Store

STORES = {
    "serl_fast": ("peers.replay.ours:SerlFast",),
    "NumPy": ("peers.replay.plain_numpy:NumPy", "replay_numpy:Twin"),
    "rlox": ("peers.replay.rlox:Rlox",),
    "cpprb": ("peers.replay.cpprb:Cpprb",),
    "Stable-Baselines3": ("peers.replay.sb3:StableBaselines3",),
    "LeRobot": ("peers.replay.lerobot:LeRobot",),
    "Tianshou": ("peers.replay.tianshou:Tianshou",),
    "TorchRL": ("peers.replay.torchrl:TorchRL",),
    "flashbax": ("peers.replay.flashbax:Flashbax",),
    "Reverb": ("peers.replay.reverb:Reverb",),
}
"""Name -> adapters, the first of them that samples in the asked order is taken."""


def store_kind(name: str, order: str = "uniform") -> type[Store]:
    """The adapter of a name of :data:`STORES`; what follows a comma is how the store is run."""
    kinds = []
    for target in STORES[name.partition(",")[0]]:
        module, _, kind = target.partition(":")
        kinds.append(getattr(importlib.import_module(f"benchmarks.{module}"), kind))
    return next((kind for kind in kinds if order in kind.orders), kinds[0])
