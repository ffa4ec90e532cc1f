"""Replay stores that come with a framework of their own tensors, behind the interface of ``replay_adapters``."""

from __future__ import annotations

import numpy as np

from benchmarks.replay_adapters import ALPHA, BETA, Store, Unsupported, leading_axis, parts_of
from benchmarks.replay_work import DISCOUNT, N_STEP, named, transition


class TorchRL(Store):
    package = "torchrl"
    orders = ("uniform", "n_step", "prioritized")

    def __init__(self, work, order, capacity):
        super().__init__(work, order, capacity)
        from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer, TensorDictReplayBuffer

        storage = LazyTensorStorage(capacity)
        if order == "prioritized":
            try:
                self.buffer = TensorDictPrioritizedReplayBuffer(alpha=ALPHA, beta=BETA, storage=storage)
            except RuntimeError as error:
                raise Unsupported(f"its compiled extension does not load with this torch ({error})") from error
        elif order == "n_step":
            from torchrl.envs.transforms import MultiStepTransform

            transform = MultiStepTransform(n_steps=N_STEP, gamma=DISCOUNT)
            self.buffer = TensorDictReplayBuffer(storage=storage, transform=transform)
        else:
            self.buffer = TensorDictReplayBuffer(storage=storage)

    def item(self, step):
        return self.block({key: leading_axis(value) for key, value in step.items()})[0]

    def block(self, steps):
        import torch
        from tensordict import TensorDict

        rows = [len(steps["rewards"])]
        tensors = {key: torch.from_numpy(value)[:, None] for key, value in steps.items() if key in FLAGS}
        tensors["done"] = tensors["terminated"] | tensors["truncated"]
        reached = {key: torch.from_numpy(value) for key, value in named(steps["next_observations"]).items()}
        seen = {key: torch.from_numpy(value) for key, value in named(steps["observations"]).items()}
        reached |= {"reward": tensors.pop("rewards"), **tensors}
        action = torch.from_numpy(steps["actions"])
        return TensorDict({**seen, "action": action, "next": TensorDict(reached, rows)}, rows)

    def append(self, items):
        add = self.buffer.add
        for item in items:
            add(item)

    def extend(self, block):
        self.buffer.extend(block)

    def fresh(self, rows):
        return lambda: self.buffer.sample(rows)

    def prioritise(self, batch, priorities):
        import torch

        batch["td_error"] = torch.from_numpy(priorities)
        self.buffer.update_tensordict_priority(batch)

    def parts(self, batch):
        return parts_of(batch, batch["next"], batch["action"], batch["next"]["reward"])


FLAGS = ("rewards", "terminated", "truncated")


class Tianshou(Store):
    package = "tianshou"
    orders = ("uniform", "n_step", "prioritized")

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
            return parts_of(named(rows.obs), {"state": self.reached}, rows.act, rows.returns)
        if self.work.name == "cameras":
            return parts_of(dict(rows.obs.items()), dict(rows.obs_next.items()), rows.act, rows.rew)
        return parts_of(named(rows.obs), named(rows.obs_next), rows.act, rows.rew)


KEYS = {"observations": "obs", "actions": "act", "next_observations": "obs_next", "rewards": "rew"}


class Flashbax(Store):
    package = "flashbax"
    orders = ("uniform", "prioritized")
    note = "flashbax: jitted, donated state; its prioritised buffer keeps one observation and pairs neighbouring items"

    def __init__(self, work, order, capacity):
        super().__init__(work, order, capacity)
        import flashbax
        import jax

        make = flashbax.make_prioritised_flat_buffer if order == "prioritized" else flashbax.make_item_buffer
        sizes = {"max_length": capacity, "min_length": 2}
        self.make = lambda rows, many: make(**sizes, sample_batch_size=rows, add_sequences=many)
        self.state = self.make(2, False).init(jax.device_put(self.item(transition(work.steps, 0))))
        self.add_one = jax.jit(self.make(2, False).add, donate_argnums=0)
        self.add_many = jax.jit(self.make(2, True).add, donate_argnums=0)
        if order == "prioritized":
            self.set_priorities = jax.jit(self.make(2, False).set_priorities, donate_argnums=0)
        self.keys = jax.random.key(0)

    def item(self, step):
        if self.order != "prioritized":
            return step
        return {key: value for key, value in step.items() if key != "next_observations"}

    block = item

    def append(self, items):
        import jax

        for item in items:
            self.state = self.add_one(self.state, item)
        jax.block_until_ready(self.state)

    def extend(self, block):
        import jax

        self.state = jax.block_until_ready(self.add_many(self.state, block))

    def fresh(self, rows):
        import jax

        sample = jax.jit(self.make(rows, False).sample)
        split = jax.jit(jax.random.split)

        def draw():
            self.keys, key = split(self.keys)
            return jax.block_until_ready(sample(self.state, key))

        return draw

    def prioritise(self, batch, priorities):
        import jax

        self.state = jax.block_until_ready(self.set_priorities(self.state, batch.indices, priorities))

    def parts(self, batch):
        if self.order == "prioritized":
            steps = batch.experience.first
            nexts = named(batch.experience.second["observations"])
        else:
            steps = batch.experience
            nexts = named(steps["next_observations"])
        seen = named(steps["observations"])
        return parts_of(seen, nexts, steps["actions"], steps["rewards"])


class Reverb(Store):
    package = "dm-reverb"
    orders = ("uniform", "prioritized")
    fill_limit = 10_000
    note = "Reverb: server and client in one process; 10 000 transitions, because it takes a few thousand a second"

    def __init__(self, work, order, capacity):
        super().__init__(work, order, min(capacity, self.fill_limit))
        import reverb
        import tensorflow as tf

        chosen = reverb.selectors.Prioritized(ALPHA) if order == "prioritized" else reverb.selectors.Uniform()
        signature = {
            key: tf.TensorSpec(value.shape, tf.as_dtype(value.dtype))
            for key, value in self.item(transition(work.steps, 0)).items()
        }
        table = reverb.Table(
            "steps", chosen, reverb.selectors.Fifo(), self.capacity, reverb.rate_limiters.MinSize(1),
            signature=signature,
        )  # fmt: skip
        self.server = reverb.Server([table], port=None)
        self.client = self.server.localhost_client()

    def item(self, step):
        seen = named(step["observations"]) | {f"next_{k}": v for k, v in named(step["next_observations"]).items()}
        rest = {key: value for key, value in step.items() if not key.endswith("observations")}
        return {key: leading_axis(value)[0] for key, value in (seen | rest).items()}

    def append(self, items):
        insert, priority = self.client.insert, {"steps": 1.0}
        for item in items:
            insert(item, priority)

    def fresh(self, rows):
        import reverb

        data = reverb.TimestepDataset.from_table_signature(self.client.server_address, "steps", 2 * rows)
        batches = data.batch(rows).as_numpy_iterator()
        return lambda: next(batches)

    def prioritise(self, batch, priorities):
        keys = batch.info.key.tolist()
        self.client.mutate_priorities("steps", updates=dict(zip(keys, priorities.tolist(), strict=True)))

    def parts(self, batch):
        steps = batch.data
        nexts = {key.removeprefix("next_"): value for key, value in steps.items() if key.startswith("next_")}
        return parts_of(steps, nexts, steps["actions"], steps["rewards"])
