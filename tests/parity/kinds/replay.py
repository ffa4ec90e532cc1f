"""Our store beside the original's memory-efficient buffer, insertion by insertion.

The original returns wrong pixels after a truncation and at some wrap-arounds; ``meta.json`` lists where. There ours is
compared with what was inserted, everywhere else with what the original returned, bit for bit.

What the recording says of the original's slots (its frame ring) has no counterpart in our store: :class:`Slots` follows
the rules in ``meta.json``, so that slots can be translated to transitions and the recorded account of them is checked.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from serl_fast.replay import ReplayStore
from tests.parity.fixture import Fixture
from tests.parity.library import Library

REFERENCE = ("episode", "t", "obs_frame_id", "next_frame_id")  # of which episode and frames the insertions are made
LOOKS = ("observations", "next_observations")


def replay_buffer(fixture: Fixture, library: Library) -> None:
    """Every case: what every sampleable slot returns at every checkpoint, packed and not; seeded draws; the ring."""
    for name, settings in fixture.config["cases"].items():
        Case(fixture, name, settings).compare()


class Slots:
    """Which transition each slot of the original's ring belongs to, and which slots can be sampled.

    Args:
        capacity: number of slots.
        stack: frames T of an observation.
    """

    def __init__(self, capacity: int, stack: int) -> None:
        self.capacity, self.stack = capacity, stack
        self.owner = np.full(capacity, -1)
        self.valid = np.zeros(capacity, dtype=bool)
        self.index = self.size = 0
        self.first = True

    def insert(self, number: int, done: bool) -> None:
        """Transition ``number`` after its filler slots, or after the last slots' copies where a full ring wraps."""
        if self.index == 0 and self.size == self.capacity and not self.first:
            for owner in self.owner[-self.stack :].copy():
                self._write(owner, sampleable=False)
        if self.first:
            for _ in range(self.stack):
                self._write(number, sampleable=False)
        self._write(number, sampleable=True)
        self.first = done
        self.valid[np.arange(self.index, self.index + self.stack) % self.size] = False

    def sample(self, seed: int, count: int) -> np.ndarray:
        """The slots that the original draws: uniform, one by one again where a slot can not be sampled."""
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        slots = random.integers(self.size, size=count)
        for row in range(count):
            while not self.valid[slots[row]]:
                slots[row] = random.integers(self.size)
        return slots

    def _write(self, owner: int, *, sampleable: bool) -> None:
        self.owner[self.index], self.valid[self.index] = owner, sampleable
        self.index = (self.index + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)


