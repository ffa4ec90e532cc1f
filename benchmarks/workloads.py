"""The updates that are measured: SAC, RLPD and hybrid SAC from states; SAC, DrQ and cached features of two cameras."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from serl_fast.agents.cached_features import with_cached_features
from serl_fast.agents.drq import drq
from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import Agent, Batch
from serl_fast.engine import Engine, EngineConfig
from serl_fast.engine.config import Execution, Precision

ACTION_DIM = 7
CAMERAS = ("front", "wrist")
CROPS = 2  # of every frame, in the feature cache
FEATURES = (CROPS, 4, 4, 512)  # what a frozen ResNet-10 makes of them

TEXTBOOK = SACConfig(
    hidden_widths=(256, 256),
    activation="relu",
    layer_norm=False,
    critic_ensemble_size=2,
    initial_temperature=1.0,
    target_entropy=-float(ACTION_DIM),
    backup_entropy=True,
    target_update_rate=0.005,
    learning_rate=3e-4,
    std_min=math.exp(-20),
    std_max=math.exp(2),
    proprioception_dim=None,
)
"""SAC as Stable-Baselines3, TorchRL and SBX have it, whose own defaults these are (discount 0.99)."""


@dataclass(frozen=True)
class Workload:
    """One call of the learner.

    Attributes:
        name: for the command line.
        title: what is computed.
        agent: makes it, with changes of its ``SACConfig``; weights come from torch's global generator.
        state_dim: P of the observations.
        batch_size: rows B of one gradient step.
        image: shape of what each camera gives; None without cameras.
        cached: cameras give features, float16 as bytes, in place of images.
        updates: gradient steps U of one call; the actor's objectives are part of the last.
        changes: of the agent's ``SACConfig``.
    """

    name: str
    title: str
    agent: Callable[..., Agent]
    state_dim: int
    batch_size: int
    image: tuple[int, ...] | None = None
    cached: bool = False
    updates: int = 1
    changes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}: {self.title}, state {self.state_dim}, action {ACTION_DIM}, batch {self.batch_size}"

    def changed(self, **changes: Any) -> Workload:
        """The same with other settings of its agent."""
        return replace(self, changes={**self.changes, **changes})

    def small(self) -> Workload:
        """The same as small as it gets, for tests."""
        return replace(self, batch_size=2, updates=min(self.updates, 2)).changed(hidden_widths=(16, 16))

    def engine(
        self,
        execution: Execution,
        precision: Precision = "float32",
        device: torch.device | str = "cpu",
        *,
        strict: bool = False,
    ) -> Engine:
        """A fresh agent; nothing is compiled before the first update."""
        torch.manual_seed(0)
        return Engine(self.agent(**self.changes), EngineConfig(execution, precision, strict), device=device)

    def batch(self, device: torch.device | str = "cpu") -> Batch:
        """Random transitions, U * B rows."""
        generator, rows = torch.Generator().manual_seed(1), self.updates * self.batch_size

        def camera() -> Tensor:
            shape = (rows, *(self.image or ()))
            if self.cached:
                return torch.randn(shape, generator=generator).relu().half().view(torch.uint8)
            return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

        def observe() -> Batch:
            images = {key: camera() for key in CAMERAS} if self.image else {}
            return {"state": torch.randn(rows, self.state_dim, generator=generator), **images}

        batch = {
            "observations": observe(),
            "next_observations": observe(),
            "actions": torch.rand(rows, ACTION_DIM, generator=generator) * 2 - 1,
            "rewards": torch.rand(rows, generator=generator),
            "discounts": torch.full((rows,), 0.97),
            "grasp_penalty": torch.zeros(rows),
        }
        return _map(batch, lambda tensor: tensor.to(device))

    def call(self, engine: Engine, batch: Batch | None = None) -> Callable[[], None]:
        """A function that takes the U gradient steps on ``batch``, always the same; its first call compiles."""
        batch = self.batch(engine.device) if batch is None else batch
        if self.updates == 1:
            return lambda: engine.update(batch) and None
        return lambda: engine.update_block(batch, updates=self.updates) and None


def _map(tree: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    return {key: _map(v, function) if isinstance(v, dict) else function(v) for key, v in tree.items()}


def _pixels(**changes: Any) -> Agent:
    return sac(14, ACTION_DIM, CAMERAS, SACConfig(**changes))


_ALL = (
    Workload(
        "state",
        "SAC, 2 critics of 2 x 256, relu, no LayerNorm",
        lambda **changes: sac(32, ACTION_DIM, config=replace(TEXTBOOK, **changes)),
        32,
        256,
    ),
    Workload(
        "rlpd",
        "RLPD, 10 critics with LayerNorm, targets from 2, 20 critic updates and one of the actor",
        lambda **changes: sac(32, ACTION_DIM, config=SACConfig.rlpd(**changes)),
        32,
        256,
        updates=20,
    ),
    Workload(
        "hybrid",
        "HIL-SERL's hybrid SAC, 2 critics of 2 x 256, grasp critic",
        lambda **changes: hybrid_sac(21, 1, config=SACConfig(**changes)),
        21,
        256,
    ),
    Workload(
        "pixels",
        "SAC, 2 cameras of 128 x 128, frozen ResNet-10, random crops",
        _pixels,
        14,
        64,
        image=(128, 128, 3),
    ),
    Workload(
        "pixels_trained",
        "DrQ, 2 cameras of 128 x 128, a small CNN trained for each, 10 critics, random crops",
        lambda **changes: drq(14, ACTION_DIM, CAMERAS, SACConfig.drq(**changes)),
        14,
        64,
        image=(128, 128, 3),
    ),
    Workload(
        "pixels_cached",
        f"SAC, 2 cameras, frozen ResNet-10, a feature cache of {CROPS} crops",
        lambda **changes: with_cached_features(_pixels(**changes), CROPS),
        14,
        64,
        image=FEATURES,
        cached=True,
    ),
)
WORKLOADS = {workload.name: workload for workload in _ALL}


def workloads_called(names: Sequence[str]) -> list[Workload]:
    """The workloads of these names.

    Raises:
        ValueError: there is none of such a name.
    """
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        raise ValueError(f"no workload is called {', '.join(unknown)}; choose from {', '.join(WORKLOADS)}")
    return [WORKLOADS[name] for name in names]
