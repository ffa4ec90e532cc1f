"""Tianshou's replay buffers."""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np

from benchmarks.peers.replay.store import ALPHA, BETA, Store, Unsupported
from benchmarks.peers.replay.transitions import DISCOUNT, N_STEP, named


class Tianshou(Store):
    """Tianshou: its ReplayBuffer or PrioritizedReplayBuffer; adding 64 is one step of 64 environments; n-step returns
    without a critic.
    """

    modules = ("tianshou",)
    many_environments = True
    package = "tianshou"
    orders = ("uniform", "n_step", "prioritized")
    lacks: ClassVar = {"n_step": ("terminated", "truncated")}  # they are those of the first step

    def __init__(self, work, order, capacity):
        super().__init__(work, order, capacity)
        from tianshou.data import PrioritizedReplayBuffer, ReplayBuffer

        if order == "prioritized":
            self.buffer = PrioritizedReplayBuffer(capacity, alpha=ALPHA, beta=BETA)
        else:
            self.buffer = ReplayBuffer(capacity)
        self.many = None

    def item(self, step):
        from tianshou.data import Batch

        renamed = {KEYS.get(key, key): value for key, value in step.items()}
        return Batch(**renamed, info=Batch())

    block = item

    def append(self, items):
        add = self.buffer.add
        for item in items:
            add(item)

    def extend(self, block):
        # Its way of adding many: one step of as many environments.
        from tianshou.data import VectorReplayBuffer

        if self.order != "uniform":
            raise Unsupported("adds one step of every environment")
        rows = len(block.rew)
        if self.many is None:
            self.many = VectorReplayBuffer(self.capacity, rows), np.arange(rows)
        if rows != len(self.many[1]):
            raise Unsupported("adds one step of every environment")
        self.many[0].add(block, buffer_ids=self.many[1])

    def fresh(self, rows):
        if self.order != "n_step":
            return lambda: self.buffer.sample(rows)
        import torch
        from tianshou.algorithm.algorithm_base import Algorithm

        def values(buffer, indices):
            # The critic's part: it would read the next observations and return one value a row.
            self.reached = buffer[indices].obs_next
            return torch.zeros(len(indices))

        def draw():
            batch, indices = self.buffer.sample(rows)
            return Algorithm.compute_nstep_return(batch, self.buffer, indices, values, DISCOUNT, N_STEP), indices

        return draw

    def prioritise(self, batch, priorities):
        self.buffer.update_weight(batch[1], priorities)

    def parts(self, batch):
        rows = batch[0]
        if self.order == "n_step":
            return self.parts_of(named(rows.obs), {"state": self.reached}, rows.act, rows.returns)
        flags = {"terminated": rows.terminated, "truncated": rows.truncated}
        if self.work.name == "cameras":
            return self.parts_of(dict(rows.obs.items()), dict(rows.obs_next.items()), rows.act, rows.rew, **flags)
        return self.parts_of(named(rows.obs), named(rows.obs_next), rows.act, rows.rew, **flags)

    def extended(self):
        other = copy.copy(self)
        other.buffer = self.many[0]
        return other


KEYS = {"observations": "obs", "actions": "act", "next_observations": "obs_next", "rewards": "rew"}
