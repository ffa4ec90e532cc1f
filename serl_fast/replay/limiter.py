"""How many samples may be drawn for every transition that is inserted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serl_fast.replay import _native


class RateLimiter:
    """Holds the ratio of sampled rows to inserted transitions, however fast the actor and the learner are.

    With ``cursor = inserted · samples_per_insert - sampled`` and ``target = min_size · samples_per_insert``,

    * a sample of k rows may be drawn when afterwards inserted ≥ min_size and cursor ≥ target - slack;
    * an insert may be made when afterwards cursor ≤ target + slack, or fewer than min_size were inserted before.

    Set it as ``store.limiter`` and give it to the ``BatchStream`` that draws from the store. Whoever may not go on
    waits, without the interpreter lock; Ctrl-C works. A batch of B rows counts B, so a UTD ratio u (updates per
    transition) is ``samples_per_insert = u · B``.

    Source: Cassirer et al., "Reverb: a framework for experience replay", 2021, section 3.4. Deviation: see
    ``csrc/include/serl_fast/rate_limiter.h``.

    Args:
        min_size: transitions before the first sample, at least 1.
        samples_per_insert: rows sampled for one transition, above 0.
        slack: how far the cursor may be off, in sampled rows. None: min_size · samples_per_insert, which means that
            never more than samples_per_insert rows are sampled per transition. ``math.inf``: min_size alone counts.
        block_inserts: whether inserts wait as well. Without it, a robot goes on and the ratio falls.

    Raises:
        ValueError: an argument is out of range, or the slack so small that both sides would wait.
    """

    def __init__(
        self, min_size: int, samples_per_insert: float, slack: float | None = None, block_inserts: bool = True
    ) -> None:
        if min_size < 1:
            raise ValueError(f"min_size is {min_size}; at least 1 is accepted")
        slack = min_size * samples_per_insert if slack is None else slack
        self.min_size, self.samples_per_insert, self.slack = min_size, float(samples_per_insert), float(slack)
        self.block_inserts = block_inserts
        self._native = _native.RateLimiter(min_size, self.samples_per_insert, self.slack, block_inserts)

    def insert(self, rows: int = 1, timeout: float | None = None) -> bool:
        """Wait until ``rows`` transitions may be inserted, and count them.

        Args:
            rows: at least 1.
            timeout: seconds to wait, 0 for not at all; None for no limit.

        Returns:
            False when the time was over; nothing was counted.

        Raises:
            RuntimeError: the limiter is closed.
            ValueError: more rows at once than twice the slack lets through.
        """
        return self._native.insert(rows, seconds(timeout))

    def sample(self, rows: int, timeout: float | None = None) -> bool:
        """Wait until ``rows`` rows may be sampled, and count them; as ``insert``."""
        return self._native.sample(rows, seconds(timeout))

    def may_insert(self, rows: int = 1) -> bool:
        """Whether ``insert`` would not wait. Another thread may change that at any time."""
        return self._native.may_insert(rows)

    def may_sample(self, rows: int) -> bool:
        """Whether ``sample`` would not wait. Another thread may change that at any time."""
        return self._native.may_sample(rows)

    def undo_insert(self, rows: int = 1) -> None:
        """Take back the count of an insert that failed."""
        self._native.undo_insert(rows)

    @property
    def inserted(self) -> int:
        """Transitions counted so far."""
        return self._native.inserted

    @property
    def sampled(self) -> int:
        """Rows counted so far."""
        return self._native.sampled

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._native.closed

    def close(self) -> None:
        """Wake everybody who waits; they, and every later call, raise."""
        self._native.close()

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"inserted": self.inserted, "sampled": self.sampled}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from the counts of an earlier run."""
        self._native.set_counts(state["inserted"], state["sampled"])

    def __repr__(self) -> str:
        """Settings and counts."""
        settings = f"{self.min_size}, {self.samples_per_insert:g}, slack={self.slack:g}"
        return f"RateLimiter({settings}, block_inserts={self.block_inserts}; {self.inserted} in, {self.sampled} out)"


@contextmanager
def counting(limiter: RateLimiter | None, rows: int) -> Iterator[None]:
    """Wait until ``rows`` may be inserted; they count unless the block raises."""
    if limiter is None:
        yield
        return
    limiter.insert(rows)
    try:
        yield
    except BaseException:
        limiter.undo_insert(rows)
        raise


def counted(limiter: RateLimiter, append: Callable[..., Any]) -> Callable[..., Any]:
    """``append``, which inserts one row unless it raises or returns False, counted by the limiter."""

    def counted_append(*arguments: Any) -> Any:
        limiter.insert(1)
        stored = False
        try:
            stored = append(*arguments)
        finally:
            if stored is False:
                limiter.undo_insert(1)
        return stored

    return counted_append


def seconds(timeout: float | None) -> float:
    """A timeout as the core spells it, negative for no limit."""
    if timeout is None:
        return -1.0
    if not timeout >= 0:
        raise ValueError(f"the timeout is {timeout}; it is not negative, or None for no limit")
    return float(timeout)
