"""How the learner gets its batches: drawn in line, ahead by threads, or on the device inside the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from serl_fast.core import Batch, DeviceSource
from serl_fast.data.batches import BatchReader, TensorStream, in_blocks
from serl_fast.data.device_replay import DeviceReplay, Placement, choose_placement
from serl_fast.replay import BatchStream, Mixture, ReplayStore


class Reader(Protocol):
    """What the learner asks for batches: those of one call of the engine, which takes one update or a block of them."""

    @property
    def source(self) -> DeviceSource | None:
        """What the engine draws from inside its step; None where batches are handed to it."""

    def read(self, source: Mixture, updates: int = 1) -> Batch | None:
        """The next batches of ``source``, valid until the next call; None where the engine draws them.

        Those of several updates lie one below the other.
        """

    def blank(self, source: Mixture, updates: int = 1) -> Batch | None:
        """A batch of zeros like those of ``source``, to warm up with; None where the engine draws it."""

    def close(self) -> None:
        """Give back threads and memory."""


class StreamReader:
    """Batches drawn ahead by the core's threads and copied to a CUDA device while the step before runs.

    A batch may lack the transitions that came while it waited, at most ``slots`` batches. Those of calls with another
    number of updates than ``updates``, which are exceptions, are drawn in line; after ``slots`` of them in a row what
    was drawn ahead is given up, for it would be older than that.

    Args:
        batch_size: rows of one update.
        device: where batches are needed.
        updates: of the calls that are drawn ahead.
        slots: of these calls, in page-locked memory.
    """

    source = None

    def __init__(self, batch_size: int, device: torch.device, updates: int = 1, slots: int = 4) -> None:
        self._in_line = BatchReader(batch_size, device)
        self._updates, self._slots, self._others = updates, slots, 0
        self._stream: TensorStream | None = None
        self._drawn_from: Mixture | None = None

    def read(self, source: Mixture, updates: int = 1) -> Batch:
        """See :class:`Reader`. Another source than before ends the stream of that one."""
        if updates != self._updates:
            self._others += 1
            if self._others == self._slots:
                self.close()
            return self._in_line.read(source, updates)
        self._others = 0
        if self._stream is None or self._drawn_from is not source:
            self.close()
            rows = updates * self._in_line.batch_size
            stream = BatchStream(in_blocks(source, updates), rows, slots=self._slots)  # type: ignore[arg-type]
            self._stream, self._drawn_from = TensorStream(stream, self._in_line.device), source
        return self._stream.next()

    def blank(self, source: Mixture, updates: int = 1) -> Batch:
        """See :class:`Reader`."""
        return self._in_line.blank(source, updates)

    def close(self) -> None:
        """End the threads."""
        if self._stream is not None:
            self._stream.close()
        self._stream = self._drawn_from = None


class DeviceReader:
    """Keeps a mirror of the stores up to date; the engine draws from it inside its step.

    Args:
        replay: of all stores that mixtures will name.
    """

    def __init__(self, replay: DeviceReplay) -> None:
        self.source = replay

    def read(self, source: Mixture, updates: int = 1) -> None:
        """Let the next call draw from the stores of ``source``, in its shares, as they are now.

        Raises:
            ValueError: none of them holds a transition.
        """
        shares = dict(zip(map(id, source.stores), source.shares, strict=True))
        self.source.shares = [shares.get(id(store), 0.0) for store in self.source.stores]
        self.source.sync()
        if not any(self.source.counts):
            raise ValueError(f"there is nothing to draw from: {source!r}")

    def blank(self, source: Mixture, updates: int = 1) -> None:
        """Nothing: the mirror holds zeros to warm up with."""

    def close(self) -> None:
        """Nothing to give back."""


def make_reader(
    placement: Placement,
    stores: list[ReplayStore],
    batch_size: int,
    discount: float,
    device: torch.device,
    synchronous: bool = False,
    updates: int = 1,
    room: Sequence[int] | None = None,
) -> tuple[Reader, str]:
    """The reader that suits ``device``, and a line that says where the replay is and why.

    On the CPU batches are drawn in line: threads that draw ahead would take cores from the step. So they are where
    a run is to be ``synchronous``, for what is drawn ahead depends on who was faster.

    Args:
        placement: what was asked for.
        stores: what mixtures will draw from.
        batch_size: rows of one update.
        discount: gamma, in [0, 1].
        device: where batches are needed.
        synchronous: see above.
        updates: of most calls of the engine, which are drawn ahead.
        room: of each store on the device, see ``DeviceReplay``.

    Raises:
        ValueError: ``placement`` is unknown.
        MemoryError: the device has no room for the replay that was asked for.
    """
    on_device, why = choose_placement(placement, stores, device, room)
    if on_device:
        return DeviceReader(DeviceReplay(stores, batch_size, discount=discount, room=room, device=device)), why
    if device.type == "cuda" and not synchronous:
        return StreamReader(batch_size, device, updates), why
    return BatchReader(batch_size, device), why
