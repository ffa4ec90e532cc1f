"""Numbered policy parameters on their way from the learner to the actor.

A snapshot's memory is a slot: one flat tensor per dtype on the learner's device and, where the actor is elsewhere, its
copy there. The learner copies its parameters into a free slot; nobody writes to it again as long as somebody holds the
snapshot, and then it serves the next one. There are as many slots as snapshots were ever held at once, three or four
in a run, so that nothing is allocated after the first publications.

On a CUDA device all of this is enqueued: the copy into the slot behind the updates before it, the transfer to the
actor's memory on a stream of its own, and a reader is given the newest snapshot that has arrived. Neither side waits
for the other. Not yet run on a CUDA device.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class _Slot:
    """Memory for one snapshot.

    Attributes:
        staged: name -> value on the learner's device, views of one flat tensor per dtype.
        tensors: what readers get: the same, or views of the copies on the actor's device.
        transfers: (flat tensor there, flat tensor here), empty where they are the same.
        on_host: ``tensors`` are in the host's memory and the learner's are not: a reader on the host must wait itself.
        arrived: event after which ``tensors`` may be read; None: at once.
        read: events after which what was read may be overwritten.
    """

    staged: dict[str, Tensor]
    tensors: dict[str, Tensor]
    transfers: list[tuple[Tensor, Tensor]]
    on_host: bool
    arrived: Any = None
    read: deque[Any] = field(default_factory=deque)


@dataclass(frozen=True, eq=False)
class PolicySnapshot:
    """A complete copy of what acting needs, which nobody writes to as long as the snapshot is held.

    Attributes:
        version: 1, 2, 3 ... in the order of publication.
        updates: gradient steps taken when it was made.
        tensors: name -> value; valid while the snapshot is held.
    """

    version: int
    updates: int
    tensors: dict[str, Tensor]
    _slot: _Slot | None = field(default=None, repr=False)
    _cuda: Any = field(default=None, repr=False)

    def load_into(self, networks: nn.ModuleDict) -> None:
        """Copy the values into ``networks``, in place; networks that acting does not need stay as they are.

        Between CUDA devices the copy is enqueued on the current stream, behind the snapshot's arrival.
        """
        theirs = trained_tensors(networks)
        slot, stream = self._slot, None
        if self._cuda is not None and slot is not None:
            if slot.on_host:
                slot.arrived.synchronize()
            else:
                stream = self._cuda.current_stream(next(iter(self.tensors.values())).device)
                stream.wait_event(slot.arrived)
        with torch.no_grad():
            torch._foreach_copy_([theirs[name] for name in self.tensors], list(self.tensors.values()))
        if stream is not None and slot is not None:
            done = self._cuda.Event()
            done.record(stream)
            slot.read.append(done)

    def arrived(self) -> bool:
        """Whether it can be read without waiting."""
        return self._cuda is None or self._slot is None or bool(self._slot.arrived.query())


class PolicyPublisher:
    """Hands the newest snapshot from the learner's thread to the actor's.

    Args:
        device: where the actor reads; by default where the learner's parameters are.
        cuda: streams and events; by default ``torch.cuda`` for parameters on a CUDA device, a stand-in in tests.
    """

    def __init__(self, device: torch.device | str | None = None, cuda: Any = None) -> None:
        self._device = None if device is None else torch.device(device)
        self._cuda = cuda
        self._side: Any = None
        self._lock = threading.Lock()
        self._published: deque[PolicySnapshot] = deque()  # the newest that has arrived, and those under way
        self._free: deque[_Slot] = deque()
        self._version = 0

    def publish(self, networks: nn.ModuleDict, names: tuple[str, ...], updates: int) -> PolicySnapshot:
        """Copy the trained tensors of ``names`` and make them the newest snapshot. Called by the learner only."""
        chosen = nn.ModuleDict({name: networks[name] for name in names})
        tensors = {name: tensor.detach() for name, tensor in trained_tensors(chosen).items()}
        if self._cuda is None and any(tensor.is_cuda for tensor in tensors.values()):
            self._cuda = torch.cuda
        slot = self._free_slot(tensors)
        if self._cuda is None:
            _fill(slot, tensors)
        else:
            self._enqueue(slot, tensors)
        self._version += 1
        snapshot = PolicySnapshot(self._version, updates, slot.tensors, slot, self._cuda)
        # The slot is free again when the last holder is gone.
        weakref.finalize(snapshot, self._free.append, slot).atexit = False
        with self._lock:
            self._published.append(snapshot)
            self._forget_old()
        return snapshot

    def newest(self, after: int = 0) -> PolicySnapshot | None:
        """The newest snapshot that has arrived and whose version exceeds ``after``, or None. Waits for nothing."""
        with self._lock:
            self._forget_old()
            first = self._published[0] if self._published else None
        return first if first is not None and first.version > after and first.arrived() else None

    def _forget_old(self) -> None:
        """Let go of what a newer snapshot that has arrived replaces."""
        while len(self._published) > 1 and self._published[1].arrived():
            self._published.popleft()

    def _free_slot(self, tensors: dict[str, Tensor]) -> _Slot:
        while self._free:
            slot = self._free.popleft()
            if slot.staged.keys() == tensors.keys():
                return slot  # another agent's slot is dropped
        return _make_slot(tensors, self._device)

    def _enqueue(self, slot: _Slot, tensors: dict[str, Tensor]) -> None:
        """Copy into the slot behind the learner's work, and on to the actor's device beside it."""
        device = next(iter(tensors.values())).device
        current = self._cuda.current_stream(device)
        while slot.read:  # its last snapshot has arrived long since: it was held until a newer one had
            current.wait_event(slot.read.popleft())
        _fill(slot, tensors, transfer=False)
        stream, context = current, contextlib.nullcontext()
        if slot.transfers:
            if self._side is None:
                self._side = self._cuda.Stream(device)
            stream, context = self._side, self._cuda.stream(self._side)
            stream.wait_stream(current)
        with context:
            for there, here in slot.transfers:
                there.copy_(here, non_blocking=True)
        slot.arrived = self._cuda.Event()
        slot.arrived.record(stream)


def _make_slot(tensors: dict[str, Tensor], device: torch.device | None) -> _Slot:
    """Memory for ``tensors``, flat for each dtype, and as much on ``device`` where that is another."""
    staged: dict[str, Tensor] = {}
    arrived: dict[str, Tensor] = {}
    transfers = []
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors.values()):
        group = {name: tensor for name, tensor in tensors.items() if tensor.dtype == dtype}
        here = next(iter(group.values())).device
        size = sum(tensor.numel() for tensor in group.values())
        flat = torch.empty(size, dtype=dtype, device=here)
        staged.update(_views(flat, group))
        if device is None or device == here:
            continue
        pinned = here.type == "cuda" and device.type == "cpu"
        there = torch.empty(size, dtype=dtype, device=device, pin_memory=pinned)
        arrived.update(_views(there, group))
        transfers.append((there, flat))
    on_host = bool(transfers) and transfers[0][0].device.type == "cpu"
    return _Slot(staged, arrived or staged, transfers, on_host)


def _views(flat: Tensor, group: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = flat.split([tensor.numel() for tensor in group.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(group.items(), parts, strict=True)}


def _fill(slot: _Slot, tensors: dict[str, Tensor], *, transfer: bool = True) -> None:
    with torch.no_grad():
        torch._foreach_copy_([slot.staged[name] for name in tensors], list(tensors.values()))
        for there, here in slot.transfers if transfer else ():
            there.copy_(here)


def trained_tensors(networks: nn.ModuleDict) -> dict[str, Tensor]:
    """Trained parameters and buffers by name; frozen weights are the same everywhere and stay out."""
    tensors: dict[str, Tensor] = {name: p for name, p in networks.named_parameters() if p.requires_grad}
    tensors.update(networks.named_buffers())
    return tensors
