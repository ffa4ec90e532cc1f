"""The updates that are measured: hybrid SAC from the state, and from two cameras."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.core import Batch
from serl_fast.engine import Engine, EngineConfig
from serl_fast.engine.config import Execution


@dataclass(frozen=True)
class Workload:
    """One update of critics, grasp critic, actor, temperature and targets, with HIL-SERL's widths (2 x 256)."""

    name: str
    batch_size: int
    image_keys: tuple[str, ...] = ()
    state_dim: int = 21
    image_size: int = 128

    def __str__(self) -> str:
        cameras = (
            f", {len(self.image_keys)} cameras of {self.image_size} x {self.image_size}" if self.image_keys else ""
        )
        return f"{self.name}: hybrid SAC, state {self.state_dim}{cameras}, action 7, batch {self.batch_size}"

    def engine(self, execution: Execution) -> Engine:
        """A fresh agent; nothing is compiled before the first update."""
        torch.manual_seed(0)
        return Engine(hybrid_sac(self.state_dim, 1, self.image_keys), EngineConfig(execution))

    def batch(self) -> Batch:
        """Random transitions."""
        generator, size = torch.Generator().manual_seed(1), self.batch_size
        image = (size, self.image_size, self.image_size, 3)

        def observe() -> Batch:
            images = {k: torch.randint(256, image, generator=generator, dtype=torch.uint8) for k in self.image_keys}
            return {"state": torch.randn(size, self.state_dim, generator=generator), **images}

        return {
            "observations": observe(),
            "next_observations": observe(),
            "actions": torch.rand(size, 7, generator=generator) * 2 - 1,
            "rewards": torch.rand(size, generator=generator),
            "discounts": torch.full((size,), 0.97),
            "grasp_penalty": torch.zeros(size),
        }


WORKLOADS = {
    "state": Workload("state", batch_size=256),
    "pixels": Workload("pixels", batch_size=16, image_keys=("front", "wrist")),
}
