"""The builders of the suite "update": which variants there are, why others are not, and what a call is said to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import bench_update
from benchmarks.bench_update import add_limit, learner, why
from benchmarks.measure import LIMIT, Outcome, measure
from benchmarks.memory import added_bytes, peak_bytes
from benchmarks.suite import REGISTRY, Run
from benchmarks.workloads import WORKLOADS
from serl_fast.engine.compiling import ExecutionError

SHORT = Run("cpu", "quick", rounds=2, seconds=0.005)


def test_a_short_run_leaves_out_what_has_to_be_compiled():
    work = learner(SHORT, WORKLOADS["state"].small())
    assert set(work.functions) == {"eager"}
    assert work.missing == dict.fromkeys(("compiled", "graphed"), "compiled from the scale normal on")


def test_a_call_of_a_block_counts_its_updates_and_products():
    block = learner(SHORT, WORKLOADS["rlpd"].small())
    single = learner(SHORT, replace(WORKLOADS["rlpd"].small(), updates=1))
    assert (block.units, block.unit) == (2, "updates")
    assert 1.2 * single.flops < block.flops < 2 * single.flops  # one step of the actor for both


def test_what_is_built_can_be_measured():
    work, outcome = learner(SHORT, WORKLOADS["state"].small()), Outcome.of(REGISTRY["update/step[state-256-float32]"])
    measure(work, SHORT, outcome)
    assert not outcome.failed
    assert {name: len(passes[0]) for name, passes in outcome.passes.items()} == {"eager": 2, LIMIT: 2}


def test_a_precision_without_a_device_is_a_reason():
    work = learner(SHORT, WORKLOADS["state"].small(), "tf32")
    assert not work.functions
    assert "needs a CUDA device" in work.missing["eager"]


def test_sixteen_bits_have_products_of_their_own():
    work = learner(SHORT, WORKLOADS["state"].small(), "bfloat16")
    assert work.flops > 0
    assert LIMIT not in work.extra
    work.limit()


def test_the_variants_are_measured_where_the_limit_can_not_be(monkeypatch):
    def broken(*_):
        raise RuntimeError("it can not be captured")

    monkeypatch.setattr(bench_update, "add_limit", broken)
    work = learner(SHORT, WORKLOADS["state"].small())
    assert work.missing[LIMIT] == "failed: RuntimeError: it can not be captured"
    assert set(work.functions) == {"eager"}


def test_the_graph_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(bench_update, "EXECUTIONS", ("eager", "graphed"))
    work = learner(replace(SHORT, scale="normal"), WORKLOADS["state"].small())
    assert "captures a CUDA graph" in work.missing["graphed"]


def test_a_step_that_does_not_compile_fails_where_there_is_a_compiler(monkeypatch):
    error = ExecutionError("no\n  graph")
    assert why(error, "compiled") == "failed: no graph"
    monkeypatch.setattr(bench_update, "default_execution", lambda: "eager")
    assert why(error, "compiled") == "there is no C++ compiler"
    assert why(error, "graphed") == "failed: no graph"


def test_threads_are_given_back(monkeypatch):
    before = torch.get_num_threads()
    work = learner(SHORT, WORKLOADS["state"].small(), threads=before + 1)
    assert torch.get_num_threads() == before + 1
    work.close()
    assert torch.get_num_threads() == before

    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(bench_update, "built", broken)
    with pytest.raises(RuntimeError, match="broken"):
        learner(SHORT, WORKLOADS["state"].small(), threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("onednn", "said"), [(0.5, "by oneDNN; by MKL 2.00"), (4.0, "by MKL; by oneDNN 4.00")])
def test_the_limit_is_the_faster_library(monkeypatch, onednn, said):
    monkeypatch.setattr(bench_update, "seconds", lambda f: onednn if hasattr(f, "__func__") else 1.0)
    work = learner(SHORT, WORKLOADS["state"].small())
    assert hasattr(work.limit, "__func__") == (onednn < 1)  # a method of the recorded products, or these themselves
    assert said in work.extra[LIMIT]["note"]
    work.limit()


def test_scaling_cases_have_the_sizes_of_the_pictures():
    def values(name):
        return [each.parameters[each.scaling] for each in REGISTRY.values() if each.name == name and each.scaling]

    assert values("by_batch") == [64, 128, 256, 512, 1024]
    assert values("by_ensemble") == [2, 5, 10]
    assert values("by_threads")[0] == 1
    assert values("by_threads")[-1] == bench_update.CORES


def test_peak_memory_is_what_is_held_and_added():
    held = torch.zeros(1000)

    def call():
        first = torch.ones(2000)
        second = first + 1
        del first
        return second.sum()

    assert 16_000 <= added_bytes(call) < 17_000
    assert 20_000 <= peak_bytes(lambda: (call, {"a": [held, held]}), "cpu") < 21_000


def test_peak_memory_of_a_device_is_its_own_account(monkeypatch):
    """A stand-in for the device: what is allocated, and the highest since the last reset."""
    account = {"now": 500, "peak": 10_000}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: account.update(peak=account["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: account["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: account["peak"])

    def build():
        account.update(now=700)
        return lambda: account.update(peak=900), {}

    assert peak_bytes(build, "cuda") == 400


def test_the_limit_of_a_device_is_a_captured_graph(monkeypatch):
    work = learner(SHORT, WORKLOADS["state"].small())
    monkeypatch.setattr(bench_update.MatrixProducts, "captured", lambda self: "graph")
    add_limit(work, "float32", Run("cuda"))
    assert work.limit == "graph"
