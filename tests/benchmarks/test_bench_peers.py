"""The cases of other packages: who is there is measured, who is not is a row, and what is ours may not be missing."""

from __future__ import annotations

import types

import pytest

from benchmarks import bench_peers
from benchmarks.peers import processes
from benchmarks.peers.update import LEARNERS
from benchmarks.suite import REGISTRY, Run

TINY = Run("cpu", "tiny")


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    processes.close_all()


def test_a_package_that_is_missing_is_a_row(monkeypatch):
    monkeypatch.setattr(bench_peers, "TINY", ("serl_fast", "NumPy", "Reverb"))
    work = REGISTRY["peers/append_states[1]"].build(TINY)
    assert set(work.functions) == {"serl_fast, positional call", "serl_fast", "NumPy"}
    assert work.missing["Reverb"].startswith("not installed (reverb and tensorflow not found")
    assert work.missing["rlox"] == "not at this scale"
    assert work.functions["serl_fast"].seconds_per_call(0) > 0
    assert work.extra["serl_fast"]["note"].startswith("serl_fast: ReplayStore")
    assert work.extra["serl_fast"]["capacity"] == 1024


def test_the_stores_are_filled_once_for_all_cases_of_their_data(monkeypatch):
    monkeypatch.setattr(bench_peers, "TINY", ("serl_fast", "NumPy"))
    first, second = (REGISTRY[f"peers/{name}"].build(TINY) for name in ("append_states[64]", "sample_states[256]"))
    assert first.functions["NumPy"].child is second.functions["NumPy, reused arrays"].child
    assert first.missing["serl_fast, positional call"] == "takes one transition at a time"
    torn = REGISTRY["peers/concurrent_states[sample]"].build(TINY)
    assert torn.extra["serl_fast"]["torn_rows_beside_the_appending_thread"].startswith("0.00%")
    third = REGISTRY["peers/sample_n_step"].build(TINY)
    assert third.functions["serl_fast"].child is not first.functions["serl_fast"].child
    assert first.functions["NumPy"].child.process.poll() is not None


def test_floors_are_marked_and_no_time_of_building_beside_others_is_given(monkeypatch):
    said = {"package": "p", "version": "1", "settings": "s", "gflop": None}
    group = processes.Group({name: types.SimpleNamespace(built=said) for name in LEARNERS}, {})
    monkeypatch.setattr(bench_peers, "learners", lambda *_: group)
    extra = REGISTRY["peers/update[1]"].build(Run(scale="quick")).extra
    floors = {name for name, each in extra.items() if each.get("floor") == "yes"}
    assert floors == {"matrix products alone", "matrix products alone, oneDNN"}
    assert set(extra["serl_fast, eager"]) == {"version", "note"}


def test_what_is_ours_may_not_be_missing():
    bench_peers.require_ours({"TorchRL": "not installed", "serl_fast, 1 thread": "not at this scale"})
    with pytest.raises(RuntimeError, match="serl_fast, eager: not the same work"):
        bench_peers.require_ours({"serl_fast, eager": "not the same work: 3 trained parameters"})


def test_interpreters_are_tried_in_the_order_given():
    assert processes.pythons(Run(peers_python="/a/python:/b/python"))[:2] == ["/a/python", "/b/python"]
    assert len(processes.pythons(TINY)) == 1
