"""This project's update on the common task, and the matrix products of it alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.update import task
from benchmarks.peers.update.learner import Learner, torch_gflop
from benchmarks.products import MatrixProducts
from benchmarks.workloads import WORKLOADS
from serl_fast.data.batches import BatchReader
from serl_fast.replay import ReplayStore


class SerlFast(Learner):
    """serl_fast, compiled: Engine.update of a batch that BatchReader drew from a ReplayStore; its actor minimises the
    mean over the critics, the others' their minimum.
    """

    modules = ("serl_fast",)
    package = "serl-fast"
    execution = "compiled"

    def __init__(self) -> None:
        self.engine = WORKLOADS["state"].engine(self.execution)  # type: ignore[arg-type]
        self.networks = self.engine.agent.networks
        self.reader = BatchReader(task.BATCH)
        self.metrics: dict[str, Tensor] = {}

    def fill(self, rows):
        columns = {
            "observations": {"state": rows.observations},
            "actions": rows.actions,
            "next_observations": {"state": rows.next_observations},
            "rewards": rows.rewards,
            "terminated": rows.terminated,
            "truncated": rows.ends & ~rows.terminated,
        }
        first = {k: {"state": v["state"][0]} if isinstance(v, dict) else v[0] for k, v in columns.items()}
        store = ReplayStore.from_example(first, task.CAPACITY, seed=0)
        store.extend(columns)
        self.sampler = store.sampler(discount=task.DISCOUNT)
        self.reader = BatchReader(task.BATCH)

    def load(self, weights):
        with torch.no_grad():
            for name, parameter in self._parameters().items():
                value = torch.from_numpy(weights[name])
                parameter.copy_(value.T if _transposed(name) else value.view_as(parameter))
            # softplus(raw) is the temperature
            self.networks["temperature"].raw.fill_(math.log(math.expm1(math.exp(float(weights["log_temperature"])))))

    def weights(self):
        found = {}
        for name, parameter in self._parameters().items():
            value = parameter.detach().clone()
            if not _transposed(name) and value.dim() == 3 and name.endswith("bias"):
                value = value.squeeze(1)
            found[name] = (value.T if _transposed(name) else value).numpy().copy()
        temperature = self.networks["temperature"]().detach()
        return found | {"log_temperature": temperature.double().log().numpy()}

    def call(self):
        self.metrics = self.engine.update(self.reader.read(self.sampler))

    def critic_loss(self):
        return float(self.metrics["critic/loss"])

    def gflop(self):
        return torch_gflop(self) if self.engine.execution == "eager" else None

    def _parameters(self) -> dict[str, Tensor]:
        actor = self.networks["actor"]
        found: dict[str, Any] = {f"actor/{n}": layer for n, layer in enumerate(actor.trunk.layers)}
        found |= {"actor/mean": actor.mean, "actor/log_std": actor.log_std}
        for name in ("critic", "target_critic"):
            critic = self.networks[name]
            found |= {f"{name}/{n}": layer for n, layer in enumerate((*critic.layers, critic.head))}
        return {f"{name}/{part}": getattr(layer, part) for name, layer in found.items() for part in ("weight", "bias")}


class Eager(SerlFast):
    """serl_fast, eager: the same, not compiled."""

    execution = "eager"


class Products(Eager):
    """Matrix products of one eager update of serl_fast, as torch computes them (by MKL), without drawing a batch: no
    learner, a limit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fill(task.transitions())
        super().call()
        self.products = MatrixProducts()
        with self.products:
            super().call()

    def call(self):
        self.products()


class ProductsOneDnn(Products):
    """The same products by oneDNN, the other library that torch brings along."""

    def call(self):
        self.products.through_onednn()


def _transposed(name: str) -> bool:
    """nn.Linear keeps [outputs, inputs]; the stacked critics [E, inputs, outputs] as the task has it."""
    return name.startswith("actor") and name.endswith("weight")
