"""One batch from several stores, for example half of it from demonstrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from serl_fast.replay.schema import Batch
from serl_fast.replay.store import ReplayStore


class Mixture:
    """Draws every batch from several stores in fixed shares.

    A batch has the rows of the first store first, then those of the second, and so on. Each store writes
    straight into its part of the same arrays.

    While a store holds fewer than ``min_size`` transitions, its share goes to the others in proportion to
    theirs: a run without demonstrations, or before its first online transition, still trains.

    Args:
        stores: at least one, all with the same schema.
        shares: one per store, not negative; only their proportions matter.
        discount: γ in [0, 1].
        min_size: transitions that a store must hold to take part, at least 1.

    Raises:
        ValueError: the schemas differ (the message names the field) or an argument is out of range.
    """

    def __init__(
        self,
        stores: Sequence[ReplayStore],
        shares: Sequence[float] = (0.5, 0.5),
        discount: float = 0.99,
        min_size: int = 1,
    ) -> None:
        if not stores or len(stores) != len(shares):
            raise ValueError(f"{len(stores)} stores have {len(shares)} shares; give one share per store")
        if any(not math.isfinite(share) or share < 0 for share in shares) or not any(shares):
            raise ValueError(f"the shares are {tuple(shares)}; they are not negative and not all 0")
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"the discount is {discount}; it lies in [0, 1]")
        if min_size < 1:
            raise ValueError(f"min_size is {min_size}; it is at least 1")
        for number, store in enumerate(stores):
            stores[0].schema.require_equal(store.schema, f"store {number}")
        self.stores = tuple(stores)
        self.shares = tuple(shares)
        self.discount = discount
        self.min_size = min_size

    def counts(self, batch_size: int) -> list[int]:
        """Rows from each store in a batch drawn now.

        Largest remainder: every store gets the whole part of share · batch_size, and the rows left over go to
        the largest fractional parts, to the first store among equals.

        Args:
            batch_size: number of rows in all, at least 1.

        Returns:
            One number per store; their sum is ``batch_size``.

        Raises:
            ValueError: no store with a share holds ``min_size`` transitions.
        """
        sizes = [len(store) for store in self.stores]
        # Fractions, so that equal remainders are equal.
        weights = [
            Fraction(share) if size >= self.min_size else Fraction(0)
            for share, size in zip(self.shares, sizes, strict=True)
        ]
        total = sum(weights)
        if not total:
            held = ", ".join(map(str, sizes))
            needed = f"one with a share needs at least {self.min_size}"
            raise ValueError(f"the stores hold {held} transitions; {needed}")
        exact = [weight / total * batch_size for weight in weights]
        counts = [math.floor(rows) for rows in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
        for i in by_remainder[: batch_size - sum(counts)]:
            counts[i] += 1
        return counts

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch into fresh arrays; see ``ReplayStore.sample``."""
        batch = self.empty_batch(batch_size)
        self.sample_into(batch)
        return batch

    def sample_into(self, batch: Batch) -> None:
        """Draw a batch into the caller's arrays; see ``ReplayStore.sample_into``."""
        columns, rows = self.stores[0].schema.batch_columns(batch)
        start = 0
        for store, count in zip(self.stores, self.counts(rows), strict=True):
            if count:
                part = [column[start : start + count] for column in columns]
                store._sample_columns(part, count, self.discount)
            start += count

    def empty_batch(self, batch_size: int) -> Batch:
        """Uninitialised arrays for ``sample_into``."""
        return self.stores[0].empty_batch(batch_size)

    def __repr__(self) -> str:
        """The shares and their stores."""
        parts = zip(self.shares, self.stores, strict=True)
        return "Mixture(" + ", ".join(f"{share:g} of {store!r}" for share, store in parts) + ")"
