"""SAC of other packages on the work of :mod:`benchmarks.peers.update.task`, each behind one interface."""

from __future__ import annotations

import importlib

from benchmarks.peers.update.learner import Learner

LIMIT = "matrix products alone"
ONEDNN = "matrix products alone, oneDNN"
LEARNERS = {
    "serl_fast, compiled": "ours:SerlFast",
    "serl_fast, eager": "ours:Eager",
    LIMIT: "ours:Products",
    ONEDNN: "ours:ProductsOneDnn",
    "Stable-Baselines3": "sb3:StableBaselines3",
    "LeRobot": "lerobot:LeRobot",
    "LeRobot, compiled": "lerobot:LeRobotCompiled",
    "TorchRL": "torchrl:TorchRL",
    "TorchRL, compiled": "torchrl:TorchRLCompiled",
    "plain JAX": "plain_jax:PlainJax",
    "plain JAX, 20 updates a call": "plain_jax:PlainJaxScan",
    "SBX": "sbx:Sbx",
    "SBX, 20 updates a call": "sbx:SbxMany",
}
"""Name -> module of this package and class."""


def learner_kind(name: str) -> type[Learner]:
    """The adapter of a name of :data:`LEARNERS`."""
    module, _, kind = LEARNERS[name].partition(":")
    return getattr(importlib.import_module(f"benchmarks.peers.update.{module}"), kind)
