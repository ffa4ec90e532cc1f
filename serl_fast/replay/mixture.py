"""One batch from several stores, for example half of it from demonstrations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from serl_fast.replay import _native
from serl_fast.replay.layout import Batch, Column, Layout
from serl_fast.replay.sampler import Sampler
from serl_fast.replay.store import ReplayStore

Schedule = Callable[[int], Sequence[float]]
SOURCES = Column("sources", "int32", ())


class Mixture:
    """Draws every batch from several stores in shares, fixed or scheduled.

    A batch has the rows of the first store first, then those of the second, and so on. Each store writes
    straight into its part of the same arrays.

    While a store holds fewer than ``min_size`` transitions (whole sequences, where batches hold sequences), its
    share goes to the others in proportion to theirs: a run without demonstrations, or before its first online
    transition, still trains.

    Importance weights of prioritised samplers are relative to the largest of their own part of the batch.

    Args:
        stores: at least one store or sampler. A store is sampled uniformly with ``discount``; a sampler says for
            itself what it draws. Batches of all of them must hold the same arrays.
        shares: one per store, not negative; only their proportions matter. Or a function of the number of batches
            drawn so far that returns them.
        discount: γ in [0, 1], for the stores among ``stores``.
        min_size: what a store must hold to take part, at least 1.
        sources: whether batches hold ``sources``, int32 [B]: for every row the place of its store in ``stores``.

    Attributes:
        layout: the arrays of a batch.
        batches: batches drawn so far, what a schedule is called with; may be set to go on with an earlier run.

    Raises:
        TypeError, ValueError: what the stores hold differs (the message names the field) or an argument is out
            of range.
    """

    def __init__(
        self,
        stores: Sequence[ReplayStore | Sampler],
        shares: Sequence[float] | Schedule = (0.5, 0.5),
        discount: float = 0.99,
        min_size: int = 1,
        *,
        sources: bool = False,
    ) -> None:
        if not isinstance(stores, Sequence) or not all(isinstance(each, (ReplayStore, Sampler)) for each in stores):
            raise TypeError("a Mixture takes a list of stores or samplers")
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"the discount is {discount}; it lies in [0, 1]")
        if min_size < 1:
            raise ValueError(f"min_size is {min_size}; it is at least 1")
        self.schedule: Schedule | None = shares if callable(shares) else None
        given = list(self.schedule(0) if self.schedule else shares)  # type: ignore[arg-type]
        if not stores or len(stores) != len(given):
            raise ValueError(f"{len(stores)} stores have {len(given)} shares; give one share per store")
        self.samplers = [each if isinstance(each, Sampler) else each.sampler(discount) for each in stores]
        self.stores = tuple(sampler.store for sampler in self.samplers)
        self.layout = _common_layout(self.samplers)
        if sources:
            self.layout = _with_sources(self.layout)
        self.discount = discount
        self.min_size = min_size
        self.batches = 0
        natives = [sampler._native for sampler in self.samplers]
        self._native = _native.Mixture(natives, given, min_size, self.layout.names)

    @property
    def shares(self) -> tuple[float, ...]:
        """Those of the next batch; may be set at any time where there is no schedule."""
        return tuple(self.schedule(self.batches)) if self.schedule else tuple(self._native.shares)

    @shares.setter
    def shares(self, shares: Sequence[float]) -> None:
        if self.schedule:
            raise ValueError("the shares follow a schedule; make a mixture without one to set them")
        self._native.shares = list(shares)

    def counts(self, batch_size: int) -> list[int]:
        """Rows from each store in a batch drawn now.

        Largest remainder: every store gets the whole part of share · batch_size, and the rows left over go to
        the largest fractional parts, to the first store among equals. The arithmetic is that of integers, to which
        shares are rounded (to 2^-58 of the largest one with up to 15 stores).

        Args:
            batch_size: number of rows in all, at least 1.

        Returns:
            One number per store; their sum is ``batch_size``.

        Raises:
            ValueError: no store with a share holds ``min_size`` transitions.
        """
        self._follow_schedule()
        return self._native.counts(batch_size)

    def sample(self, batch_size: int) -> Batch:
        """Draw a batch into fresh arrays; see ``Sampler.sample``."""
        batch = self.empty_batch(batch_size)
        self.sample_into(batch)
        return batch

    def sample_into(self, batch: Batch) -> None:
        """Draw a batch into the caller's arrays; see ``Sampler.sample_into``."""
        self._follow_schedule()
        if not self._native.try_sample(batch):
            self._native.sample(*self.layout.arrays(batch))
        self.batches += 1

    def empty_batch(self, batch_size: int) -> Batch:
        """Uninitialised arrays for ``sample_into``."""
        return self.layout.empty_batch(batch_size)

    def _follow_schedule(self) -> None:
        if self.schedule:
            self._native.shares = list(self.schedule(self.batches))

    def __repr__(self) -> str:
        """The shares and their stores."""
        parts = zip(self.shares, self.stores, strict=True)
        return "Mixture(" + ", ".join(f"{share:g} of {store!r}" for share, store in parts) + ")"


def as_mixture(source: ReplayStore | Sampler | Mixture) -> Mixture:
    """A mixture of one, unless ``source`` is a mixture."""
    return source if isinstance(source, Mixture) else Mixture([source], (1.0,))


def _common_layout(samplers: Sequence[Sampler]) -> Layout:
    first = samplers[0]
    for number, sampler in enumerate(samplers):
        first.store.schema.require_equal(sampler.store.schema, f"store {number}")
        if sampler.layout != first.layout:
            here, there = ([column.name for column in each.layout.wanted] for each in (first, sampler))
            odd = sorted(set(here) ^ set(there)) or ["of another shape: the sequence length differs"]
            raise ValueError(f"batches of store {number} and store 0 hold different arrays: {', '.join(odd)}")
    return first.layout


def _with_sources(layout: Layout) -> Layout:
    made = copy.copy(layout)
    made.columns = (*layout.columns, SOURCES)
    made.names = [*layout.names, SOURCES.name]
    made.wanted = (*layout.wanted, SOURCES)
    if SOURCES.name in layout.names:
        raise ValueError("the stores have a field 'sources'; the mixture's would hide it")
    return made
