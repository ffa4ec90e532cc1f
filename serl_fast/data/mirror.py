"""One replay store's transitions in memory of a device, each frame once, kept up to date in large copies."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serl_fast.replay import ReplayStore
from serl_fast.replay.schema import Schema

CHUNK_BYTES = 64 << 20  # staged on the host at once
_SMALL_RECORD = 1024  # bytes; with smaller records there is room for every step to be a stretch of its own


@dataclass(frozen=True)
class Form:
    """Which fields of a store are mirrored, and how much room they get.

    Attributes:
        observations: names of the observation fields.
        steps: names of the step fields.
        stack: records that an observation is made of, T: the largest ``frame_stack``.
        record_bytes: one instant's frames.
        step_bytes: one transition's own fields and the places of its T + 1 records.
        capacity: transitions that batches may hold; at most those of the store.
        rows: transitions that there is room for: ``capacity``, and spare ones that are filled while batches still read
            the oldest.
        records: records that there is room for.
    """

    observations: tuple[str, ...]
    steps: tuple[str, ...]
    stack: int
    record_bytes: int
    step_bytes: int
    capacity: int
    rows: int
    records: int

    @classmethod
    def of(cls, store: ReplayStore, names: Collection[str], capacity: int | None = None) -> Form:
        """The form of ``store``, of whose fields only those in ``names`` are wanted, and the newest ``capacity`` steps.

        A stretch of k steps takes k + T records. Small records get room for the shortest stretches, all of one step;
        large ones (images) for stretches of 8 steps on average, 12.5 % more than one record a step.
        """
        schema = store.schema
        observations = [f for f in schema.observations if f.name in names]
        steps = [f for f in schema.steps if f.name in names]
        stack = max(f.stack for f in schema.observations)
        record_bytes = sum(_nbytes(f.dtype, f.shape) for f in observations)
        capacity = store.capacity if capacity is None else min(capacity, store.capacity)
        rows = capacity + max(16, capacity // 128)
        records = (stack + 1) * rows
        if record_bytes > _SMALL_RECORD:
            records = min(records, rows + rows // 8 + 16 * (stack + 1))
        return cls(
            tuple(f.name for f in observations),
            tuple(f.name for f in steps),
            stack,
            record_bytes,
            sum(_nbytes(f.dtype, f.shape) for f in steps) + 4 * (stack + 1),
            capacity,
            rows,
            records,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the whole region."""
        return self.rows * self.step_bytes + self.records * self.record_bytes


@dataclass
class Arena:
    """The memory that all mirrored stores share, so that a batch of several stores is one gather.

    Attributes:
        records: per observation field one frame an instant, [records, ...].
        steps: per step field [rows, ...].
        slots: int32 [rows, T + 1]: the records of a step's T frames, oldest first, and of its next observation.
    """

    records: dict[str, Tensor]
    steps: dict[str, Tensor]
    slots: Tensor

    @classmethod
    def empty(cls, schema: Schema, forms: list[Form], device: torch.device) -> Arena:
        """Zeros for the regions of all stores, one after the other."""
        rows, records = sum(form.rows for form in forms), sum(form.records for form in forms)
        fields = {f.name: f for f in (*schema.observations, *schema.steps)}

        def zeros(name: str, length: int) -> Tensor:
            dtype: torch.dtype = getattr(torch, fields[name].dtype)
            return torch.zeros((length, *fields[name].shape), dtype=dtype, device=device)

        return cls(
            {name: zeros(name, records) for name in forms[0].observations},
            {name: zeros(name, rows) for name in forms[0].steps},
            torch.zeros((rows, forms[0].stack + 1), dtype=torch.int32, device=device),
        )


class Staging:
    """Host memory for one copy, page-locked for a CUDA device.

    It is not used a second time: torch hands such memory out again only when the copies from it are done.
    """

    def __init__(self, schema: Schema, form: Form, steps: int, records: int, pinned: bool) -> None:
        self.continues = np.zeros(steps, bool)
        self.slots = torch.empty((steps, form.stack + 1), dtype=torch.int32, pin_memory=pinned)
        self.records: dict[str, Tensor] = {}
        self.steps: dict[str, Tensor] = {}
        for fields, length, wanted, into in (
            (schema.observations, records, form.observations, self.records),
            (schema.steps, steps, form.steps, self.steps),
        ):
            for field in fields:
                if field.name in wanted and length:
                    dtype: torch.dtype = getattr(torch, field.dtype)
                    into[field.name] = torch.empty((length, *field.shape), dtype=dtype, pin_memory=pinned)

    def fill(self, store: ReplayStore, first: int) -> tuple[int, int, int]:
        """Take steps from ``first`` on: the number of the first that came, how many steps, and how many records."""
        records = [_array(self.records.get(f.name)) for f in store.schema.observations]
        steps = [_array(self.steps.get(f.name)) for f in store.schema.steps]
        try:
            return store._native.copy_steps(first, self.continues, records, steps)
        except ValueError as error:
            raise ValueError(
                f"the store can not be mirrored: {error} (ReplayStore.load(path, damaged='skip') leaves them out)"
            ) from error


@dataclass(frozen=True)
class Chunk:
    """Steps on their way: ``count`` of them from number ``first`` on, with ``records`` records."""

    first: int
    count: int
    records: int
    staging: Staging
    numbers: npt.NDArray[np.int64]  # of each step's newest record, counted from the mirror's beginning


