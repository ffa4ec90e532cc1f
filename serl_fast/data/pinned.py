"""Batches in memory that a CUDA device reads by itself: page-locked slots, copied while an update runs.

None of this was run on a CUDA device yet: the tests drive it with stand-ins for the runtime, streams and events.
"""

from __future__ import annotations

from typing import Any

import torch

from serl_fast.core import Batch
from serl_fast.replay.layout import Layout
from serl_fast.replay.stream import BatchStream, StreamBatch


class PinnedMemory:
    """Locks the pages of a block of memory until ``close``, through torch's own handle of the CUDA runtime.

    Args:
        address: of the first byte.
        nbytes: bytes.
        cudart: the runtime; None for ``torch.cuda.cudart()``.

    Raises:
        RuntimeError: the runtime refuses; the message has its error code.
    """

    def __init__(self, address: int, nbytes: int, cudart: Any = None) -> None:
        self._cudart = torch.cuda.cudart() if cudart is None else cudart
        self._address: int | None = None
        advice = "allow more locked memory (ulimit -l), make fewer slots, or pass pin=False"
        _check(self._cudart.cudaHostRegister(address, nbytes, 0), f"locking {nbytes} bytes in memory", advice)
        self._address = address

    def close(self) -> None:
        """Unlock the pages. The device must have done all its copies from them."""
        if self._address is not None:
            address, self._address = self._address, None
            _check(self._cudart.cudaHostUnregister(address), "unlocking memory", "a copy may have failed before")


def _check(code: Any, what: str, advice: str) -> None:
    number = int(getattr(code, "value", code))  # an enumeration, or a plain number
    if number != 0:
        raise RuntimeError(f"{what} failed with CUDA error {number}; {advice}")


class DeviceCopies:
    """Two blocks on a device, filled in turn on a CUDA stream of their own.

    A block is overwritten only after all work that was enqueued on the current stream before the copy was asked
    for. So the copy of batch i + 1, asked for before the update on batch i is enqueued, runs beside that update and
    waits for the update on batch i - 1. A slot is given back when its copy is done.

    Args:
        stream: where the batches come from.
        device: where they are needed.
        cuda: streams and events; ``torch.cuda``, except in tests.
    """

    def __init__(self, stream: BatchStream, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._cuda, self._device = cuda, device
        self._side = cuda.Stream(device)
        self._blocks = [torch.empty(stream.slot_bytes, dtype=torch.uint8, device=device) for _ in range(2)]
        self._batches = [
            block_tensors(block, stream.layout, stream.offsets, stream.batch_size) for block in self._blocks
        ]
        self._turn = 0
        self._most = stream.slots - 1
        self._pending: list[tuple[Any, StreamBatch]] = []  # events, and the batches being copied before them

    def start(self, batch: StreamBatch) -> tuple[Batch, Any]:
        """Copy a batch to the block whose turn it is.

        Returns:
            The tensors, and the event that a stream must wait for before it reads them.
        """
        turn, self._turn = self._turn, 1 - self._turn
        self._side.wait_stream(self._cuda.current_stream(self._device))
        with self._cuda.stream(self._side):
            self._blocks[turn].copy_(torch.from_numpy(batch.block), non_blocking=True)
        copied = self._cuda.Event()
        copied.record(self._side)
        self._pending.append((copied, batch))
        return self._batches[turn], copied

    def wait_for(self, copied: Any) -> None:
        """Let the current stream wait for a copy; the host goes on."""
        self._cuda.current_stream(self._device).wait_event(copied)

    def give_back(self) -> None:
        """Give back the slots whose copies are done, and wait for the oldest one where none would be left."""
        while self._pending and self._pending[0][0].query():
            self._pending.pop(0)
        while len(self._pending) >= self._most:
            self._pending.pop(0)[0].synchronize()

    def close(self) -> None:
        """Wait until all copies are done."""
        for copied, _ in self._pending:
            copied.synchronize()
        self._pending.clear()


class SideStream:
    """Copies into memory that steps on the current stream read, on a CUDA stream of their own.

    A step reads what was announced to it. So a copy over memory that no announcement holds any more runs beside the
    step that was enqueued last, and after the steps that were enqueued before the newest announcement: those may have
    read an older one. A copy over memory that is still announced runs after every step enqueued so far.

    Args:
        device: where the memory is.
        cuda: streams and events; ``torch.cuda``, except in tests.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._cuda, self._device = cuda, device
        self._side = cuda.Stream(device)
        self._announced: Any = None
        self._copying = False

    def copies(self, over_announced: bool) -> Any:
        """A context in which copies are enqueued; ``over_announced``: see the class."""
        if over_announced:
            self._side.wait_stream(self._cuda.current_stream(self._device))
        elif self._announced is not None:
            self._side.wait_event(self._announced)
        self._copying = True
        return self._cuda.stream(self._side)

    def join(self) -> None:
        """Let the current stream wait for the copies; the host goes on."""
        if self._copying:
            copied = self._cuda.Event()
            copied.record(self._side)
            self._cuda.current_stream(self._device).wait_event(copied)
        self._copying = False

    def announced(self) -> None:
        """What the current stream has been told last is what steps read from here on."""
        self._announced = self._cuda.Event()
        self._announced.record(self._cuda.current_stream(self._device))


def block_tensors(block: torch.Tensor, layout: Layout, offsets: tuple[int, ...], rows: int) -> Batch:
    """The arrays of a batch as tensors over one block of uint8 that holds them all."""
    tensors = []
    for column, offset in zip(layout.wanted, offsets, strict=True):
        dtype: torch.dtype = getattr(torch, column.dtype)
        shape = (rows, *column.shape)
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        tensors.append(block[offset : offset + nbytes].view(dtype).view(shape))
    batch: Batch = layout.batch(tensors)  # type: ignore[arg-type]
    return batch
