"""The store's rules in plain NumPy: what the C++ store is tested against.

Every transition keeps its own copy of both observations, so nothing here can go wrong at the end of an
episode or when the ring wraps around. The same calls give the same batches, states and errors as
``ReplayStore`` gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.replay import state as states
from serl_fast.replay.schema import Array, Batch, Schema, Transition
from serl_fast.replay.store import Continues, age_indices, row_count

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, ...]:
    """Philox4x32-10 for many counters at once.

    Args:
        counter: four arrays of uint64 that hold 32-bit words.
        key: two 32-bit words.

    Returns:
        Four such arrays.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _MASK
        c2, c3 = (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def uniform_indices(seed: int, draw: int, bound: int, count: int) -> npt.NDArray[np.int64]:
    """Unbiased numbers below ``bound`` (< 2^32), by Lemire's method, as the C++ core draws them.

    The key is the seed and the counter (row, attempt, draw); the first two words make the 64-bit number x.
    The result is the high word of x · bound; x is drawn again where the low word is below 2^64 mod bound.

    Source: Lemire, "Fast random integer generation in an interval", 2019.
    """
    result = np.zeros(count, np.int64)
    pending = np.arange(count, dtype=np.uint64)
    attempt = 0
    while pending.size:
        words = [np.full_like(pending, word) for word in (attempt, draw % 2**32, draw >> 32)]
        low, high, *_ = philox4x32((pending, words[0], words[1], words[2]), (seed % 2**32, seed >> 32))
        lower = low * np.uint64(bound)
        upper = high * np.uint64(bound) + (lower >> _SHIFT)  # the product's upper 96 bits
        accepted = ((upper << _SHIFT) | (lower & _MASK)) >= np.uint64(2**64 % bound)
        result[pending[accepted].astype(np.int64)] = (upper >> _SHIFT)[accepted].astype(np.int64)
        pending = pending[~accepted]
        attempt += 1
    return result


class NumpyReplayStore:
    """``ReplayStore`` without its C++ core, for tests and comparisons; the methods are documented there."""

    def __init__(self, schema: Schema, capacity: int, seed: int = 0) -> None:
        self.schema = schema
        self.capacity = capacity
        self.seed = seed
        self.draws = 0
        self.appended = 0
        self._columns = [np.zeros((capacity, *field.row_shape), field.dtype) for field in schema.inputs]
        self._continues = np.zeros(capacity, bool)
        self._next = 0  # step number of the next step; step n lies in row n % capacity
        names = [field.name for field in schema.inputs]
        self._terminated, self._truncated = names.index("terminated"), names.index("truncated")

    def __len__(self) -> int:
        """Number of transitions held now."""
        return min(self._next, self.capacity)

    def append(self, transition: Transition, continues: Continues = None) -> None:
        """See ``ReplayStore.append``."""
        columns = [column[None] for column in self.schema.convert(self.schema.columns(transition))]
        self._store(columns, 1, [continues])

    def extend(self, columns: Transition, continues: Continues | npt.ArrayLike = None) -> None:
        """See ``ReplayStore.extend``."""
        rows = row_count(columns)
        speaks_for_first = continues is None or isinstance(continues, bool)
        wishes: list[Any] = [continues] if speaks_for_first else list(np.asarray(continues))
        wishes += [None] * (rows - len(wishes))
        self._store(self.schema.convert(self.schema.columns(columns, rows), rows), rows, wishes)

    def _store(self, columns: list[Array], rows: int, wishes: list[Any]) -> None:
        self._validate(columns)
        planned = [self._decide(columns, row, wishes[row]) for row in range(rows)]
        for row in range(rows):
            place = self._next % self.capacity
            for mine, given in zip(self._columns, columns, strict=True):
                mine[place] = given[row]
            self._continues[place] = planned[row]
            self._next += 1
            self.appended += 1

    def _validate(self, columns: list[Array]) -> None:
        for field, column in zip(self.schema.inputs, columns, strict=True):
            if field.dtype == "float32" and not np.isfinite(column).all():
                raise ValueError(f"field '{field.name}' holds a non-finite value")
        count = len(self.schema.observations)
        for f, field in enumerate(self.schema.observations):
            if field.stack > 1 and not np.array_equal(columns[f][:, 1:], columns[count + f][:, :-1]):
                raise ValueError(f"field 'next_{field.name}': a stack moves on by one frame a step")

    def _decide(self, columns: list[Array], row: int, wish: bool | None) -> bool:
        if wish is not None and not wish:
            return False
        follows = (row > 0 or len(self) > 0) and self._follows(columns, row)
        if wish and not follows:
            raise ValueError("continues is True, but the step does not follow the previous one")
        return follows

    def _follows(self, columns: list[Array], row: int) -> bool:
        if row > 0:
            previous = [column[row - 1] for column in columns]
        else:
            previous = [column[(self._next - 1) % self.capacity] for column in self._columns]
        if previous[self._terminated] or previous[self._truncated]:
            return False
        count = len(self.schema.observations)
        return all(columns[f][row].tobytes() == previous[count + f].tobytes() for f in range(count))

    def sample(self, batch_size: int, discount: float = 0.99) -> Batch:
        """See ``ReplayStore.sample``."""
        batch = self.empty_batch(batch_size)
        self.sample_into(batch, discount)
        return batch

    def sample_into(self, batch: Batch, discount: float = 0.99) -> None:
        """See ``ReplayStore.sample_into``."""
        if not len(self):
            raise ValueError("the store is empty; append a transition before sampling")
        out, rows = self.schema.batch_columns(batch)
        self._gather(uniform_indices(self.seed, self.draws, len(self), rows), out, discount)
        self.draws += 1

    def empty_batch(self, batch_size: int) -> Batch:
        """See ``ReplayStore.empty_batch``."""
        return self.schema.empty_batch(batch_size)

    def batch_at(self, indices: npt.ArrayLike, discount: float = 0.99) -> Batch:
        """See ``ReplayStore.batch_at``."""
        ages = age_indices(indices)
        if ((ages < 0) | (ages >= len(self))).any():
            raise IndexError(f"an index is outside the {len(self)} transitions of the store")
        batch = self.empty_batch(len(ages))
        self._gather(ages, self.schema.batch_columns(batch)[0], discount)
        return batch

    def _rows(self, ages: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return (self._next - len(self) + ages) % self.capacity

    def _gather(self, ages: npt.NDArray[np.int64], out: list[Array], discount: float) -> None:
        rows = self._rows(ages)
        for column, target in zip(self._columns, out, strict=False):
            target[...] = column[rows]
        masks, discounts = out[-2:]
        masks[...] = 1.0 - self._columns[self._terminated][rows]
        discounts[...] = np.float32(discount) * masks

    def state_dict(self) -> dict[str, Array]:
        """See ``ReplayStore.state_dict``."""
        rows = self._rows(np.arange(len(self)))
        continues = self._continues[rows]
        continues[:1] = False  # what it continued is gone
        count = len(self.schema.observations)
        older = max(field.stack for field in self.schema.observations) - 1
        records = []
        for f, field in enumerate(self.schema.observations):
            frames: list[Array] = []
            for row, follows in zip(rows, continues, strict=True):
                observation, following = self._columns[f][row], self._columns[count + f][row]
                if not follows:
                    frames += [np.zeros(field.shape, field.dtype)] * (older + 1 - field.stack)
                    frames += list(observation) if field.stack > 1 else [observation]
                frames.append(following[-1] if field.stack > 1 else following)
            records.append(np.array(frames, field.dtype).reshape(len(frames), *field.shape))
        steps = [column[rows] for column in self._columns[2 * count :]]
        numbers = {key: getattr(self, key) for key in ("capacity", "seed", "draws", "appended")}
        return states.pack(self.schema, numbers, continues, records, steps)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``ReplayStore.load_state_dict``; the state is taken on trust here."""
        numbers, continues, records, steps = states.unpack(self.schema, state)
        older = max(field.stack for field in self.schema.observations) - 1
        count = len(self.schema.observations)
        self._next = 0
        record = -1  # of the observation of the step at hand
        for step, follows in enumerate(continues):
            record += 1 if follows or step == 0 else 2
            record += 0 if follows else older
            for f, field in enumerate(self.schema.observations):
                for column, newest in ((f, record), (count + f, record + 1)):
                    frames = records[f][newest + 1 - field.stack : newest + 1]
                    self._columns[column][step] = frames if field.stack > 1 else frames[0]
            for mine, given in zip(self._columns[2 * count :], steps, strict=True):
                mine[step] = given[step]
            self._continues[step] = follows
            self._next += 1
        self.seed, self.draws, self.appended = numbers["seed"], numbers["draws"], numbers["appended"]
