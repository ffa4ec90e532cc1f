"""The replay store: a Python face over the C++ core."""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, overload

import numpy as np
import numpy.typing as npt

from serl_fast.replay import _native
from serl_fast.replay import state as states
from serl_fast.replay.convert import to_stored
from serl_fast.replay.fields import Field
from serl_fast.replay.files import InFiles, word
from serl_fast.replay.layout import Batch
from serl_fast.replay.limiter import RateLimiter, counted, counting
from serl_fast.replay.sampler import Order, Sampler, age_indices
from serl_fast.replay.schema import Array, Schema, Transition
from serl_fast.replay.slices import Slice

Continues = bool | None


class ReplayStore(InFiles):
    """The latest ``capacity`` transitions, each observation kept once, sampled uniformly.

    A transition is a dict with the keys ``observations``, ``actions``, ``next_observations``, ``rewards``,
    either ``terminated`` and ``truncated`` or SERL's ``masks`` (1 - terminated) and ``dones``, and the extra
    fields of the schema; ``infos`` is ignored. Observations are an array or a nested dict of arrays. float64
    is kept as float32, other numbers only if nothing is lost.

    A step *continues* the one stored before it if its observation is that step's next observation; then only
    its next observation is stored. Otherwise a new stretch begins and both are. A transition is given back as
    it was stored in either case.

    Any number of threads may append and sample at once: each transition is stored and read as a whole,
    and sampling does not wait for appends. The interpreter lock is released while more than 4 KB are copied. A forked
    process has a copy of its own; a store on disk (``open``) is shared.

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
        if capacity >= 2**31:
            raise ValueError(f"the capacity is {capacity}; it is at most 2^31 - 1")
        observations, steps = map(_tuples, (schema.observations, schema.steps))
        try:
            native = _native.Store(observations, steps, capacity, word("seed", seed))
        except MemoryError as error:
            raise MemoryError(f"no memory for {capacity} transitions of {schema}; lower the capacity") from error
        self._start(native, schema)

    def _start(self, native: _native.Store, schema: Schema) -> None:
        self.schema = schema
        self._native = native
        self.limiter = None
        self._relabels = self._loads = 0
        self._default = self._own_sampler(0.99)

    @classmethod
    def from_example(
        cls,
        transition: Transition,
        capacity: int,
        seed: int = 0,
        frame_stack: int | Mapping[str, int] = 1,
        on_request: Collection[str] = (),
    ) -> ReplayStore:
        """Make an empty store for transitions like the given one.

        Args:
            transition: one transition, as for ``append``; keys beyond the standard ones become extra fields.
            capacity: number of transitions kept.
            seed: of the sampling.
            frame_stack: how many frames an observation field stacks on its first axis, by key
                (``{"front": 3}``, ``{"images/front": 3}``), or one number for all images (uint8 fields with
                three axes or more). Such a field is stored frame by frame and given back as stacks.
            on_request: keys of observations that batches hold only where a sampler asks for them, such as the
                camera that only the reward classifier looks at.

        Returns:
            The store, empty.

        Raises:
            TypeError, ValueError: the example contradicts itself or has something that cannot be stored.
        """
        return cls(Schema.from_example(transition, frame_stack, on_request), capacity, seed)

    @classmethod
    def from_space(
        cls,
        observation_space: Any,
        action_space: Any,
        capacity: int,
        seed: int = 0,
        frame_stack: int | Mapping[str, int] = 1,
        extra: Mapping[str, Any] | None = None,
        on_request: Collection[str] = (),
    ) -> ReplayStore:
        """Make an empty store for an environment's spaces.

        Args:
            observation_space: gymnasium Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of such.
            action_space: the same without Dict.
            capacity: number of transitions kept.
            seed: of the sampling.
            frame_stack: as for ``from_example``.
            extra: further fields of a step, ``{name: dtype}`` for one number or ``{name: (dtype, shape)}``.
            on_request: as for ``from_example``.

        Returns:
            The store, empty.

        Raises:
            TypeError, ValueError: a space or dtype cannot be stored.
        """
        schema = Schema.from_space(observation_space, action_space, frame_stack, extra, on_request)
        return cls(schema, capacity, seed)

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
        if self._try_append(transition, continues):
            return
        values = self.schema.convert(self.schema.columns(transition))
        wishes = [] if continues is None else _wishes(continues).reshape(-1).tolist()
        with counting(self._limiter, 1):
            self._native.extend([value[None] for value in values], 1, wishes)

    def appender(self) -> Callable[..., None]:
        """A function that appends one transition given as arrays, in the order of ``schema.inputs``.

        The fastest way in: ``append(observations, next_observations, actions, rewards, terminated, truncated)``
        for a store without nested observations or extras. Scalars may be Python numbers; nothing else is
        converted. It raises TypeError for another dtype, shape or order, and otherwise what ``append`` raises.
        """
        append: Callable[..., None] = self._native.appender_of_columns()
        return append if self._limiter is None else counted(self._limiter, append)

    def extend(self, columns: Transition, continues: Continues | npt.ArrayLike = None) -> None:
        """Store many transitions, oldest first: all of them or, after an error, none.

        Args:
            columns: like a transition, every array with a leading axis [N].
            continues: None, True or False speaks for the first row and the rest is decided by comparing; an
                array [N] of bool speaks for every row.

        Raises:
            TypeError, ValueError: as for ``append``; the message names the row as well.
        """
        if continues is None and self._limiter is None and self._native.try_extend(columns, []):
            return  # nothing had to be converted
        rows, wishes = row_count(columns), _wishes(continues)
        if wishes.ndim and wishes.shape != (rows,):
            raise ValueError(f"continues has shape {wishes.shape}; it is one value or ({rows},)")
        first = [] if continues is None else wishes.reshape(-1).tolist()
        with counting(self._limiter, rows):
            if self._native.try_extend(columns, first):
                return
            converted = self.schema.convert(self.schema.columns(columns, rows), rows)
            self._native.extend(converted, rows, first)

    def sampler(
        self,
        discount: float = 0.99,
        *,
        n_step: int = 1,
        sequence_length: int | None = None,
        pad: Literal["next", "last"] = "next",
        fields: Iterable[str] | None = None,
        order: Order = "uniform",
        beta: float = 0.4,
        ids: bool = False,
    ) -> Sampler:
        """Make a sampler: what batches hold, and how their steps are drawn.

        A row of a *transition* batch starts at a step s. With ``n_step`` = n it reaches to step m, the last of
        the at most n steps of the same episode (and of the same unbroken stretch) that are stored by now:
        rewards = Σ_k γ^k r_{s+k}, discounts = γ^(m-s+1) · masks, masks = 1 - terminated; next_observations,
        terminated and truncated are those of step m. A TD target is ``rewards + discounts · value``.

        A row of a *sequence* batch holds L steps, s … s+L-1, as they were stored: ``full_observations``,
        ``next_observations``, ``actions``, ``next_actions``, … ``[B, L, …]``, and ``observations [B, …]`` of step
        s. rewards[k] = Σ_{j≤k} γ^j r_{s+j}; masks the running minimum of 1 - terminated; discounts[k] =
        γ^(k+1) · masks[k]; terminals 1 from the last step of the episode on; valid 1 up to it and 0 after it.

        Args:
            discount: γ in [0, 1].
            n_step: steps in a return, at least 1; 1 with sequences.
            sequence_length: L, or None for transitions.
            pad: what stands in a sequence after the end of an episode. "next": the steps stored next, hidden
                by ``valid``; sequences start where L steps follow. "last": the episode's last step again and
                again, which adds nothing to rewards and discounts; sequences start anywhere.
            fields: names of the arrays wanted, or of dicts of them; None for all but those on request.
            order: "uniform": with replacement. "prioritized": by priority, see ``prioritize``; batches then
                hold ``ids`` and ``weights``, (N · P(i))^-beta over the largest of the batch. "epoch": every
                step once in an order by chance, then all again in another.
            beta: exponent of the weights, in [0, 1].
            ids: whether batches hold the numbers of their steps, int64, for ``relabel``.

        Returns:
            The sampler. It may be used by several threads; those that are "epoch" share one order.

        Raises:
            TypeError, ValueError: an argument is out of range or names what there is not.
        """
        return Sampler(
            self,
            discount,
            n_step=n_step,
            sequence_length=sequence_length,
            pad=pad,
            fields=fields,
            order=order,
            beta=beta,
            ids=ids,
        )

    def _sampler_of(self, discount: float) -> Sampler:
        default = self._default  # read and replaced as one: other threads may ask for another discount
        if discount != default[0]:
            self._default = default = self._own_sampler(discount)
        return default[1]

    def _own_sampler(self, discount: float) -> tuple[float, Sampler]:
        # Through a proxy: in a cycle, memory and files would outlive the store until they are collected.
        return discount, Sampler(weakref.proxy(self), discount)

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
        return self._sampler_of(discount).sample(batch_size)

    def sample_into(self, batch: Batch, discount: float = 0.99) -> None:
        """Draw transitions into the caller's arrays; see ``Sampler.sample_into``."""
        self._sampler_of(discount).sample_into(batch)

    def empty_batch(self, batch_size: int) -> Batch:
        """Uninitialised arrays for ``sample_into``."""
        return self._default[1].empty_batch(batch_size)

    def batch_at(self, indices: npt.ArrayLike, discount: float = 0.99) -> Batch:
        """The transitions of the given ages, 0 the oldest; see ``Sampler.batch_at``."""
        return self._sampler_of(discount).batch_at(indices)

    def relabel(self, field: str, ids: npt.ArrayLike, values: npt.ArrayLike) -> int:
        """Give a step field of some transitions another value: rewards of a new classifier, labels, penalties.

        Args:
            field: a field of a step: ``"rewards"``, ``"actions"``, an extra one.
            ids: [N] numbers of the transitions, as batches have them (``sampler(ids=True)``); the transition of
                age i has the number ``first_id + i``.
            values: [N, …] like a column of the field.

        Returns:
            How many were changed; transitions that the store has given up are passed over.

        Raises:
            TypeError, ValueError: an unknown field, ``terminated`` or ``truncated`` (they say where episodes end),
                or values that do not fit. Nothing was changed.
        """
        names = [f.name for f in self.schema.steps]
        if field not in names:
            raise ValueError(f"field '{field}' is no field of a step; those are {', '.join(names)}")
        numbers = age_indices(ids)
        form = self.schema.steps[names.index(field)]
        column = to_stored(values, field, form.dtype, (len(numbers), *form.shape))
        changed = self._native.relabel(names.index(field), numbers, column)
        self._relabels += 1
        return changed

    def prioritize(self, alpha: float = 0.6, epsilon: float = 1e-6) -> None:
        """Keep a priority for every transition from now on: P(i) = p_i^alpha / Σ p^alpha.

        A new transition gets the largest priority so far (1 at first). Source: Schaul et al., "Prioritized
        experience replay", ICLR 2016, equation 1, proportional variant.

        Args:
            alpha: in [0, 1]; 0 is uniform.
            epsilon: added to every priority, above 0.

        Raises:
            ValueError: an argument is out of range, or priorities are kept already.
        """
        self._native.prioritize(float(alpha), float(epsilon))

    def update_priorities(self, ids: npt.ArrayLike, priorities: npt.ArrayLike) -> int:
        """Set p_i = priorities[i] + epsilon for the transitions ``ids``.

        Args:
            ids: [N], from a batch.
            priorities: [N], not negative: the magnitude of the TD error.

        Returns:
            How many were set; transitions that the store has given up are passed over.

        Raises:
            ValueError: a priority is negative or not finite, or no priorities are kept; nothing was changed.
        """
        errors = np.asarray(priorities, np.float32).reshape(-1)
        return self._native.update_priorities(age_indices(ids), errors)

    def state_dict(self) -> dict[str, Array]:
        """Contents, seed and number of draws as a flat dict of arrays, oldest transition first.

        Priorities and epochs that are under way are not kept.
        """
        state = self._native.state()
        numbers = {
            "capacity": self.capacity,
            "seed": state["seed"],
            "draws": state["draws"],
            "appended": state["appended"],
        }
        return states.pack(self.schema, numbers, state["continues"], state["records"], state["steps"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace contents, seed and number of draws; uniform draws go on as they would have where it was
        taken. All priorities become the largest again.

        Args:
            state: of a store with the same schema and at most ``capacity`` transitions.

        Raises:
            TypeError, ValueError: the state does not fit or is damaged; the store is unchanged.
        """
        numbers, continues, records, steps = states.unpack(self.schema, state)
        self._native.load(continues, records, steps, numbers["seed"], numbers["draws"], numbers["appended"])
        self._loads += 1

    def episodes(self) -> list[Slice]:
        """The episodes held now, oldest first, as views.

        One ends where a transition was terminated or truncated, and where the next one does not continue it.
        The first may have lost its beginning, the last may go on.
        """
        first, end, starts = self._native.episode_starts()
        edges = [first + int(age) for age in starts] + [end]
        return [Slice(self, start, stop) for start, stop in itertools.pairwise(edges)]

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Slice: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Slice:
        """The transition of an age, as it was appended, or a view of several; 0 is the oldest, -1 the newest."""
        first, size = self.first_id, len(self)
        if not isinstance(index, slice):
            return Slice(self, first, first + size)[operator.index(index)]
        start, stop, step = index.indices(size)
        if step != 1:
            raise ValueError(f"the step is {step}; a slice of a store is made of neighbours, step 1")
        return Slice(self, first + start, first + stop)

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
    def first_id(self) -> int:
        """Number of the oldest transition held: that of age 0."""
        return self._native.first_id

    @property
    def rewrites(self) -> tuple[int, int]:
        """How often this object changed what was stored: calls of ``relabel``, and of ``load_state_dict``."""
        return self._relabels, self._loads

    @property
    def nbytes(self) -> int:
        """Bytes that the contents occupy; what is reserved for the worst case is larger, but not resident."""
        return self._native.bytes_used

    @property
    def limiter(self) -> RateLimiter | None:
        """What ``append`` and ``extend`` wait for, and functions that ``appender`` returns from then on."""
        return self._limiter

    @limiter.setter
    def limiter(self, limiter: RateLimiter | None) -> None:
        append: Callable[..., Any] = self._native.appender_of_dicts()
        self._try_append = append if limiter is None else counted(limiter, append)
        self._limiter = limiter

    @property
    def seed(self) -> int:
        """Seed of the sampling."""
        return self._native.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._native.seed = word("seed", seed)

    @property
    def draws(self) -> int:
        """Number of batches drawn so far; set it to go on where another run stopped."""
        return self._native.draws

    @draws.setter
    def draws(self, draws: int) -> None:
        self._native.draws = word("draws", draws)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a copy of all contents is not what sending an object should mean."""
        raise TypeError(
            "a ReplayStore cannot be pickled; use snapshot(path) and ReplayStore.load(path), or share a store on disk: "
            "ReplayStore.open(path, mode='r') in the other process"
        )

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
