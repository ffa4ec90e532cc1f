"""Learning by several processes: rank 0 acts and leads, the others hold copies of the replay stores and follow.

Every round of rank 0's learner begins with a header for all: what to do, with how many updates, and how many new
transitions come behind it. These follow, every rank appends them, draws its own rows and takes the update or the block
of updates, in which the gradients are averaged (``serl_fast.engine.ranks``). So a rank never waits for another rank's
environment, nothing but rank 0 decides anything, and the stores hold the same rows in the same order.
"""

from __future__ import annotations

import enum
import pickle
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from serl_fast.engine import NonFiniteLossError
from serl_fast.engine.ranks import RankError, Ranks, explained
from serl_fast.loop import Appends, Learner
from serl_fast.replay import Mixture

HEARTBEAT = 1.0  # s between two headers while there is nothing to learn


class Order(enum.IntEnum):
    """What rank 0 asks for in a header."""

    IDLE = 0  # take the transitions
    WARM_UP = 1
    UPDATE = 2
    UPDATE_ON_DEMONSTRATIONS = 3
    REPORT_REST = 4
    END = 5


class ForwardedStore:
    """Where rank 0's actor puts its steps: into the store, and aside for the other ranks.

    Args:
        store: where the actor's steps go on this rank.
        place: its number among the stores of all ranks.
        pending: packed transitions, taken by the learner's thread.
    """

    def __init__(self, store: Appends, place: int, pending: deque[bytes]) -> None:
        self.store, self._place, self._pending = store, place, pending

    def append(self, transition: dict[str, Any], continues: bool) -> None:
        """As ``ReplayStore.append``; packed at once, since environments may write to their arrays again."""
        self.store.append(transition, continues)
        self._pending.append(pickle.dumps((self._place, transition, continues), protocol=5))


class SharedLearner(Learner):
    """A learner that is one of several. On rank 0 it gives the orders, elsewhere :meth:`obey` takes them.

    Args:
        ranks: the processes.
        stores: where the actor's steps and what it adds to the demonstrations go on this rank.
        arguments: those of :class:`Learner`; ``config.batch_size`` is this rank's share.
    """

    def __init__(self, ranks: Ranks, stores: tuple[Appends, Appends], *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.ranks, self._stores = ranks, stores
        self._pending: deque[bytes] = deque()
        self._spoke_at = time.monotonic()
        self._broken = self._failed = False
        self._show, self.tick = self.tick, self._tick

    def forwarded(self) -> tuple[ForwardedStore, ForwardedStore]:
        """The stores of online data and of demonstrations as rank 0's actor is to fill them."""
        online, demonstrations = (ForwardedStore(store, i, self._pending) for i, store in enumerate(self._stores))
        return online, demonstrations

    def obey(self, inspect: Callable[[NonFiniteLossError], object]) -> None:
        """Do what rank 0 says until it says that this is the end.

        Args:
            inspect: called with the first update that was not finite. Rank 0 sees the same, perhaps a few updates
                later, and ends the run; until then this rank takes part in its updates.

        Raises:
            RankError: another rank ended or does not answer.
        """
        while True:
            order, updates, transitions = self.ranks.header([0, 0, 0])
            # Of rank 0's own making: the ranks are processes of one job, started together by one user.
            for packed in self.ranks.broadcast() if transitions else ():
                place, transition, continues = pickle.loads(packed)
                self._stores[place].append(transition, continues)
            if order == Order.WARM_UP:
                self._warm_up(updates)
            elif order in (Order.UPDATE, Order.UPDATE_ON_DEMONSTRATIONS):
                try:
                    self._update(self._mixture if order == Order.UPDATE else self._demonstrations_only, updates)
                    self._after_update(updates)
                except NonFiniteLossError as error:
                    if not self._failed:
                        inspect(error)
                    self._failed = True
            elif order == Order.REPORT_REST:
                super().report_rest()
            elif order == Order.END:
                self._compare()
                return

    def close(self) -> None:
        """See :meth:`Learner.close`; rank 0 lets the others end, which see to it by themselves where it failed."""
        super().close()
        if self.ranks.rank == 0 and not self._broken:
            try:
                self._order(Order.END)
                self._compare()
            except RankError as error:
                print(f"after the last update: {error}", file=sys.stderr, flush=True)
        self.ranks.close()

    def _warm_up(self, updates: int) -> None:
        """See :meth:`Learner.prepare`; the others warm up at the same time, for the step waits for all of them."""
        if self.ranks.rank == 0:
            self._order(Order.WARM_UP, updates)
        with explained("warming up"):
            super()._warm_up(updates)

    def _update(self, source: Mixture, updates: int) -> None:
        leads = self.ranks.rank == 0
        if leads:
            self._order(Order.UPDATE if source is self._mixture else Order.UPDATE_ON_DEMONSTRATIONS, updates)
        try:
            with explained("averaging gradients"):
                super()._update(source, updates)
        except BaseException as error:
            self._failed = self._failed or leads
            # Behind a failure within a step the ranks are not at the same place: the others must not be given orders.
            self._broken = not isinstance(error, NonFiniteLossError)
            raise

    def report_rest(self) -> None:
        """See :meth:`Learner.report_rest`; the others give their part of the means."""
        self._order(Order.REPORT_REST)
        super().report_rest()

    def _newest_metrics(self, wait: bool = True) -> dict[str, float] | None:
        """Means over ranks, of which all must ask at the same update: these wait for the device."""
        interval = self.engine.newest_metrics(wait=True)
        return None if interval is None else self.ranks.mean(interval.metrics)

    def _order(self, order: Order, updates: int = 0) -> None:
        """Tell the others what to do, and send what the actor has done meanwhile."""
        packed = [self._pending.popleft() for _ in range(len(self._pending))]
        try:
            self.ranks.header([order, updates, len(packed)])
            if packed:
                self.ranks.broadcast(packed)
        except RankError:
            self._failed = self._broken = True
            raise
        self._spoke_at = time.monotonic()

    def _tick(self) -> None:
        """Show the progress; while there is nothing to learn, let the others know that this rank is alive."""
        self._show()
        if self.ranks.rank == 0 and time.monotonic() - self._spoke_at > HEARTBEAT:
            self._order(Order.IDLE)

    def _compare(self) -> None:
        """The last exchange: say whether all ranks ended with the same parameters, bit for bit, as they should."""
        found = self.ranks.gather(checksum(self.engine.agent.networks))
        if self.ranks.rank or self._failed:  # an update that failed may have been seen at different times
            return
        if len(set(found)) == 1:
            print(f"all {self.ranks.size} ranks have the same parameters (checksum {found[0]:08x})")
        else:
            differing = ", ".join(f"{value:08x}" for value in found)
            print(f"the ranks' parameters differ (checksums {differing}): please report this", file=sys.stderr)


def checksum(networks: torch.nn.ModuleDict) -> int:
    """CRC-32 of all parameters and buffers."""
    value = 0
    for tensor in networks.state_dict().values():
        value = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), value)
    return value
