"""Batches drawn ahead by threads of the C++ core."""

from __future__ import annotations

import operator
import threading
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.replay import _native
from serl_fast.replay.layout import Batch
from serl_fast.replay.limiter import RateLimiter, seconds
from serl_fast.replay.mixture import Mixture, as_mixture
from serl_fast.replay.sampler import Sampler
from serl_fast.replay.store import ReplayStore


class StreamBatch(dict[str, Any]):
    """A batch whose arrays are the memory of a slot; the slot is refilled when the last of them is gone.

    Attributes:
        number: 0 for the stream's first batch.
        appended: per store the transitions it had ever stored when the batch was drawn; the batch knows them all.
        counts: rows from each store.
    """

    __slots__ = ("_lease", "_stores")

    def __init__(self, arrays: Batch, lease: Any, stores: tuple[ReplayStore, ...]) -> None:
        super().__init__(arrays)
        self._lease = lease
        self._stores = stores

    @property
    def number(self) -> int:
        """See the class."""
        return self._lease.number

    @property
    def appended(self) -> tuple[int, ...]:
        """See the class."""
        return tuple(self._lease.appended)

    @property
    def counts(self) -> tuple[int, ...]:
        """See the class."""
        return tuple(self._lease.counts)

    @property
    def behind(self) -> tuple[int, ...]:
        """Per store the transitions that it has got since the batch was drawn."""
        return tuple(store.appended - then for store, then in zip(self._stores, self.appended, strict=True))

    @property
    def block(self) -> npt.NDArray[np.uint8]:
        """All arrays of the batch in one, uint8 [N]: for a copy in one go. See ``BatchStream.offsets``."""
        return self._lease.block


class BatchStream:
    """Batches drawn ahead: while one is used, threads of the C++ core fill the next ones.

    ::

        with BatchStream(mixture, 256) as stream:
            for batch in stream:
                update(batch["observations"], batch["actions"])

    * **Order.** Batch i is the one that ``source.sample`` would have returned as its i-th, however many threads
      there are, as long as contents and shares stay the same, nobody else draws and ``max_behind`` is not set.
      The stores' ``draws`` count what was drawn ahead, too.
    * **Memory.** The arrays are a slot's own memory, also as tensors (``torch.from_numpy``, ``from_dlpack``). A slot
      is refilled when the last array, view or tensor of its batch is gone, and not before: what is kept stays
      valid, and keeping all slots is an error. Copy what is to be kept.
    * **Age.** Batch i is drawn after batch i - ``slots`` was given up, so it knows every transition stored until
      then. With ``max_behind`` a batch of which a store has since got more transitions is drawn again before it is
      handed out, by the thread that asks for it, with the next draw number; the rows are not counted again.
    * **Waiting.** The threads sleep until half of the slots are free or no batch is ready, while no store holds
      enough, and while the limiter forbids more samples; for the latter two they look every 2 and 20 ms.
    * **Errors** of the threads are raised by ``next``, which from then on raises nothing else.
    * A forked child cannot use the stream; it gets a RuntimeError.

    Any thread may call anything; with several consumers there must be more slots than they hold at once.

    Args:
        source: a mixture, a sampler or a store (with a discount of 0.99). It may be used and changed meanwhile.
        batch_size: rows, at least 1.
        slots: batches in memory, at least 2: one in use while the next is filled.
        threads: that fill slots, 1 … 64. Batches of images are copied by several threads anyway
            (``SERL_FAST_THREADS``), so more than one pays for small batches alone.
        max_behind: transitions; None for no limit.
        limiter: asked before every batch is drawn; ``close`` takes back the count of batches not handed out.

    Attributes:
        layout: the arrays of a batch.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """

    def __init__(
        self,
        source: ReplayStore | Sampler | Mixture,
        batch_size: int,
        *,
        slots: int = 4,
        threads: int = 1,
        max_behind: int | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        for name, value, least in (("batch size", batch_size, 1), ("slots", slots, 2), ("threads", threads, 1)):
            if operator.index(value) < least:
                raise ValueError(f"{name}: {value} is given; it is at least {least}")
        if max_behind is not None and operator.index(max_behind) < 0:
            raise ValueError(f"max_behind is {max_behind}; it is not negative, or None for no limit")
        self.source = as_mixture(source)
        self.layout = self.source.layout
        self.batch_size = batch_size
        self.slots = slots
        self.limiter = limiter
        self._schedule = self.source.schedule
        self._native = _native.BatchStream(
            self.source._native,
            batch_size,
            slots,
            threads,
            max_behind,
            self._schedule is not None,
            limiter._native if limiter else None,
        )
        # Batches beyond these are not drawn before an earlier one is given up.
        self._scheduled = self.source.batches
        self._counting = threading.Lock()
        if self._schedule is not None:
            for _ in range(slots):
                self._native.schedule(list(self._schedule(self._scheduled)))
                self._scheduled += 1

    def next(self, timeout: float | None = None) -> StreamBatch:
        """The next batch.

        Args:
            timeout: seconds to wait, 0 for not at all; None for no limit. Ctrl-C ends the wait.

        Returns:
            A nested dict of writable arrays, and what it knows of its age.

        Raises:
            TimeoutError: there was no batch in time; the message says what is missing.
            RuntimeError: the stream is closed, all of its slots hold batches that are still in use, or this is
                another process than the one that made it.
            Exception: what stopped a thread that fills the slots.
        """
        if self._schedule is None:
            given = self._take(timeout)
            with self._counting:
                self.source.batches += 1
        else:
            with self._counting:
                shares = list(self._schedule(self._scheduled))  # before a batch is taken: it may raise
                given = self._take(timeout)
                self.source.batches += 1
                self._native.schedule(shares)
                self._scheduled += 1
        return StreamBatch(*given, self.source.stores)

    def _take(self, timeout: float | None) -> tuple[Batch, Any]:
        given = self._native.next(seconds(timeout))
        if given is None:
            missing = self._native.waiting_for
            raise TimeoutError(f"no batch within {timeout:g} s" + (f"; it waits for {missing}" if missing else ""))
        return given

    def close(self) -> None:
        """End the threads and wait for them. Arrays in use stay valid; calls that wait raise."""
        self._native.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._native.closed

    @property
    def drawn_again(self) -> int:
        """Batches drawn a second time because of ``max_behind``."""
        return self._native.drawn_again

    @property
    def memory(self) -> tuple[int, int]:
        """Address and bytes of the one block that holds all slots, for who wants to lock its pages."""
        return self._native.address, self._native.nbytes

    @property
    def slot_bytes(self) -> int:
        """Bytes of ``StreamBatch.block``."""
        return self._native.slot_bytes

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each array of ``layout.wanted`` begins in ``StreamBatch.block``: multiples of 64 bytes."""
        places = zip(self.layout.names, self._native.offsets, strict=False)
        return tuple(offset for name, offset in places if name)

    def __iter__(self) -> BatchStream:
        """The stream itself: batches without end, until it is closed."""
        return self

    def __next__(self) -> StreamBatch:
        """The next batch; the iteration ends where the stream is closed."""
        try:
            return self.next()
        except RuntimeError:
            if not self.closed:
                raise
        raise StopIteration

    def __enter__(self) -> BatchStream:
        """The stream; it is closed when the block is left."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream."""
        self.close()

    def __repr__(self) -> str:
        """What it draws, and how far ahead."""
        return f"BatchStream({self.source!r}, {self.batch_size}, slots={self.slots})"