@dataclasses.dataclass
class Case:
    """One scripted run of insertions."""

    fixture: Fixture
    name: str
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        at = f"{self.name}/insert"
        self.inserted = {name: self.fixture.given(f"{at}/{name}").numpy() for name in self.fixture.below(at)}
        self.count = len(self.inserted["rewards"])
        self.stack = self.settings["stack"]
        self.keys = [name.split("/", 1)[1] for name in self.inserted if name.startswith("observations/")]
        self.pixels = [key for key in self.fixture.config["pixel_keys"] if key in self.keys]
        self.slots = Slots(self.settings["capacity"], self.stack)
        example = self.transition(0)
        frames = dict.fromkeys(self.pixels, self.stack) if self.stack > 1 else 1
        self.store = ReplayStore.from_example(example, self.count, frame_stack=frames)

    def transition(self, number: int) -> dict[str, Any]:
        """What is inserted as ``number``."""
        steps = {
            name: values[number] for name, values in self.inserted.items() if "/" not in name and name not in REFERENCE
        }
        steps = {name: v if name == "dones" else v.astype(np.float32) for name, v in steps.items()}
        return {**{look: {key: self.inserted[f"{look}/{key}"][number] for key in self.keys} for look in LOOKS}, **steps}

    def compare(self) -> None:
        """Insert everything; at the checkpoints and at the end compare."""
        trace: dict[str, list[Any]] = {"insert_index": [], "size": [], "valid": [], "first": []}
        wraps, faults = [], {}
        for number in range(self.count):
            before = (self.slots.index, bool(self.slots.first))
            self.store.append(self.transition(number))
            self.slots.insert(number, bool(self.inserted["dones"][number]))
            if self.slots.index < before[0]:
                wraps.append(
                    {
                        "transition": number,
                        "index_before": before[0],
                        "index_after": self.slots.index,
                        "first_flag_before": before[1],
                    }
                )
            now = (self.slots.index, self.slots.size, self.slots.valid.copy(), bool(self.slots.first))
            for column, value in zip(trace.values(), now, strict=True):
                column.append(value)
            if number + 1 in self.settings["checked_after"]:
                faults[str(number + 1)] = self.compare_samples(number + 1)
        for name, values in trace.items():
            self.fixture.compare(f"{self.name}/trace/{name}", np.array(values), "exact", group=f"{self.name}/trace")
        self.compare_seeded()
        listed = self.settings.get("sampled_differs_from_inserted", {})
        found = {after: rows for after, rows in faults.items() if rows}
        self.fixture.compare_setting(f"{self.name}.sampled_differs_from_inserted", found, listed)
        if "wraps" in self.settings:
            self.fixture.compare_setting(f"{self.name}.wraps", wraps, self.settings["wraps"])

    def compare_samples(self, after: int) -> list[dict[str, Any]]:
        """What every sampleable slot returns after that many insertions; where the original is wrong."""
        at = f"{self.name}/after{after}"
        slots = np.flatnonzero(self.slots.valid)
        owners = self.slots.owner[slots]
        self.fixture.compare(f"{at}/indices", slots, "exact")
        self.fixture.compare(f"{at}/owner", owners, "exact")
        listed = self.settings.get("sampled_differs_from_inserted", {}).get(str(after), [])
        wrong = np.isin(slots, [row["slot"] for row in listed])
        batch = self.returned(owners)
        differs = {"pixels_equal": np.zeros(len(slots), bool), "other_fields_equal": np.zeros(len(slots), bool)}
        for name in self.fixture.below(f"{at}/sample"):
            part = "pixels_equal" if name.split("/")[-1] in self.pixels else "other_fields_equal"
            differs[part] |= self.compare_rows(f"{at}/sample/{name}", batch[name], wrong, self.inserted[name][owners])
        for name in self.fixture.below(f"{at}/sample_packed"):
            ours = self.packed(batch, name)
            right = self.packed(self.inserted, name)[owners]
            self.compare_rows(f"{at}/sample_packed/{name}", ours, wrong, right)
        found = []
        for row, (slot, owner) in enumerate(zip(slots.tolist(), owners.tolist(), strict=True)):
            equal = {part: not rows[row] for part, rows in differs.items()}
            if not all(equal.values()):
                found.append({"slot": slot, "transition": owner, **equal})
                self.fixture.known_fault(f"{at}: slot {slot} returns other pixels than transition {owner} was given")
        return found

    def compare_rows(self, name: str, ours: np.ndarray, wrong: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Compare one array, its wrong rows with what is right; which rows of the recording are not."""
        recorded = self.fixture.recorded(name)
        corrected = recorded.copy()
        corrected[wrong] = right[wrong]
        group = "/".join((self.name, "after*", *name.split("/")[2:4]))
        self.fixture.compare(name, ours, "exact", group=group, corrected=corrected)
        same: np.ndarray = (recorded == right).reshape(len(right), -1).all(1)
        return ~same

    def returned(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Our store's rows, under the recording's names."""
        batch = self.store.batch_at(numbers)
        looks = {f"{look}/{key}": batch[look][key] for look in LOOKS for key in self.keys}
        steps = {name: batch[name] for name in self.inserted if name in batch}
        return {**looks, **steps, "dones": batch["terminated"]}

    def packed(self, rows: dict[str, np.ndarray], name: str) -> np.ndarray:
        """The observation's frames and the next one."""
        key = name.removeprefix("observations/")
        return np.concatenate([rows[f"observations/{key}"], rows[f"next_observations/{key}"][:, -1:]], axis=1)

    def compare_seeded(self) -> None:
        """Actions of the original's own draws."""
        at = f"{self.name}/seeded"
        if f"{at}/seed" not in self.fixture:
            return
        seed = int(self.fixture.given(f"{at}/seed"))
        count = len(self.fixture.recorded(f"{at}/actions"))
        owners = self.slots.owner[self.slots.sample(seed, count)]
        self.fixture.compare(f"{at}/actions", self.returned(owners)["actions"], "exact")
