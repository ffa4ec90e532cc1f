"""Stable-Baselines3's replay buffers."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from benchmarks.peers.replay.store import Store, Unsupported, leading_axis
from benchmarks.peers.replay.transitions import BLOCK, DISCOUNT, N_STEP, named


class StableBaselines3(Store):
    """Stable-Baselines3: its ReplayBuffer, DictReplayBuffer or NStepReplayBuffer of one environment, batches as
    tensors; adding 64 is one step of 64 environments.
    """

    modules = ("stable_baselines3",)
    many_environments = True
    package = "stable-baselines3"
    orders = ("uniform", "n_step")
    lacks: ClassVar = {"uniform": ("truncated",), "n_step": ("truncated",)}

    def __init__(self, work, order, capacity, environments=1):
        super().__init__(work, order, capacity)
        from gymnasium import spaces
        from stable_baselines3.common import buffers

        self.environments = environments
        seen = {key: self._space(spaces, value[0]) for key, value in named(work.steps["observations"]).items()}
        if work.name == "states":
            kind = buffers.NStepReplayBuffer if order == "n_step" else buffers.ReplayBuffer
        elif order == "uniform":
            kind = buffers.DictReplayBuffer
        else:
            raise Unsupported("no n-step sampling of dict observations")
        more = {"n_steps": N_STEP, "gamma": DISCOUNT} if order == "n_step" else {}
        observation_space = spaces.Dict(seen) if work.name == "cameras" else seen["state"]
        action_space = spaces.Box(-1, 1, (7,), np.float32)
        self.buffer = kind(capacity, observation_space, action_space, device="cpu", n_envs=environments, **more)
        self.many = None

    @staticmethod
    def _space(spaces, value):
        low, high = (0, 255) if value.dtype == np.uint8 else (-np.inf, np.inf)
        return spaces.Box(low, high, value.shape, value.dtype)

    def item(self, step):
        return self.block({key: leading_axis(value) for key, value in step.items()})

    def block(self, steps):
        done = steps["terminated"] | steps["truncated"]
        infos = [{"TimeLimit.truncated": bool(value)} for value in steps["truncated"]]
        return steps["observations"], steps["next_observations"], steps["actions"], steps["rewards"], done, infos

    def append(self, items):
        add = self.buffer.add
        for item in items:
            add(*item)

    def extend(self, block):
        # Its way of adding many: one step of as many environments.
        if len(block[4]) != BLOCK:
            raise Unsupported("adds one step of every environment")
        if self.many is None:
            self.many = StableBaselines3(self.work, self.order, self.capacity, BLOCK)
        self.many.buffer.add(*block)

    def fresh(self, rows):
        return lambda: self.buffer.sample(rows)

    def parts(self, batch):
        seen, nexts = named(batch.observations), named(batch.next_observations)
        return self.parts_of(seen, nexts, batch.actions, batch.rewards, terminated=batch.dones)

    def extended(self):
        return self.many
