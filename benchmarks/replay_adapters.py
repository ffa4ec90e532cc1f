"""Replay stores behind one interface, each fed and read as its own documentation shows.

What a store is fed with is brought into its own form beforehand and is not part of any timing: tensors for one that
stores tensors, a leading environment axis for one that wants it. Libraries are imported where they are used: a
process that measures one store loads that store alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.children import Unsupported as Unsupported
from benchmarks.replay_work import DISCOUNT, N_STEP, Columns, Work, named, transition

ALPHA, BETA = 0.6, 0.4
NAMES = {"uniform": "uniform", "n_step": "n-step", "prioritized": "prioritised"}


class Store:
    """A store of ``capacity`` transitions of ``work``, sampled in the given order.

    Attributes:
        package: distribution whose version is reported.
        orders: how it samples: "uniform", "n_step", "prioritized".
        fill_limit: rows beyond which filling it would take minutes; the capacity is cut to this.
        note: a line for the report.
    """

    package = ""
    orders: tuple[str, ...] = ("uniform",)
    fill_limit = 10**9
    note = ""

    def __init__(self, work: Work, order: str, capacity: int) -> None:
        if order not in self.orders:
            raise Unsupported(f"no {NAMES[order]} sampling")
        self.work, self.order, self.capacity = work, order, capacity

    def item(self, step: Columns) -> Any:
        """One transition in the store's form."""
        return step

    def block(self, steps: Columns) -> Any:
        """Many transitions in the store's form."""
        return steps

    def append(self, items: Iterable[Any]) -> None:
        """Store transitions one at a time; the loop is here so that it costs every store the same."""
        raise NotImplementedError

    def append_fast(self, items: Iterable[Any]) -> None:
        raise Unsupported("no faster call")

    def fast_item(self, step: Columns) -> Any:
        raise Unsupported("no faster call")

    def extend(self, block: Any) -> None:
        """Store many in one call."""
        raise Unsupported("takes one transition at a time")

    def fresh(self, rows: int) -> Callable[[], Any]:
        """A function that draws ``rows`` transitions into new arrays."""
        raise NotImplementedError

    def into(self, rows: int) -> Callable[[], Any]:
        """A function that draws into the same arrays every time."""
        raise Unsupported("allocates every batch")

    def prioritise(self, batch: Any, priorities: np.ndarray) -> None:
        """Give the rows of a batch new priorities."""
        raise Unsupported("no priorities")

    def parts(self, batch: Any) -> dict[str, Any]:
        """The arrays of a batch under the names of ``wrong_rows``."""
        raise NotImplementedError


class SerlFast(Store):
    package = "serl-fast"
    orders = ("uniform", "n_step", "prioritized")

    def __init__(self, work: Work, order: str, capacity: int) -> None:
        from serl_fast.replay import ReplayStore

        super().__init__(work, order, capacity)
        self.store = ReplayStore.from_example(transition(work.steps, 0), capacity, seed=0)
        options = {"n_step": {"n_step": N_STEP}, "prioritized": {"order": "prioritized", "beta": BETA}}
        if order == "prioritized":
            self.store.prioritize(alpha=ALPHA)
        self.sampler = self.store.sampler(discount=DISCOUNT, **options.get(order, {}))

    def append(self, items):
        append = self.store.append
        for item in items:
            append(item)

    def fast_item(self, step):
        flat = {f"observations/{key}" if key else "observations": value for key, value in self._flat(step, "")}
        flat |= {f"next_observations/{key}" if key else "next_observations": v for key, v in self._flat(step, "next_")}
        flat |= {key: value for key, value in step.items() if not key.endswith("observations")}
        return tuple(flat[field.name] for field in self.store.schema.inputs)

    @staticmethod
    def _flat(step, prefix):
        observations = step[f"{prefix}observations"]
        return observations.items() if isinstance(observations, dict) else [("", observations)]

    def append_fast(self, items):
        append = self.store.appender()
        for item in items:
            append(*item)

    def extend(self, block):
        self.store.extend(block)

    def fresh(self, rows):
        return lambda: self.sampler.sample(rows)

    def into(self, rows):
        batch = self.sampler.empty_batch(rows)

        def draw():
            self.sampler.sample_into(batch)
            return batch

        return draw

    def prioritise(self, batch, priorities):
        self.store.update_priorities(batch["ids"], priorities)

    def parts(self, batch):
        seen, nexts = named(batch["observations"]), named(batch["next_observations"])
        return parts_of(seen, nexts, batch["actions"], batch["rewards"])


