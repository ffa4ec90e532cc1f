"""Replay in the learner's own memory: stores mirrored on a device, batches drawn there."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from serl_fast.core import Batch, Noise
from serl_fast.data.mirror import Arena, Form, Mirror
from serl_fast.data.pinned import SideStream
from serl_fast.replay import ReplayStore
from serl_fast.replay.layout import Layout

Placement = Literal["auto", "host", "device"]

_RANDOM_BITS = 62  # of a random number: the most that int64 holds and that every generator draws without bias
_LARGEST_SHARE = 0.7  # of the device's free memory that the replay may take; the rest is for the learner

# Columns of the table that batches read, one row a store.
_SIZE, _UNTIL, _ID = range(3)


class DeviceReplay:
    """Draws the batches of a ``Mixture`` from memory of the learner's device: a ``core.DeviceSource``.

    The stores stay what they are: the actor appends to them, checkpoints are made of them. :meth:`sync` copies to the
    device what they have got since. Every field lies there once, uint8 images as uint8, each frame once: a step says
    in which places the frames of its observation and of its next observation lie.

    * **Batches** hold what ``store.sampler(discount)`` gives, byte for byte: for row i of an update, the first
      ``counts[0]`` rows are drawn uniformly with replacement from the first store, the next from the second, ...
      Only the order of the draws is another one, for the random numbers are the engine's.
    * **Drawing.** Step = r mod n for n steps and r uniform in [0, 2^62): some steps are more likely than others by a
      factor of at most 1 + n / 2^62, 1 + 2e-13 for a million steps. (float32 uniforms would give n = 10^6 steps 16 or
      17 of 2^24 values each, 6 % apart, and never reach all steps beyond n = 2^24; float64 is not there on every
      device.)
    * **Growing.** How much there is to draw from lies in a tensor, so nothing is traced or captured again, and a
      step sees the stores as they were at the last ``sync``: steps given up before it are not drawn.
    * **Room.** A store that will hold far less than its capacity need not have all of that on the device. Where it
      outgrows its ``room``, that doubles: everything is copied once more and the step is built anew, which
      ``generation`` tells the engine and one line the user. Where the device has no memory for it, the newest
      transitions that there is room for are drawn from then on, which one line says too.
    * **Shares** follow the rule of ``Mixture``; a store counts by what is mirrored of it.
    * **Relabelled** fields are copied once more, at the next ``sync``; so is everything after ``load_state_dict``.
      What another process relabels in a store on disk is not noticed.

    One thread, the learner's, uses it; others may append to the stores at any time. Not yet run on a CUDA device; the
    order of streams is tested with a stand-in.

    Args:
        stores: with the same fields; their capacities may differ.
        batch_size: B, rows of one gradient step.
        shares: one per store, not negative; by default equal ones.
        discount: γ in [0, 1].
        min_size: what a store must hold to take part, at least 1.
        n_step: 1; anything else is refused.
        fields: names of the arrays wanted, as for ``ReplayStore.sampler``; others are not mirrored.
        ids: whether batches hold the numbers of their steps.
        room: transitions of each store that there is room for at first, and never less than it holds; by default, and
            at most, its capacity.
        device: where the mirror lies.
        cuda: streams and events; only tests give it.

    Attributes:
        layout: the arrays of a batch.
        generation: how often the tensors were replaced by larger ones.
        nbytes: bytes on the device.

    Raises:
        ValueError: the stores hold different fields, or an argument is out of range.
        MemoryError: the device has no room; the message says how much is needed.
    """

    def __init__(
        self,
        stores: Sequence[ReplayStore],
        batch_size: int,
        *,
        shares: Sequence[float] | None = None,
        discount: float = 0.99,
        min_size: int = 1,
        n_step: int = 1,
        fields: Iterable[str] | None = None,
        ids: bool = False,
        room: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        cuda: Any = None,
    ) -> None:
        _check(stores, batch_size, discount, min_size, n_step)
        self.stores = tuple(stores)
        self.batch_size, self.min_size = batch_size, min_size
        self.device = torch.device(device)
        schema = stores[0].schema
        self.layout = stores[0].sampler(discount, fields=fields, ids=ids).layout
        self._pinned = self.device.type == "cuda"
        self._lane = SideStream(self.device, cuda or torch.cuda) if self._pinned or cuda else None
        self._plan = _plan(self.layout, schema)
        self._discount = float(discount)
        self._positions = torch.arange(batch_size, device=self.device)
        self._table = torch.zeros((len(stores), 3), dtype=torch.int64, device=self.device)
        self._short_said = self._full = False
        self._seen: Any = None  # what the stores had got, and the shares, at the last sync
        self.generation = 0
        self.shares = tuple(shares) if shares is not None else (1.0,) * len(stores)
        self._lay_out(_rooms(stores, room))

    @property
    def shares(self) -> tuple[float, ...]:
        """One per store; may be set, for the batches after the next ``sync``."""
        return self._shares

    @shares.setter
    def shares(self, shares: Sequence[float]) -> None:
        possible = all(math.isfinite(share) and share >= 0 for share in shares) and any(shares)
        if len(shares) != len(self.stores) or not possible:
            raise ValueError(
                f"the shares are {tuple(shares)} for {len(self.stores)} stores; they are one per store, finite, not "
                "negative and not all 0"
            )
        self._shares = tuple(float(share) for share in shares)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Transitions of each store that batches may hold, as of the last ``sync``."""
        return tuple(mirror.end - mirror.begin for mirror in self._mirrors)

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each store in a batch; all 0 while no store with a share holds ``min_size`` transitions."""
        shares = [share if size >= self.min_size else 0.0 for share, size in zip(self.shares, self.sizes, strict=True)]
        return largest_remainders(shares, self.batch_size) if any(shares) else (0,) * len(shares)

    def sync(self) -> None:
        """Copy what the stores have got since the last call, and draw from it from now on.

        On a CUDA device the copies run on a stream of their own, beside work that is enqueued already; work enqueued
        from now on, on the current stream, waits for them, the host does not.
        """
        self._grow()
        seen = (self._shares, [(store.appended, store.rewrites) for store in self.stores])
        if seen == self._seen:
            return
        for mirror, begin in zip(self._mirrors, self._begins, strict=True):
            replaced = mirror.replaced()
            if mirror.relabelled():
                with self._copies(True):
                    mirror.write_labels()
            first = mirror.store.first_id  # before what follows: never more is given up than is there
            until = mirror.store.appended
            for chunk in mirror.chunks(until):
                with self._copies(replaced or mirror.lost_to(chunk) > begin):
                    mirror.write(chunk)
            mirror.give_up_before(first)
            self._say_if_short(mirror)
        if self._lane:
            self._lane.join()
        self._publish()
        self._seen = seen

    def _lay_out(self, room: list[int]) -> None:
        """Make room for so many transitions of each store; all are still to be copied.

        Raises:
            MemoryError: see the class.
        """
        names = _mirrored(self.layout)
        forms = [Form.of(store, names, each) for store, each in zip(self.stores, room, strict=True)]
        self.nbytes = sum(form.nbytes for form in forms)
        try:
            self._arena = Arena.empty(self.stores[0].schema, forms, self.device)
        except (RuntimeError, MemoryError) as error:  # torch's ways of saying so
            raise MemoryError(
                f"no memory for a replay of {self.nbytes / 1e9:.1f} GB on {self.device}; give the stores a smaller "
                f"capacity or keep the replay on the host: {error}"
            ) from error
        self._mirrors: list[Mirror] = []
        regions = []
        row = record = 0
        for store, form in zip(self.stores, forms, strict=True):
            self._mirrors.append(Mirror(store, form, self._arena, row, record, self._pinned))
            regions.append((row, form.rows))
            row, record = row + form.rows, record + form.records
        self._regions = torch.tensor(regions, device=self.device)  # [S, 2]: first row, rows
        self._published: list[list[int]] = []
        self._begins = [0] * len(self.stores)  # as of the last publication
        self._seen = None
        self._publish()  # copies wait for it, and so for steps that read what was there before

    def _grow(self) -> None:
        """Double the room of stores that have outgrown theirs."""
        before = [mirror.form.capacity for mirror in self._mirrors]
        held = [len(store) for store in self.stores]
        if self._full or all(size <= room for size, room in zip(held, before, strict=True)):
            return
        wanted = [
            max(room, min(2 * size, store.capacity)) if size > room else room
            for store, size, room in zip(self.stores, held, before, strict=True)
        ]
        del self._mirrors, self._arena  # there may not be memory for both
        try:
            self._lay_out(wanted)
            said = f"room for {_list(wanted)} transitions in place of {_list(before)}; the step is built anew"
        except MemoryError:
            self._full = True
            self._lay_out(before)
            said = f"no memory for {_list(wanted)} transitions; the newest {_list(before)} of the stores are drawn"
        self.generation += 1
        print(f"replay on {self.device}: {said}", file=sys.stderr, flush=True)

    def draw_noise(self, generator: torch.Generator, updates: int, device: torch.device) -> Noise:
        """The random numbers of the batches of ``updates`` gradient steps: ``steps``, int64 [U * B]."""
        size = (updates * self.batch_size,)
        return {"steps": torch.randint(0, 2**_RANDOM_BITS, size, generator=generator, device=device)}

    def drew_from(self) -> Noise:
        """What :meth:`draw` reads beside the noise; a copy, in a noise, has a batch gathered again after a ``sync``."""
        return {"table": self._table}

    def batch(self, noise: Noise) -> Batch:
        """The rows of all updates, [U * B, ...]; see ``core.DeviceSource``. Zeros before there is anything to draw."""
        rows, ids = self.draw(noise)
        return self.gather(rows, ids)

    def draw(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """The rows of the arena, and the numbers of their steps, int64 [U * B] each."""
        tables = noise.get("table", self._table)
        store = (self._positions[None, :] >= tables[:, _UNTIL, None]).sum(0)  # [B]
        table, region = tables[store], self._regions[store]
        age = noise["steps"].view(-1, self.batch_size) % table[:, _SIZE]
        row = region[:, 0] + (table[:, _ID] + age) % region[:, 1]
        return row.flatten(), (table[:, _ID] + age).flatten()

    def gather(self, rows: Tensor, ids: Tensor) -> Batch:
        """The steps that lie in rows [N] of the arena as a batch [N, ...]."""
        slots = self._arena.slots.index_select(0, rows).long()  # [N, T + 1]
        batch: Batch = {}
        for path, kind, name, first, count in self._plan:
            if kind == "frames":
                value = self._frames(name, slots[:, first : first + count])
            elif kind == "step":
                value = self._arena.steps[name].index_select(0, rows)
            elif kind == "ids":
                value = ids
            else:
                value = 1.0 - self._arena.steps["terminated"].index_select(0, rows).float()
                value = value * self._discount if kind == "discounts" else value
            node = batch
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = value
        return batch

    def _frames(self, name: str, slots: Tensor) -> Tensor:
        frames = self._arena.records[name].index_select(0, slots.flatten())
        return frames if slots.shape[1] == 1 else frames.view(*slots.shape, *frames.shape[1:])

    def _copies(self, over_announced: bool) -> Any:
        return self._lane.copies(over_announced) if self._lane else contextlib.nullcontext()

    def _publish(self) -> None:
        """Tell the steps to come what they draw from; by a copy in the order of the current stream."""
        counts = self.counts
        rows = []
        until = 0
        for mirror, size, count in zip(self._mirrors, self.sizes, counts, strict=True):
            until += count
            # Where there is nothing to draw, every row is the first one of the first store.
            rows.append([max(size, 1), until if any(counts) else self.batch_size, mirror.begin])
        if rows == self._published:
            return
        host = torch.tensor(rows)
        self._table.copy_(host.pin_memory() if self._pinned else host, non_blocking=True)
        self._published, self._begins = rows, [mirror.begin for mirror in self._mirrors]
        if self._lane:
            self._lane.announced()

    def _say_if_short(self, mirror: Mirror) -> None:
        if mirror.short and not self._short_said:
            self._short_said = True
            print(
                f"replay on {self.device}: the stretches of transitions are so short that {mirror.form.records} frames "
                f"do not reach for all {mirror.store.capacity} transitions; the oldest are not drawn (the store keeps "
                "them)",
                file=sys.stderr,
                flush=True,
            )

    def __repr__(self) -> str:
        """Fill and size."""
        held = ", ".join(f"{size} of {store.capacity}" for size, store in zip(self.sizes, self.stores, strict=True))
        return f"DeviceReplay({held} transitions, {self.nbytes / 1e6:.1f} MB on {self.device})"


def replay_bytes(
    stores: Sequence[ReplayStore], fields: Iterable[str] | None = None, room: Sequence[int] | None = None
) -> int:
    """Bytes that a :class:`DeviceReplay` of ``stores`` takes on its device, with ``room`` at first."""
    names = _mirrored(Layout(stores[0].schema, None, fields))
    rooms = _rooms(stores, room)
    return sum(Form.of(store, names, each).nbytes for store, each in zip(stores, rooms, strict=True))


def choose_placement(
    placement: Placement, stores: Sequence[ReplayStore], device: torch.device, room: Sequence[int] | None = None
) -> tuple[bool, str]:
    """Whether the replay of ``stores`` is to lie on ``device``, and a line that says why.

    It counts with the ``room`` that there is to be at first; see :class:`DeviceReplay`.

    Raises:
        ValueError: ``placement`` is none of "auto", "host" and "device".
    """
    if placement not in ("auto", "host", "device"):
        raise ValueError(f"replay_device is {placement!r}; it is auto, host or device")
    needed = replay_bytes(stores, room=room)
    size = f"{needed / 1e9:.1f} GB"
    if placement == "host":
        return False, "replay on the host, as asked"
    if device.type != "cuda":
        if placement == "device":
            return True, f"replay on the device, as asked: {size} on {device}"
        return False, f"replay on the host: a copy on {device} would save no transfer"
    free = torch.cuda.mem_get_info(device)[0]
    space = f"{size} of {free / 1e9:.1f} GB free"
    if placement == "device":
        return True, f"replay on the device, as asked: {space}"
    if needed <= _LARGEST_SHARE * free:
        return True, f"replay on the device: {space}"
    return False, f"replay on the host: on the device it would take {space}; a smaller replay_buffer_capacity would fit"


def largest_remainders(shares: Sequence[float], rows: int) -> tuple[int, ...]:
    """Rows for each of ``shares``, by the arithmetic of ``Mixture.counts``, which is the core's."""
    # Every share becomes an integer, so that the sum stays below 2^63.
    bits = 63 - len(shares).bit_length() - math.frexp(max(shares))[1]
    parts = [int(scaled) + (scaled % 1 >= 0.5) for scaled in (math.ldexp(share, bits) for share in shares)]
    total = sum(parts)
    counts = [part * rows // total for part in parts]
    rests = [part * rows % total for part in parts]
    for _ in range(rows - sum(counts)):
        largest = rests.index(max(rests))
        counts[largest] += 1
        rests[largest] = 0
    return tuple(counts)


def _check(stores: Sequence[ReplayStore], batch_size: int, discount: float, min_size: int, n_step: int) -> None:
    if not isinstance(stores, Sequence) or not stores or not all(isinstance(s, ReplayStore) for s in stores):
        raise TypeError("a DeviceReplay takes a list of ReplayStores")
    for number, store in enumerate(stores):
        stores[0].schema.require_equal(store.schema, f"store {number}")
    if n_step != 1:
        raise ValueError(f"n_step is {n_step}; on the device it is 1: keep the replay on the host for longer returns")
    if batch_size < 1 or min_size < 1:
        raise ValueError(f"batch_size is {batch_size} and min_size {min_size}; they are at least 1")
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"the discount is {discount}; it lies in [0, 1]")


