"""Batches from the replay store as tensors on the learner's device."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch

from serl_fast.core import Batch
from serl_fast.data.pinned import DeviceCopies, PinnedMemory
from serl_fast.replay import Mixture
from serl_fast.replay.mixture import as_mixture
from serl_fast.replay.stream import BatchStream, StreamBatch


class BatchSource(Protocol):
    """What a ``ReplayStore``, a ``Sampler`` and a ``Mixture`` have in common."""

    def empty_batch(self, batch_size: int) -> dict[str, Any]:
        """Uninitialised arrays for a batch."""

    def sample_into(self, batch: dict[str, Any]) -> None:
        """Fill ``batch`` with sampled transitions."""


def in_blocks(source: BatchSource, updates: int) -> BatchSource:
    """A source whose batches of U * B rows are U batches of ``source``, one below the other, drawn at once.

    Where every share of B rows is a whole number, the rows are those that U draws from ``source`` would give. Else U
    draws round each by itself, and here all U * B rows are rounded together.

    Args:
        source: a store, a sampler or a mixture, with the shares that it has now.
        updates: U.
    """
    if updates == 1:
        return source
    mixture = as_mixture(source)  # type: ignore[arg-type]
    return Mixture(mixture.samplers * updates, mixture.shares * updates, mixture.discount, mixture.min_size)


class BatchReader:
    """Draws batches into ONE set of arrays for each number of rows and hands them out as tensors.

    On the CPU the tensors are the arrays' own memory: no copy is made, and a batch is valid until the next call.
    On another device each batch is copied there.

    Args:
        batch_size: rows of one update.
        device: where the batches are needed.
    """

    source = None

    def __init__(self, batch_size: int, device: torch.device | str = "cpu") -> None:
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._memory: dict[int, tuple[dict[str, Any], Batch]] = {}  # by updates: arrays, and as tensors
        self._blocks: dict[tuple[int, int], tuple[BatchSource, BatchSource]] = {}  # by identity and updates

    def read(self, source: BatchSource, updates: int = 1) -> Batch:
        """Sample the batches of ``updates`` updates from ``source``, one below the other."""
        if updates not in self._memory:
            made = source.empty_batch(updates * self.batch_size)
            self._memory[updates] = made, _map(made, torch.from_numpy)
        arrays, tensors = self._memory[updates]
        key = id(source), updates
        if key not in self._blocks:
            self._blocks[key] = source, in_blocks(source, updates)  # holding the source keeps its identity taken
        self._blocks[key][1].sample_into(arrays)
        if self.device.type == "cpu":
            return tensors
        moved: Batch = _map(tensors, lambda tensor: tensor.to(self.device))
        return moved

    def blank(self, source: BatchSource, updates: int = 1) -> Batch:
        """A batch of zeros with the shapes of ``source``."""
        zeros: Batch = _map(source.empty_batch(updates * self.batch_size), np.zeros_like)
        return to_tensors(zeros, self.device)

    def close(self) -> None:
        """Nothing to give back."""


class TensorStream:
    """The batches of a :class:`BatchStream` as tensors, drawn ahead and, for a CUDA device, copied ahead.

    * On the CPU the tensors are the slot's memory; the slot is refilled when the last of them is gone.
    * On a CUDA device the slots are page-locked once, each batch is copied in one go on a stream of its own, and
      while the update on batch i runs, batch i + 1 is on its way. There are two sets of tensors: those of a batch
      are valid for work enqueued, on the stream that was current in ``next``, before the next call of ``next``.
      A batch is then taken from the stream one step before it is used, and is that much older. Not yet run on a
      CUDA device; see ``serl_fast.data.pinned``.
    * Any other device gets plain copies.

    One thread at a time.

    Args:
        stream: where the batches come from; ``close`` closes it too.
        device: where they are needed.
        pin: whether to lock the pages of the slots for a CUDA device. Copies from unlocked ones do not overlap.

    Raises:
        RuntimeError: the pages cannot be locked.
    """

    def __init__(self, stream: BatchStream, device: torch.device | str = "cpu", *, pin: bool = True) -> None:
        self.stream = stream
        self.device = torch.device(device)
        self._appended: tuple[int, ...] = ()
        self._pinned: PinnedMemory | None = None
        self._copies: DeviceCopies | None = None
        self._ahead: tuple[Batch, Any, tuple[int, ...]] | None = None
        if self.device.type == "cuda":
            self._pinned = PinnedMemory(*stream.memory) if pin else None
            self._copies = DeviceCopies(stream, self.device)

    def next(self, timeout: float | None = None) -> Batch:
        """The next batch; arguments and errors are those of ``BatchStream.next``."""
        if self._copies is None:
            batch = self.stream.next(timeout)
            self._appended = batch.appended
            tensors: Batch = _map(batch, torch.from_numpy)
            return tensors if self.device.type == "cpu" else _map(tensors, lambda tensor: tensor.to(self.device))
        if self._ahead is None:
            self._copies.give_back()
            self._ahead = self._start(self._copies, self.stream.next(timeout))
        (tensors, copied, self._appended), self._ahead = self._ahead, None
        self._copies.wait_for(copied)
        self._copies.give_back()
        try:
            following = self.stream.next(0.0)
        except Exception:  # none is ready, or the stream has ended: the next call meets it again
            return tensors
        self._ahead = self._start(self._copies, following)
        return tensors

    @staticmethod
    def _start(copies: DeviceCopies, batch: StreamBatch) -> tuple[Batch, Any, tuple[int, ...]]:
        return *copies.start(batch), batch.appended

    @property
    def behind(self) -> tuple[int, ...]:
        """Per store the transitions that it has got since the batch handed out last was drawn."""
        stores = self.stream.source.stores
        return tuple(store.appended - then for store, then in zip(stores, self._appended, strict=False))

    def close(self) -> None:
        """Wait for copies that are under way, unlock the pages and close the stream. May be called again."""
        self.stream.close()
        self._ahead = None
        if self._copies is not None:
            self._copies.close()
        if self._pinned is not None:
            self._pinned.close()

    def __del__(self) -> None:
        """Locked pages must be unlocked before the slots are freed."""
        if getattr(self, "_pinned", None) is not None:
            self.close()

    def __iter__(self) -> TensorStream:
        """The stream itself: batches without end, until it is closed."""
        return self

    def __next__(self) -> Batch:
        """The next batch; the iteration ends where the stream is closed."""
        try:
            return self.next()
        except RuntimeError:
            if not self.stream.closed:
                raise
        raise StopIteration

    def __enter__(self) -> TensorStream:
        """The stream; it is closed when the block is left."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream."""
        self.close()


def to_tensors(batch: dict[str, Any], device: torch.device | str = "cpu") -> Batch:
    """A nested dict of arrays as tensors on ``device``."""
    tensors: Batch = _map(batch, lambda array: torch.as_tensor(np.asarray(array), device=device))
    return tensors


def _map(tree: Any, function: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _map(value, function) for key, value in tree.items()}
    return function(tree)