def one_thread() -> None:
    """Keep our store from splitting its copies, where it does."""
    from serl_fast.replay import _native

    _native.set_threads(1)


class NumPy(Store):
    """What is written by hand when no library is used: one array a field, both observations kept."""

    package = "numpy"

    def __init__(self, work, order, capacity):
        super().__init__(work, order, capacity)
        first = self._columns(transition(work.steps, 0))
        self.arrays = {key: np.zeros((capacity, *np.shape(v)), dtype_of(v)) for key, v in first.items()}
        self.next, self.size = 0, 0
        self.random = np.random.default_rng(0)

    @staticmethod
    def _columns(step):
        seen = {f"observations/{key}": value for key, value in named(step["observations"]).items()}
        seen |= {f"next_observations/{key}": value for key, value in named(step["next_observations"]).items()}
        return seen | {key: value for key, value in step.items() if not key.endswith("observations")}

    item = block = _columns

    def append(self, items):
        for item in items:
            for key, array in self.arrays.items():
                array[self.next] = item[key]
            self.next = (self.next + 1) % self.capacity
            self.size = min(self.size + 1, self.capacity)

    def extend(self, block):
        rows = len(block["rewards"])
        head = min(rows, self.capacity - self.next)
        for key, array in self.arrays.items():
            array[self.next : self.next + head] = block[key][:head]
            if head < rows:
                array[: rows - head] = block[key][head:]
        self.next = (self.next + rows) % self.capacity
        self.size = min(self.size + rows, self.capacity)

    def fresh(self, rows):
        def draw():
            indices = self.random.integers(0, self.size, rows)
            return {key: array[indices] for key, array in self.arrays.items()}

        return draw

    def into(self, rows):
        batch = {key: np.empty((rows, *array.shape[1:]), array.dtype) for key, array in self.arrays.items()}

        def draw():
            indices = self.random.integers(0, self.size, rows)
            for key, array in self.arrays.items():
                np.take(array, indices, axis=0, out=batch[key], mode="clip")  # "raise" would go through a copy
            return batch

        return draw

    def parts(self, batch):
        return parts_of(
            {key.partition("/")[2]: value for key, value in batch.items() if key.startswith("observations/")},
            {key.partition("/")[2]: value for key, value in batch.items() if key.startswith("next_observations/")},
            batch["actions"],
            batch["rewards"],
        )


class NumPyRows(NumPy):
    """One array whose rows have the bytes of a transition: the cost of random reads and nothing else."""

    def __init__(self, work, order, capacity):
        super().__init__(work, order, 1)
        self.arrays = {"row": np.zeros((capacity, work.transition_bytes), np.uint8)}
        self.capacity = self.size = capacity

    def extend(self, block):
        rows = len(block["rewards"])
        self.arrays["row"][self.next : self.next + rows] = 1
        self.next = (self.next + rows) % self.capacity

    def parts(self, batch):
        raise Unsupported("rows without fields")


def dtype_of(value):
    return np.float32 if isinstance(value, float) else np.asarray(value).dtype


def leading_axis(value):
    if isinstance(value, dict):
        return {key: array[None] for key, array in value.items()}
    return np.asarray(value, dtype_of(value))[None]


def parts_of(seen, nexts, action, reward):
    found = {"state": seen["state"], "next_state": nexts["state"], "action": action, "reward": reward}
    if "front" in seen:
        found |= {"front": seen["front"], "next_front": nexts["front"]}
    return found
