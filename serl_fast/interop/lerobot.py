"""The replay store with the interface of the buffer in LeRobot's learner (``lerobot.rl.buffer``); needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from serl_fast.replay import BatchStream, ReplayStore
from serl_fast.replay.layout import Batch


class LeRobotReplayBuffer:
    """``add``, ``sample`` and ``get_iterator`` as LeRobot's ``ReplayBuffer`` has them, over the store.

    A state is kept once whatever ``optimize_memory`` would have said, ``done`` and ``truncated`` are kept apart, and a
    truncated step keeps its own next state.

    Args:
        capacity: transitions.
        device: where batches go.
        state_keys: not looked at, as in the original.
        image_augmentation_function: of a batch of images ``[N, C, H, W]``; by default a shift of each image by up to
            4 pixels, its edge repeated.
        use_drq: whether it is applied, to every image (key ``observation.image…``) of state and next state.
        storage_device: must be the CPU.
        optimize_memory: not looked at.
        seed: of the sampling.

    Attributes:
        store: made by the first ``add``.

    Source: ``lerobot/rl/buffer.py``, 0.4.
    """

    def __init__(
        self,
        capacity: int,
        device: torch.device | str = "cpu",
        state_keys: Sequence[str] | None = None,
        image_augmentation_function: Callable[[Tensor], Tensor] | None = None,
        use_drq: bool = True,
        storage_device: str = "cpu",
        optimize_memory: bool = False,
        seed: int = 0,
    ) -> None:
        if torch.device(storage_device).type != "cpu":
            raise ValueError(f"storage_device is {storage_device!r}; the store keeps its transitions in main memory")
        self.capacity = capacity
        self.device = torch.device(device)
        self.augment = (image_augmentation_function or random_shift) if use_drq else None
        self.seed = seed
        self.store: ReplayStore | None = None

    def __len__(self) -> int:
        """Number of transitions held now."""
        return 0 if self.store is None else len(self.store)

    def add(
        self,
        state: Mapping[str, Tensor],
        action: Tensor,
        reward: float,
        next_state: Mapping[str, Tensor],
        done: bool,
        truncated: bool,
        complementary_info: Mapping[str, Any] | None = None,
    ) -> None:
        """Store one transition; tensors have a leading axis of 1, as LeRobot's have."""
        transition = {
            "observations": {key: _array(value) for key, value in state.items()},
            "next_observations": {key: _array(value) for key, value in next_state.items()},
            "actions": _array(action),
            "rewards": float(reward),
            # LeRobot's done means terminated; where both are set, the end by time wins nothing.
            "terminated": bool(done),
            "truncated": bool(truncated) and not bool(done),
            **{key: _array(value) for key, value in (complementary_info or {}).items()},
        }
        if self.store is None:
            self.store = ReplayStore.from_example(transition, self.capacity, self.seed)
        self.store.append(transition)

    def sample(self, batch_size: int) -> dict[str, Any]:
        """Draw a batch: state, action, reward, next_state, done, truncated, complementary_info."""
        if self.store is None:
            raise RuntimeError("the buffer is empty; add a transition before sampling")
        return self._transition(self.store.sample(min(batch_size, len(self.store))))

    def get_iterator(
        self, batch_size: int, async_prefetch: bool = True, queue_size: int = 2
    ) -> Iterator[dict[str, Any]]:
        """Batches without end, drawn ahead in the background if ``async_prefetch``; ``queue_size`` of them."""
        while not async_prefetch or self.store is None:
            yield self.sample(batch_size)
        with BatchStream(self.store, batch_size, slots=max(2, queue_size)) as stream:
            for batch in stream:
                # The slot is filled anew after this: the consumer gets memory of its own.
                yield self._transition(batch, copy=True)

    def _transition(self, batch: Batch, copy: bool = False) -> dict[str, Any]:
        assert self.store is not None
        tensors = {key: self._tensors(value, copy) for key, value in batch.items()}
        if self.augment is not None:
            for side in ("observations", "next_observations"):
                images = [key for key in tensors[side] if key.startswith("observation.image")]
                tensors[side].update({key: self.augment(tensors[side][key]) for key in images})
        standard = {"actions", "rewards", "terminated", "truncated"}
        extras = [field.name for field in self.store.schema.steps if field.name not in standard]
        return {
            "state": tensors["observations"],
            "action": tensors["actions"],
            "reward": tensors["rewards"],
            "next_state": tensors["next_observations"],
            "done": tensors["terminated"].float(),
            "truncated": tensors["truncated"].float(),
            "complementary_info": {name: tensors[name] for name in extras} or None,
        }

    def _tensors(self, tree: Any, copy: bool) -> Any:
        if isinstance(tree, Mapping):
            return {key: self._tensors(value, copy) for key, value in tree.items()}
        return torch.from_numpy(tree).to(self.device, copy=copy)


def random_shift(images: Tensor, pad: int = 4) -> Tensor:
    """Shift each image ``[N, C, H, W]`` by its own -pad … pad pixels in both directions, its edge repeated.

    Source: Kostrikov et al., "Image augmentation is all you need", 2020 (DrQ).
    """
    n, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad), mode="replicate")
    down, right = torch.randint(0, 2 * pad + 1, (2, n, 1), device=images.device)
    rows = (torch.arange(height, device=images.device) + down)[:, None, :, None]  # [N, 1, H, 1]
    columns = (torch.arange(width, device=images.device) + right)[:, None, None, :]
    number = torch.arange(n, device=images.device)[:, None, None, None]
    return padded[number, torch.arange(channels, device=images.device)[None, :, None, None], rows, columns]


def _array(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    tensor = value.detach().cpu()
    return (tensor.squeeze(0) if tensor.ndim else tensor).numpy()
