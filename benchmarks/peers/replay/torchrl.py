"""TorchRL's replay buffers."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.peers.replay.store import ALPHA, BETA, Store, Unsupported, leading_axis
from benchmarks.peers.replay.transitions import DISCOUNT, N_STEP, named


class TorchRL(Store):
    """TorchRL: TensorDictReplayBuffer on a LazyTensorStorage, defaults, batches as tensors; n-step returns by its
    MultiStepTransform, made while appending.
    """

    modules = ("torchrl", "tensordict")
    package = "torchrl"
    orders = ("uniform", "n_step", "prioritized")
    lacks: ClassVar = {"n_step": ("terminated", "truncated")}  # they are those of the first step

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
        nexts = batch["next"]
        flags = {} if self.order == "n_step" else {name: nexts[name] for name in ("terminated", "truncated")}
        return self.parts_of(batch, nexts, batch["action"], nexts["reward"], **flags)


FLAGS = ("rewards", "terminated", "truncated")