class Mirror:
    """The part of an arena that follows one store.

    Steps keep the store's numbers; step n lies in row n mod ``form.rows``. Records are numbered as they come, in the
    order of time, so those of one observation are neighbours; record q lies in place q mod ``form.records``.

    Args:
        store: what is followed.
        form: of its region.
        arena: where it lies.
        first_row: of the region, in ``arena.steps`` and ``arena.slots``.
        first_record: of the region, in ``arena.records``.
        pinned: whether host memory is page-locked.

    Attributes:
        begin: the first step that batches may hold.
        end: the step that comes next.
        short: whether steps were given up before their time, for want of records.
    """

    def __init__(
        self, store: ReplayStore, form: Form, arena: Arena, first_row: int, first_record: int, pinned: bool
    ) -> None:
        self.store, self.form, self.arena = store, form, arena
        self.first_row, self.first_record, self._pinned = first_row, first_record, pinned
        self._relabels, self._loads = store.rewrites
        self.begin = self.end = 0
        self.short = False
        self._record_end = 0
        self._numbers = np.zeros(form.rows, np.int64)  # per row that of the step's newest record

    def relabelled(self) -> bool:
        """Whether fields of steps were changed in the store; counts as seen from now on."""
        relabels, self._relabels = self._relabels, self.store.rewrites[0]
        return relabels != self._relabels and self.end > self.begin

    def replaced(self) -> bool:
        """Whether the store was given other contents; the mirror is then empty."""
        loads, self._loads = self._loads, self.store.rewrites[1]
        if loads == self._loads and self.store.appended >= self.end:
            return False
        self.begin = self.end = 0
        return True

    def chunks(self, until: int) -> Iterator[Chunk]:
        """What the store has got, up to step ``until`` at least, in parts; each must be written before the next."""
        while self.end < until:
            chunk = self._take(until - self.end)
            if chunk is None:  # the store was emptied meanwhile: the next look will tell
                return
            yield chunk

    def lost_to(self, chunk: Chunk) -> int:
        """The first step that is still whole when ``chunk`` has been written."""
        if chunk.first > self.end:  # what lies between was given up before it could be copied
            return chunk.first
        oldest_record = self._record_end + chunk.records - self.form.records
        step = max(self.begin, chunk.first + chunk.count - self.form.rows)
        while step < self.end and self._numbers[step % self.form.rows] - self.form.stack < oldest_record:
            step += 1
            self.short = self.short or step > self.store.first_id
        return step

    def write(self, chunk: Chunk) -> None:
        """Copy ``chunk`` to its place; what it overwrites is no longer drawn."""
        self.begin = self.lost_to(chunk)
        rows, places = self.form.rows, self.form.records
        self._numbers[np.arange(chunk.first, chunk.first + chunk.count) % rows] = chunk.numbers
        before = np.arange(-self.form.stack, 1)
        slots = self.first_record + (chunk.numbers[:, None] + before) % places
        chunk.staging.slots[: chunk.count] = torch.from_numpy(slots.astype(np.int32))
        steps = {**chunk.staging.steps, "": chunk.staging.slots}
        for to, source, count in _parts(chunk.first, chunk.count, rows):
            for name, staged in steps.items():
                whole = self.arena.steps[name] if name else self.arena.slots
                _copy(whole, self.first_row + to, staged, source, count)
        for to, source, count in _parts(self._record_end, chunk.records, places):
            for name, staged in chunk.staging.records.items():
                _copy(self.arena.records[name], self.first_record + to, staged, source, count)
        self._record_end += chunk.records
        self.end = chunk.first + chunk.count

    def write_labels(self) -> None:
        """Copy the fields of all steps once more."""
        first = self.begin
        while first < self.end:
            most = min(self.end - first, max(1, CHUNK_BYTES // self.form.step_bytes))
            staging = Staging(self.store.schema, self.form, most, 0, self._pinned)
            came, count, _ = staging.fill(self.store, first)
            count = min(count, self.end - came)
            if count <= 0:
                return
            for to, source, length in _parts(came, count, self.form.rows):
                for name, staged in staging.steps.items():
                    _copy(self.arena.steps[name], self.first_row + to, staged, source, length)
            first = came + count

    def give_up_before(self, first: int) -> None:
        """Steps before ``first`` are the store's no longer, or more than there is to be room for."""
        self.begin = max(self.begin, min(max(first, self.end - self.form.capacity), self.end))

    def _take(self, wanted: int) -> Chunk | None:
        form = self.form
        steps = min(wanted, max(1, CHUNK_BYTES // (form.record_bytes + form.step_bytes)), form.rows // 2)
        # Few steps may all be stretches of their own; of many the copy ends where the records do.
        records = (form.stack + 1) * steps if steps <= 16 else steps + steps // 4 + form.stack + 1
        records = min(records, max(form.records // 2, form.stack + 1))
        staging = Staging(self.store.schema, form, steps, records, self._pinned)
        first, count, used = staging.fill(self.store, self.end)
        if count == 0:
            return None
        taken = np.where(staging.continues[:count], 1, form.stack + 1)
        return Chunk(first, count, used, staging, self._record_end + np.cumsum(taken) - 1)


def _parts(first: int, count: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Numbers first … first + count - 1 in a ring: (place, offset among them, how many), one part or two."""
    place = first % length
    head = min(count, length - place)
    yield place, 0, head
    if head < count:
        yield 0, head, count - head


def _copy(whole: Tensor, to: int, staged: Tensor, source: int, count: int) -> None:
    whole[to : to + count].copy_(staged[source : source + count], non_blocking=True)


def _array(tensor: Tensor | None) -> npt.NDArray[np.generic] | None:
    return None if tensor is None else tensor.numpy()


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
