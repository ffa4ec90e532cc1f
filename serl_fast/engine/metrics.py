"""Metrics on their way to the host: a ring on the device, read without waiting.

Every update writes its metrics into one row of the ring, inside the step. The host knows which update wrote which row,
asks for a copy once per interval, and finds the means when the copy has arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

ROWS = 256  # updates of an interval that count; of a longer one the latest
COLUMNS = 64  # metrics of an update


class Interval(NamedTuple):
    """Metrics of some updates in a row.

    Attributes:
        updates: gradient steps of the engine up to its last update.
        metrics: name -> mean over the updates that have it, those without the actor left out for the actor's; the
            last value for ``engine/*``, which are counts and states.
    """

    updates: int
    metrics: dict[str, float]


class Readback:
    """Copies of a tensor on the host, one at a time, made without waiting for the device.

    Not yet run on a CUDA device.

    Args:
        tensor: of fixed address.
        cuda: events and streams; ``torch.cuda`` for a tensor of a CUDA device, and a stand-in in tests. None: the copy
            is made at once.
    """

    def __init__(self, tensor: Tensor, cuda: Any = None) -> None:
        self._tensor = tensor
        self._cuda = torch.cuda if cuda is None and tensor.device.type == "cuda" else cuda
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
        self._event: Any = None
        self.pending = False

    def start(self) -> None:
        """Ask for a copy of the value that the tensor has after everything enqueued so far."""
        assert not self.pending
        self._host.copy_(self._tensor, non_blocking=True)
        if self._cuda is not None:
            self._event = self._event or self._cuda.Event()
            self._event.record(self._cuda.current_stream(self._tensor.device))
        self.pending = True

    def arrived(self, wait: bool = False) -> Tensor | None:
        """The copy, once; None while it is on its way. Valid until the next :meth:`start`."""
        if not self.pending:
            return None
        if self._cuda is not None:
            if wait:
                self._event.synchronize()
            elif not self._event.query():
                return None
        self.pending = False
        return self._host


class MetricsRing:
    """The last updates' metrics, written on the device.

    Args:
        device: of the engine.
        cuda: see :class:`Readback`.

    Attributes:
        rows: float32 [R, C], one row for each update.
        position: int64 [1], the row that the next update writes.
    """

    def __init__(self, device: torch.device, cuda: Any = None) -> None:
        self.rows = torch.zeros(ROWS, COLUMNS, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self._readback = Readback(self.rows, cuda)
        self._next = 0  # the row that the next update writes, as the host knows it
        self._written: list[tuple[int, tuple[str, ...]]] = []  # since the last request
        self._requested: list[tuple[int, tuple[str, ...]]] = []
        self._requested_at = 0
        self._ready: deque[Interval] = deque()

    def write(self, metrics: Sequence[Tensor]) -> None:
        """Write the next row, on the device.

        Raises:
            ValueError: there are more metrics than columns.
        """
        if len(metrics) > COLUMNS:
            raise ValueError(f"an update has {len(metrics)} metrics and at most {COLUMNS} fit; let losses return fewer")
        if metrics:
            row = torch.stack([value.detach().float().reshape(()) for value in metrics])
            self.rows.index_copy_(0, self.position, pad(row, (0, COLUMNS - len(metrics))).unsqueeze(0))
        self.position.copy_((self.position + 1) % ROWS)

    def note(self, names: Iterable[str]) -> None:
        """Say what an update that was enqueued has written."""
        self._written.append((self._next, tuple(names)))
        self._next = (self._next + 1) % ROWS
        if len(self._written) > ROWS:
            del self._written[0]

    def realign(self) -> None:
        """Let the next update write the row that the host expects, after a call that ended in its middle."""
        self.position.fill_(self._next)

    def request(self, updates: int) -> None:
        """End an interval and ask for its metrics; waits for those of the interval before if they have not arrived."""
        self._collect(wait=True)
        self._readback.start()
        self._requested, self._written, self._requested_at = self._written, [], updates

    def newest(self, wait: bool = False) -> Interval | None:
        """The next interval whose metrics have arrived, each once; None while there is none."""
        self._collect(wait)
        return self._ready.popleft() if self._ready else None

    def tensors(self) -> list[Tensor]:
        """What an update writes."""
        return [self.rows, self.position]

    def forget(self) -> None:
        """Leave out what was written since the last request."""
        self._written.clear()

    def _collect(self, wait: bool) -> None:
        rows = self._readback.arrived(wait)
        if rows is None:
            return
        found: dict[str, list[float]] = {}
        values = rows.tolist()
        for row, names in self._requested:
            for name, value in zip(names, values[row], strict=False):  # columns beyond the names are empty
                found.setdefault(name, []).append(value)
        means = {
            name: column[-1] if name.startswith("engine/") else sum(column) / len(column)
            for name, column in found.items()
        }
        self._ready.append(Interval(self._requested_at, means))
