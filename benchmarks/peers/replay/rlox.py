"""rlox's replay buffers."""

from __future__ import annotations

import itertools

import numpy as np

from benchmarks.peers.replay.store import ALPHA, BETA, Store, Unsupported


class Rlox(Store):
    """rlox: its ReplayBuffer or PrioritizedReplayBuffer, a new seed every draw since it has no generator of its own."""

    modules = ("rlox",)
    package = "rlox"
    orders = ("uniform", "prioritized")

    def __init__(self, work, order, capacity):
        super().__init__(work, order, capacity)
        import rlox

        if work.name != "states":
            raise Unsupported("observations are flat float32 vectors")
        if order == "prioritized":
            self.buffer = rlox.PrioritizedReplayBuffer(capacity, 32, 7, alpha=ALPHA, beta=BETA)
        else:
            self.buffer = rlox.ReplayBuffer(capacity, 32, 7)
        self.seeds = itertools.count()  # it has no generator of its own

    def item(self, step):
        keys = ("observations", "actions", "rewards", "terminated", "truncated", "next_observations")
        return tuple(step[key] for key in keys)

    def block(self, steps):
        keys = ("observations", "next_observations", "actions", "rewards")
        flags = [steps[key].astype(np.uint8) for key in ("terminated", "truncated")]
        return (*(np.ascontiguousarray(steps[key]).ravel() for key in keys), *flags)

    def append(self, items):
        push = self.buffer.push
        for item in items:
            push(*item)

    def extend(self, block):
        if self.order == "prioritized":
            raise Unsupported("takes one transition at a time")
        self.buffer.push_batch(*block)

    def fresh(self, rows):
        return lambda: self.buffer.sample(rows, next(self.seeds))

    def prioritise(self, batch, priorities):
        self.buffer.update_priorities(batch["indices"], priorities.astype(np.float64))

    def parts(self, batch):
        shaped = {key: np.reshape(batch[key], (len(batch["rewards"]), -1)) for key in ("obs", "next_obs", "actions")}
        seen, nexts = {"state": shaped["obs"]}, {"state": shaped["next_obs"]}
        flags = {name: batch[name] for name in ("terminated", "truncated")}
        return self.parts_of(seen, nexts, shaped["actions"], batch["rewards"], **flags)
