"""LeRobot's replay buffer."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.lerobot_parts import lerobot_module
from benchmarks.peers.replay.store import TOLERATED, Store
from benchmarks.peers.replay.transitions import named


class LeRobot(Store):
    """LeRobot: as its learner makes the buffer (optimize_memory=True), images as float32, without its augmentation; its
    neighbour of the newest row and of a truncated one is another episode's.
    """

    modules = ("lerobot",)
    package = "lerobot"
    tolerated = TOLERATED

    def __init__(self, work, order, capacity):
        super().__init__(work, order, capacity)
        self.buffer = lerobot_module("lerobot.rl.buffer").ReplayBuffer(
            capacity, device="cpu", state_keys=[self._key(key) for key in named(work.steps["observations"])],
            use_drq=False, storage_device="cpu", optimize_memory=True,
        )  # fmt: skip

    @staticmethod
    def _key(name):
        return "observation.state" if name == "state" else f"observation.images.{name}"

    def _state(self, observations):
        import torch

        values = {self._key(name): value[None] for name, value in named(observations).items()}
        for name, value in values.items():
            if value.dtype == np.uint8:
                values[name] = np.moveaxis(value, -1, 1).astype(np.float32, order="C") / 255
        return {name: torch.from_numpy(value) for name, value in values.items()}

    def item(self, step):
        import torch

        return {
            "state": self._state(step["observations"]),
            "action": torch.from_numpy(step["actions"][None]),
            "reward": step["rewards"],
            "next_state": self._state(step["next_observations"]),
            "done": step["terminated"] or step["truncated"],  # what its actor sends
            "truncated": step["truncated"],
        }

    def append(self, items):
        add = self.buffer.add
        for item in items:
            add(**item)

    def fresh(self, rows):
        return lambda: self.buffer.sample(rows)

    def parts(self, batch):
        seen, nexts = ({k.rpartition(".")[2]: v for k, v in batch[key].items()} for key in ("state", "next_state"))
        seen, nexts = ({k: self._image(v) if v.ndim == 4 else v for k, v in d.items()} for d in (seen, nexts))
        truncated = batch["truncated"].bool()
        terminated = batch["done"].bool() & ~truncated  # "done" is either
        return self.parts_of(seen, nexts, batch["action"], batch["reward"], terminated=terminated, truncated=truncated)

    @staticmethod
    def _image(values):
        """[B, C, H, W] in [0, 1] as it was before."""
        return (values * 255).round().movedim(1, -1)
