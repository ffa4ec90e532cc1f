"""The replay store: a Python face over the C++ core."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from serl_fast.replay import state as states
from serl_fast.replay.fields import Field
from serl_fast.replay.schema import Array, Batch, Schema, Transition

try:
    from serl_fast.replay import _native
except ImportError as error:
    raise ImportError(
        f"the extension of serl_fast cannot be loaded ({error}); build it in its repository: pip install -e ."
    ) from error

Continues = bool | None


class ReplayStore:
    """The latest ``capacity`` transitions, each observation kept once, sampled uniformly.

    A transition is a dict with the keys ``observations``, ``actions``, ``next_observations``, ``rewards``,
    either ``terminated`` and ``truncated`` or SERL's ``masks`` (1 - terminated) and ``dones``, and the extra
    fields of the schema; ``infos`` is ignored. Observations are an array or a nested dict of arrays. float64
    is kept as float32, other numbers only if nothing is lost.

    A step *continues* the one stored before it if its observation is that step's next observation; then only
    its next observation is stored. Otherwise a new stretch begins and both are. A transition is given back as
    it was stored in either case.

    Any number of threads may append and sample at once: each transition is stored and read as a whole, and
    whoever comes first goes first. The interpreter lock is released while data is copied.

    Args:
        schema: what to store; ``from_example`` and ``from_space`` make it.
        capacity: number of transitions kept, at least 1.
        seed: of the sampling, 0 … 2^64 - 1. The same seed and number of draws give the same rows.
    """

    def __init__(self, schema: Schema, capacity: int, seed: int = 0) -> None:
        self.schema = schema
        capacity = operator.index(capacity)
        if capacity < 1:
            raise ValueError(f"the capacity is {capacity}; a store holds at least one transition")
        observations, steps = map(_tuples, (schema.observations, schema.steps))
        try:
            self._native = _native.Store(observations, steps, capacity, _word("seed", seed))
        except MemoryError as error:
            raise MemoryError(f"no memory for {capacity} transitions of {schema}; lower the capacity") from error

    @classmethod
    def from_example(
        cls, transition: Transition, capacity: int, seed: int = 0, frame_stack: int | Mapping[str, int] = 1
    ) -> ReplayStore:
        """Make an empty store for transitions like the given one.

        Args:
            transition: one transition, as for ``append``; keys beyond the standard ones become extra fields.
            capacity: number of transitions kept.
            seed: of the sampling.
            frame_stack: how many frames an observation field stacks on its first axis, by key
                (``{"front": 3}``, ``{"images/front": 3}``), or one number for all images (uint8 fields with
                three axes or more). Such a field is stored frame by frame and given back as stacks.

        Returns:
            The store, empty.

        Raises:
            TypeError, ValueError: the example contradicts itself or has something that cannot be stored.
        """
        return cls(Schema.from_example(transition, frame_stack), capacity, seed)

    @classmethod
    def from_space(
        cls,
        observation_space: Any,
        action_space: Any,
        capacity: int,
        seed: int = 0,
        frame_stack: int | Mapping[str, int] = 1,
        extra: Mapping[str, Any] | None = None,
    ) -> ReplayStore:
        """Make an empty store for an environment's spaces.

        Args:
            observation_space: gymnasium Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of such.
            action_space: the same without Dict.
            capacity: number of transitions kept.
            seed: of the sampling.
            frame_stack: as for ``from_example``.
            extra: further fields of a step, ``{name: dtype}`` for one number or ``{name: (dtype, shape)}``.

        Returns:
            The store, empty.

        Raises:
            TypeError, ValueError: a space or dtype cannot be stored.
        """
        return cls(Schema.from_space(observation_space, action_space, frame_stack, extra), capacity, seed)

    def append(self, transition: Transition, continues: Continues = None) -> None:
        """Store one transition; once the store is full it takes the place of the oldest.

        Args:
            transition: see the class.
            continues: whether it follows the transition appended before it. None: it does if that one did not
                end its episode and its next observations are, byte for byte, these observations. True: the
                same, but an error if not. False: a new stretch begins.

        Raises:
            TypeError, ValueError: something does not fit, is not finite, or ``continues`` is wrong. The
                message names the field; nothing was stored.
        """
        values = self.schema.columns(transition)
        if not self._native.try_append(values, continues):
            converted: list[Any] = list(self.schema.convert(values))
            stored = self._native.try_append(converted, continues)
            assert stored, "converted values have the stored layout"

    def extend(self, columns: Transition, continues: Continues | npt.ArrayLike = None) -> None:
        """Store many transitions, oldest first: all of them or, after an error, none.

        Args:
            columns: like a transition, every array with a leading axis [N].
            continues: None, True or False speaks for the first row and the rest is decided by comparing; an
                array [N] of bool speaks for every row.

        Raises:
            TypeError, ValueError: as for ``append``; the message names the row as well.
        """
        rows, wishes = row_count(columns), _wishes(continues)
        if wishes.ndim and wishes.shape != (rows,):
            raise ValueError(f"continues has shape {wishes.shape}; it is one value or ({rows},)")
        converted = self.schema.convert(self.schema.columns(columns, rows), rows)
        self._native.extend(converted, rows, wishes.reshape(-1).tolist())

    def sample(self, batch_size: int, discount: float = 0.99) -> Batch:
        """Draw transitions uniformly, with replacement, into fresh arrays.

        masks = 1 - terminated and discounts = discount · masks, both float32 [B].

        Args:
            batch_size: number of rows B, at least 1.
            discount: γ in [0, 1].

        Returns:
            ``observations``, ``next_observations`` (nested like those of the transitions), ``actions``,
            ``rewards``, ``terminated``, ``truncated``, the extra fields, ``masks`` and ``discounts``.

        Raises:
            ValueError: the store is empty, or an argument is out of range.
        """
        batch = self.empty_batch(batch_size)
        self.sample_into(batch, discount)
        return batch

    def sample_into(self, batch: Batch, discount: float = 0.99) -> None:
        """Draw transitions into the caller's arrays, as many as their leading axis holds.

        Args:
            batch: C-contiguous writable arrays with the names, shapes and dtypes of ``empty_batch``.
            discount: γ in [0, 1].

        Raises:
            TypeError, ValueError: an array does not fit, or the store is empty. Nothing was drawn.
        """
        self._sample_columns(*self.schema.batch_columns(batch), discount)

    def _sample_columns(self, columns: list[Array], rows: int, discount: float) -> None:
        self._native.sample(columns, rows, discount)

    def empty_batch(self, batch_size: int) -> Batch:
        """Uninitialised arrays for ``sample_into``."""
        return self.schema.empty_batch(batch_size)

    def batch_at(self, indices: npt.ArrayLike, discount: float = 0.99) -> Batch:
        """The transitions of the given ages, 0 the oldest, in fresh arrays.

        Args:
            indices: [B] integers in [0, len(store)).
            discount: γ in [0, 1].

        Returns:
            A batch like that of ``sample``.

        Raises:
            IndexError: an index is outside the store.
        """
        ages = age_indices(indices)
        batch = self.empty_batch(len(ages))
        self._native.gather(ages, self.schema.batch_columns(batch)[0], discount)
        return batch

    def state_dict(self) -> dict[str, Array]:
        """Everything that later results depend on, as a flat dict of arrays, oldest transition first."""
        state = self._native.state()
        numbers = {
            "capacity": self.capacity,
            "seed": state["seed"],
            "draws": state["draws"],
            "appended": state["appended"],
        }
        return states.pack(self.schema, numbers, state["continues"], state["records"], state["steps"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace contents, seed and number of draws; sampling goes on as it would have where it was taken.

        Args:
            state: of a store with the same schema and at most ``capacity`` transitions.

        Raises:
            TypeError, ValueError: the state does not fit or is damaged; the store is unchanged.
        """
        numbers, continues, records, steps = states.unpack(self.schema, state)
        self._native.load(continues, records, steps, numbers["seed"], numbers["draws"], numbers["appended"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, in NumPy's ``.npz`` format.

        After a crash the file holds its previous content or the new one. The store may be used meanwhile.
        """
        states.write_file(path, self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReplayStore:
        """Make a store from a file that ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, damaged or something else; the message names it.
        """
        state = states.read_file(path)
        try:
            states.require_format(state)
            store = cls(states.schema_of(state), int(state["capacity"]))
            store.load_state_dict(state)
        except (ValueError, TypeError, KeyError, MemoryError) as error:
            raise ValueError(f"{os.fspath(path)} is not a file of a replay store: {error}") from error
        return store

    def __len__(self) -> int:
        """Number of transitions held now."""
        return len(self._native)

    @property
    def capacity(self) -> int:
        """Number of transitions held at most."""
        return self._native.capacity

    @property
    def appended(self) -> int:
        """Number of transitions ever stored, those overwritten since included."""
        return self._native.appended

    @property
    def nbytes(self) -> int:
        """Bytes that the contents occupy; what is reserved for the worst case is larger, but not resident."""
        return self._native.bytes_used

    @property
    def seed(self) -> int:
        """Seed of the sampling."""
        return self._native.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._native.seed = _word("seed", seed)

    @property
    def draws(self) -> int:
        """Number of batches drawn so far; set it to go on where another run stopped."""
        return self._native.draws

    @draws.setter
    def draws(self, draws: int) -> None:
        self._native.draws = _word("draws", draws)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a copy of all contents is not what sending an object should mean."""
        raise TypeError("a ReplayStore cannot be pickled; use save(path) and ReplayStore.load(path)")

    def __repr__(self) -> str:
        """Fill, size and fields."""
        fill = f"{len(self)} of {self.capacity} transitions, {self.nbytes / 1e6:.1f} MB"
        return f"ReplayStore({fill}, {self.schema})"


def row_count(columns: Transition) -> int:
    """The number of transitions in a dict of columns, told by its rewards."""
    if "rewards" not in columns:
        raise ValueError("field 'rewards' is missing")
    shape = np.shape(columns["rewards"])
    if len(shape) != 1:
        raise ValueError(f"field 'rewards' has shape {shape}; it is one number a row")
    return int(shape[0])


def age_indices(indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Indices as [B] int64; raises TypeError or ValueError."""
    ages = np.asarray(indices)
    if ages.dtype.kind not in "iu":
        raise TypeError(f"indices have dtype {ages.dtype}; they are integers")
    if ages.ndim != 1:
        raise ValueError(f"indices have shape {ages.shape}; they are one axis [B]")
    return ages.astype(np.int64)


def _wishes(continues: Continues | npt.ArrayLike) -> npt.NDArray[np.int8]:
    """None becomes -1 ('decide'), which is how the core spells it."""
    if continues is None:
        return np.array(-1, np.int8)
    array = np.asarray(continues)
    if array.dtype != np.bool_:
        raise TypeError(f"continues has dtype {array.dtype}; it is None, a bool or an array of bool")
    return array.astype(np.int8)


def _tuples(fields: Sequence[Field]) -> list[tuple[str, str, tuple[int, ...], int]]:
    return [(field.name, field.dtype, field.shape, field.stack) for field in fields]


def _word(name: str, value: int) -> int:
    number = operator.index(value)
    if not 0 <= number < 2**64:
        raise ValueError(f"{name} is {number}; it lies in [0, 2^64)")
    return number
