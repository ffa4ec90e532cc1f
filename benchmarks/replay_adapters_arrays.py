"""Replay stores that keep plain arrays or tensors, behind the interface of ``replay_adapters``."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import types

import numpy as np

from benchmarks.replay_adapters import ALPHA, BETA, Store, Unsupported, leading_axis, parts_of
from benchmarks.replay_work import BLOCK, DISCOUNT, N_STEP, named, transition


class StableBaselines3(Store):
    package = "stable-baselines3"
    orders = ("uniform", "n_step")

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
        return parts_of(named(batch.observations), named(batch.next_observations), batch.actions, batch.rewards)


class Cpprb(Store):
    package = "cpprb"
    orders = ("uniform", "n_step", "prioritized")

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
            if part["truncated"][-1]:
                self.buffer.on_episode_end()

    def fresh(self, rows):
        if self.order == "prioritized":
            return lambda: self.buffer.sample(rows, BETA)
        return lambda: self.buffer.sample(rows)

    def prioritise(self, batch, priorities):
        self.buffer.update_priorities(batch["indexes"], priorities)

    def parts(self, batch):
        nexts = {key.removeprefix("next_"): value for key, value in batch.items() if key.startswith("next_")}
        return parts_of(batch, nexts, batch["act"], batch["rew"])


class Rlox(Store):
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
        return parts_of(seen, nexts, shaped["actions"], batch["rewards"])


class LeRobot(Store):
    package = "lerobot"
    note = "LeRobot: as its learner makes it (optimize_memory=True), images as float32, without its augmentation"

    def __init__(self, work, order, capacity):
        super().__init__(work, order, capacity)
        self.buffer = _lerobot_buffer().ReplayBuffer(
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
        seen, nexts = ({k: v if k == "state" else (v * 255).round() for k, v in d.items()} for d in (seen, nexts))
        return parts_of(seen, nexts, batch["action"], batch["reward"])


def _lerobot_buffer():
    """Its module, which needs the package's data sets for a type annotation and their export only."""
    try:
        return importlib.import_module("lerobot.rl.buffer")
    except (ImportError, RuntimeError):
        if importlib.util.find_spec("lerobot") is None:
            raise
        name = "lerobot.datasets.lerobot_dataset"
        stand_in = types.ModuleType(name)
        stand_in.LeRobotDataset = object
        sys.modules[name] = stand_in
        return importlib.import_module("lerobot.rl.buffer")
