"""cpprb's replay buffers."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.peers.replay.store import ALPHA, BETA, TOLERATED, Store, leading_axis
from benchmarks.peers.replay.transitions import BLOCK, DISCOUNT, N_STEP, named, transition


class Cpprb(Store):
    """cpprb: both observations kept, defaults otherwise; n-step returns are made while appending, and the last two
    steps of an episode then get another next observation.
    """

    modules = ("cpprb",)
    package = "cpprb"
    orders = ("uniform", "n_step", "prioritized")
    lacks: ClassVar = {"n_step": ("terminated", "truncated")}  # they are those of the first step
    tolerated = TOLERATED

    def __init__(self, work, order, capacity):
        super().__init__(work, order, capacity)
        import cpprb

        first = self.block({key: leading_axis(value) for key, value in transition(work.steps, 0).items()})
        layout = {key: {"shape": value.shape[1:] or 1, "dtype": value.dtype} for key, value in first.items()}
        nexts = [key for key in layout if key.startswith("next_")]
        if order == "n_step":
            n_step = {"size": N_STEP, "gamma": DISCOUNT, "rew": "rew", "next": nexts}
            self.buffer = cpprb.ReplayBuffer(capacity, layout, Nstep=n_step)
        elif order == "prioritized":
            self.buffer = cpprb.PrioritizedReplayBuffer(capacity, layout, alpha=ALPHA)
        else:
            self.buffer = cpprb.ReplayBuffer(capacity, layout)

    def item(self, step):
        return self.block(step)

    def block(self, steps):
        seen = named(steps["observations"]) | {f"next_{k}": v for k, v in named(steps["next_observations"]).items()}
        rest = {"act": "actions", "rew": "rewards", "done": "terminated", "truncated": "truncated"}
        return seen | {name: steps[key] for name, key in rest.items()}

    def append(self, items):
        add = self.buffer.add
        for item in items:
            add(**item)

    def extend(self, block):
        if self.order != "n_step":
            self.buffer.add(**block)
            return
        for start in range(0, len(block["rew"]), BLOCK):
            part = {key: array[start : start + BLOCK] for key, array in block.items()}
            self.buffer.add(**part | {"rew": part["rew"].copy()})  # it sums the returns in the caller's array
            if part["truncated"][-1] or part["done"][-1]:
                self.buffer.on_episode_end()

    def fresh(self, rows):
        if self.order == "prioritized":
            return lambda: self.buffer.sample(rows, BETA)
        return lambda: self.buffer.sample(rows)

    def prioritise(self, batch, priorities):
        self.buffer.update_priorities(batch["indexes"], priorities)

    def parts(self, batch):
        nexts = {key.removeprefix("next_"): value for key, value in batch.items() if key.startswith("next_")}
        flags = {} if self.order == "n_step" else {"terminated": batch["done"], "truncated": batch["truncated"]}
        return self.parts_of(batch, nexts, batch["act"], batch["rew"], **flags)
