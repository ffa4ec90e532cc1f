"""A replay store is only compared when it delivers what was stored."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.children import Unsupported
from benchmarks.peers import settings
from benchmarks.peers.replay import STORES, plain_numpy, store_kind, transitions, worker
from benchmarks.peers.replay.worker import Worker


class Faulty(plain_numpy.NumPy):
    """NumPy's store with a planted mistake."""

    fault = ""

    def append(self, items):
        if self.fault != "append does nothing":
            super().append(items)

    def extend(self, block):
        if self.fault == "extend of a block stores half of it" and len(block["rewards"]) == 64:
            block = {key: array[:32] for key, array in block.items()}
        if self.fault != "extend does nothing":
            super().extend(block)

    def fresh(self, rows):
        if self.fault == "one episode alone":
            self.size = 128
        draw = super().fresh(rows // 2 if self.fault == "fewer rows" else rows)
        if self.fault == "the same batch":
            batches = []
            return lambda: (batches or batches.append(draw()) or batches)[0]
        return lambda: self.spoilt(draw())

    def into(self, rows):
        draw = super().into(rows)
        if self.fault == "reused arrays are not filled":
            batch = draw()
            return lambda: batch
        return draw

    def spoilt(self, batch):
        if self.fault == "no flags":
            return {key: array for key, array in batch.items() if key not in ("terminated", "truncated")}
        if self.fault == "flags are zeros":
            return batch | {"truncated": np.zeros_like(batch["truncated"])}
        if self.fault == "half of a state":
            batch["observations/state"][:, 16:] = 0
        if self.fault == "other actions":
            return batch | {"actions": np.roll(batch["actions"], 1, 0)}
        if self.fault == "next is now":
            return batch | {"next_observations/state": batch["observations/state"]}
        return batch


@pytest.fixture
def build(monkeypatch):
    monkeypatch.setattr(worker.gc, "freeze", lambda: None)

    def built(fault):
        monkeypatch.setattr(worker, "store_kind", lambda *_: Faulty)
        monkeypatch.setattr(Faulty, "fault", fault)
        return Worker("NumPy", "states", "uniform").build(1024)

    return built


def test_a_store_that_does_the_work_is_measured(build):
    assert build("")["wrong"] == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("append does nothing", "append: no batch"),
        ("extend does nothing", "batches: no batch"),
        ("the same batch", "batches: the same rows twice"),
        ("one episode alone", "128 of 1024 stored transitions were drawn"),
        ("fewer rows", "have not 256 rows"),
        ("other actions", "are not what was stored"),
        ("next is now", "100.0% of the rows"),
        ("reused arrays are not filled", "batches in reused arrays: the same rows twice"),
        ("no flags", "batches hold no terminated, truncated"),
        ("flags are zeros", r"not what was stored \(truncated in"),
        ("half of a state", r"not what was stored \(state in 4096\)"),
    ],
)
def test_other_work_is_refused(build, fault, said):
    with pytest.raises(Unsupported, match=f"not the same work: .*{said}"):
        build(fault)


def test_blocks_that_are_stored_in_part_are_refused(monkeypatch):
    monkeypatch.setattr(worker.gc, "freeze", lambda: None)
    monkeypatch.setattr(worker, "store_kind", lambda *_: Faulty)
    store = Worker("NumPy", "states", "uniform")
    store.build(1024)
    store.prepare("extend", 64)
    monkeypatch.setattr(Faulty, "fault", "extend of a block stores half of it")
    with pytest.raises(Unsupported, match="extend: 128 of 256 stored transitions were drawn"):
        store.prepare("extend", 64)


def test_half_an_image_or_another_camera_is_a_wrong_row():
    work = transitions.cameras()
    parts = {
        f"{prefix}{key}": array[:40].copy()
        for prefix, column in (("", "observations"), ("next_", "next_observations"))
        for key, array in work.steps[column].items()
    }
    assert transitions.wrong_rows(work, parts, 1) == 0
    assert transitions.wrong_rows(work, parts | {"wrist": parts["front"]}, 1) == 40
    assert transitions.wrong_rows(work, parts | {"front": parts["front"][:, :64]}, 1) == 40, "the shape"
    parts["next_wrist"][7, 64:] = 0
    assert transitions.wrong_fields(work, parts, 1)["next_wrist"].nonzero()[0].tolist() == [7]


def test_what_a_package_does_not_deliver_is_said(monkeypatch):
    monkeypatch.setattr(worker.gc, "freeze", lambda: None)
    monkeypatch.setattr(worker, "store_kind", lambda *_: Faulty)
    monkeypatch.setattr(Faulty, "fault", "no flags")
    monkeypatch.setattr(Faulty, "lacks", {"uniform": ("terminated", "truncated")})
    said = Worker("NumPy", "states", "uniform").build(1024)["settings"]
    assert said.endswith(" Its batches hold no terminated, truncated.")


@pytest.mark.parametrize("order", ["n_step", "prioritized"])
def test_the_twin_in_numpy_is_the_same_work(monkeypatch, order):
    monkeypatch.setattr(worker.gc, "freeze", lambda: None)
    assert Worker("NumPy", "states", order).build(1024)["wrong"] == 0


@pytest.mark.parametrize(
    ("work", "order"), [("states", "uniform"), ("states", "n_step"), ("states", "prioritized"), ("cameras", "uniform")]
)
def test_ours_is_the_same_work(monkeypatch, work, order):
    monkeypatch.setattr(worker.gc, "freeze", lambda: None)
    store = Worker("serl_fast", work, order)
    assert store.build(1024 if work == "states" else 128)["wrong"] == 0
    if order == "uniform":
        assert store.prepare("append_fast", 128) == {}
        assert store.rate("concurrent", 256, 0.0)["append"] > 0
        assert store.torn(0.05)["concurrent"] == 0


def test_every_store_says_how_it_is_set():
    for name in STORES:
        kind = store_kind(name)
        assert settings(kind).lower().startswith(name.lower())
        assert kind.modules
        assert kind.package