def _rooms(stores: Sequence[ReplayStore], room: Sequence[int] | None) -> list[int]:
    """Transitions of each store that there is room for at first."""
    if room is None:
        return [store.capacity for store in stores]
    if len(room) != len(stores) or min(room) < 1:
        raise ValueError(f"room is {tuple(room)} for {len(stores)} stores; it is one per store, at least 1")
    return [min(max(each, len(store)), store.capacity) for each, store in zip(room, stores, strict=True)]


def _list(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def _mirrored(layout: Layout) -> set[str]:
    """Names of the stored fields that batches of ``layout`` are made of."""
    wanted = {column.name for column in layout.wanted}
    derived = {"terminated"} if wanted & {"masks", "discounts"} else set()
    return {name.removeprefix("next_") if name.startswith("next_observations") else name for name in wanted} | derived


def _plan(layout: Layout, schema: Any) -> list[tuple[tuple[str, ...], str, str, int, int]]:
    """Per array of a batch: its keys, kind, stored field, and which of the T + 1 records it is made of."""
    stacks = {field.name: field.stack for field in schema.observations}
    most = max(stacks.values())
    plan = []
    for column in layout.wanted:
        name = column.name.removeprefix("next_")
        later = column.name.startswith("next_observations")
        if name in stacks and (later or column.name in stacks):
            place = ("frames", name, most - stacks[name] + later, stacks[name])
        else:
            kind = column.name if column.name in ("masks", "discounts", "ids") else "step"
            place = (kind, column.name, 0, 0)
        plan.append((tuple(column.name.split("/")), *place))
    return plan
