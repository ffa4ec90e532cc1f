"""The store's rules in plain NumPy: what the C++ store is tested against.

Every transition keeps its own copy of both observations, so nothing here can go wrong at the end of an
episode or when the ring wraps around. The same calls give the same batches, states and errors as
``ReplayStore`` gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.replay import state as states
from serl_fast.replay.convert import to_stored
from serl_fast.replay.layout import Array, Batch
from serl_fast.replay.reference_random import SumTree
from serl_fast.replay.reference_sampler import NumpySampler
from serl_fast.replay.sampler import age_indices
from serl_fast.replay.schema import Schema, Transition
from serl_fast.replay.store import Continues, row_count


class NumpyReplayStore:
    """``ReplayStore`` without its C++ core, for tests and comparisons; the methods are documented there."""

    def __init__(self, schema: Schema, capacity: int, seed: int = 0) -> None:
        self.schema = schema
        self.capacity = capacity
        self.seed = seed
        self.draws = 0
        self.first_id = 0  # of the oldest step; step n lies in row n % capacity
        self.appended = 0  # the number of the next step
        self.priorities: NumpyPriorities | None = None
        self._columns = [np.zeros((capacity, *field.row_shape), field.dtype) for field in schema.inputs]
        self._continues = np.zeros(capacity, bool)
        self._names = [field.name for field in schema.inputs]
        self._terminated, self._truncated = self._names.index("terminated"), self._names.index("truncated")

    def __len__(self) -> int:
        """Number of transitions held now."""
        return self.appended - self.first_id

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
            self._put([given[row] for given in columns], planned[row])

    def _put(self, values: list[Array], continues: bool) -> None:
        place = self.appended % self.capacity
        for mine, given in zip(self._columns, values, strict=True):
            mine[place] = given
        self._continues[place] = continues
        if self.priorities:
            self.priorities.insert(self.leaf(self.appended))
        self.appended += 1
        if len(self) > self.capacity:
            self._give_up_oldest()

    def _give_up_oldest(self) -> None:
        if self.priorities:
            self.priorities.remove(self.leaf(self.first_id))
        self.first_id += 1

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
            previous = [column[(self.appended - 1) % self.capacity] for column in self._columns]
        if previous[self._terminated] or previous[self._truncated]:
            return False
        count = len(self.schema.observations)
        return all(columns[f][row].tobytes() == previous[count + f].tobytes() for f in range(count))

    def sampler(self, *args: Any, **kwargs: Any) -> NumpySampler:
        """See ``ReplayStore.sampler``."""
        return NumpySampler(self, *args, **kwargs)

    def sample(self, batch_size: int, discount: float = 0.99) -> Batch:
        """See ``ReplayStore.sample``."""
        return self.sampler(discount).sample(batch_size)

    def sample_into(self, batch: Batch, discount: float = 0.99) -> None:
        """See ``ReplayStore.sample_into``."""
        self.sampler(discount).sample_into(batch)

    def empty_batch(self, batch_size: int) -> Batch:
        """See ``ReplayStore.empty_batch``."""
        return self.sampler().empty_batch(batch_size)

    def batch_at(self, indices: npt.ArrayLike, discount: float = 0.99) -> Batch:
        """See ``ReplayStore.batch_at``."""
        return self.sampler(discount).batch_at(indices)

    def relabel(self, field: str, ids: npt.ArrayLike, values: npt.ArrayLike) -> int:
        """See ``ReplayStore.relabel``."""
        steps = {form.name: form for form in self.schema.steps}
        if field not in steps or field in ("terminated", "truncated"):
            raise ValueError(f"field '{field}' cannot be relabelled")
        numbers = age_indices(ids)
        column = to_stored(values, field, steps[field].dtype, (len(numbers), *steps[field].shape))
        if not np.isfinite(column).all():
            raise ValueError(f"field '{field}' holds a non-finite value")
        mine = self._columns[self._names.index(field)]
        live = [row for row, number in enumerate(numbers.tolist()) if self.is_live(number)]
        for row in live:
            mine[numbers[row] % self.capacity] = column[row]
        return len(live)

    def prioritize(self, alpha: float = 0.6, epsilon: float = 1e-6) -> None:
        """See ``ReplayStore.prioritize``."""
        made = NumpyPriorities(alpha, epsilon, self._spare + self.capacity)
        if self.priorities:
            raise ValueError("the store keeps priorities already")
        self.priorities = made
        for number in range(self.first_id, self.appended):
            made.insert(self.leaf(number))

    def update_priorities(self, ids: npt.ArrayLike, priorities: npt.ArrayLike) -> int:
        """See ``ReplayStore.update_priorities``."""
        numbers, errors = age_indices(ids), np.asarray(priorities, np.float32).reshape(-1)
        if self.priorities is None or len(numbers) != len(errors):
            raise ValueError("no priorities are kept, or not one for each id is given")
        if not ((errors >= 0) & (errors <= np.float32(1e28))).all():
            raise ValueError("a priority is negative or not finite")
        live = [row for row, number in enumerate(numbers.tolist()) if self.is_live(number)]
        self.priorities.update([self.leaf(int(numbers[row])) for row in live], errors[live].tolist())
        return len(live)

    # --- for the sampler -----------------------------------------------------------------------------------------

    @property
    def _spare(self) -> int:
        # The C++ store's spare rows: sums of priorities round alike only where the leaves lie alike.
        return min(max(self.capacity // 128, 16), 65536)

    def leaf(self, number: int) -> int:
        """Where the sum tree keeps the priority of a step."""
        return number % (self.capacity + self._spare)

    def next_draw(self) -> int:
        """Use up a draw number."""
        self.draws += 1
        return self.draws - 1

    def is_live(self, number: int) -> bool:
        """Whether the step is still held."""
        return self.first_id <= number < self.appended

    def transition(self, number: int) -> dict[str, Any]:
        """All columns of a live step."""
        assert self.is_live(number)
        return {name: column[number % self.capacity] for name, column in zip(self._names, self._columns, strict=True)}

    def is_last(self, number: int) -> bool:
        """Whether a live step ended its episode or is followed by one that does not continue it."""
        row = number % self.capacity
        interrupted = self.is_live(number + 1) and not self._continues[(number + 1) % self.capacity]
        return bool(self._columns[self._terminated][row] or self._columns[self._truncated][row] or interrupted)

    def last_of_episode(self, number: int) -> int:
        """The last step of the episode (or stretch) of a live step, as far as it is stored."""
        while self.is_live(number + 1) and not self.is_last(number):
            number += 1
        return number

    # --- the state -----------------------------------------------------------------------------------------------

    def _rows(self) -> npt.NDArray[np.int64]:
        return np.arange(self.first_id, self.appended) % self.capacity

    def state_dict(self) -> dict[str, Array]:
        """See ``ReplayStore.state_dict``."""
        rows = self._rows()
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
        while len(self):
            self._give_up_oldest()
        self.first_id = self.appended = numbers["appended"] - len(continues)
        record = -1  # of the observation of the step at hand
        for step, follows in enumerate(continues):
            record += 1 if follows or step == 0 else 2
            record += 0 if follows else older
            values = []
            for newest in (record, record + 1):
                for frames, field in zip(records, self.schema.observations, strict=True):
                    stack = frames[newest + 1 - field.stack : newest + 1]
                    values.append(stack if field.stack > 1 else stack[0])
            self._put([*values, *(column[step] for column in steps)], follows)
        self.seed, self.draws = numbers["seed"], numbers["draws"]


class NumpyPriorities:
    """What ``csrc/include/serl_fast/priorities.h`` describes: p^alpha of every live step.

    Args:
        alpha: in [0, 1].
        epsilon: above 0.
        leaves: of the tree.
    """

    def __init__(self, alpha: float, epsilon: float, leaves: int) -> None:
        if not 0.0 <= alpha <= 1.0 or not 0.0 < epsilon < math.inf:
            raise ValueError(f"alpha is {alpha}, epsilon {epsilon}")
        self.alpha, self.epsilon = alpha, epsilon
        self.tree = SumTree(leaves)
        self.largest = 1.0

    def insert(self, leaf: int) -> None:
        """A new step: the largest priority so far."""
        self.tree.set([leaf], [self.largest])

    def remove(self, leaf: int) -> None:
        """A step was given up."""
        self.tree.set([leaf], [0.0])

    def update(self, leaves: list[int], errors: list[float]) -> None:
        """(error + epsilon)^alpha for each leaf."""
        values = [float(np.float32(math.pow(error + self.epsilon, self.alpha))) for error in errors]
        if any(value > np.float32(1e28) for value in values):
            raise ValueError("a priority is too large")
        self.tree.set(leaves, values)
        self.largest = max([self.largest, *values])
