"""Limits are positive rates with a reason; yardsticks grow by one value each time."""

from __future__ import annotations

import subprocess

import pytest
import torch

from benchmarks import limits, machine
from benchmarks.limits import Yardsticks, copy_limit, cuda_limits, product_limits, row_gather_limit


def test_copy_counts_both_directions(monkeypatch):
    monkeypatch.setattr(limits, "best", lambda function, runs: 0.5)
    assert copy_limit(1, size=1 << 20).value == 2 * (1 << 20) / 0.5


def test_every_cpu_limit_is_a_rate():
    found = [copy_limit(1, 1 << 20), row_gather_limit(1, 8, 32), *product_limits(1, (64,))]
    assert [each.name for each in found[:3]] == ["copy", "row_gather", "products"]
    assert all(each.value > 1e6 and each.how for each in found)
    products = [each.value for each in found[3:]]
    assert found[2].value <= max(products)


def test_onednn_s_product_is_one_with_the_second_transposed():
    left, right = torch.randn(5, 4), torch.randn(3, 4)
    torch.testing.assert_close(limits.onednn_product(left, right), left @ right.T)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with limits.torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_yardsticks_are_taken_one_by_one():
    taken = Yardsticks()
    taken.take()
    taken.take()
    assert {name: len(values) for name, values in taken.times.items()} == {"copy": 2, "product": 2}
    assert all(value > 0 for values in taken.times.values() for value in values)


def test_yardsticks_know_no_tf32_and_leave_the_flag(monkeypatch):
    seen = []

    def clock(function, calls):
        seen.append((torch.backends.cuda.matmul.allow_tf32, calls))
        return float(len(seen))

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        monkeypatch.setattr(limits, "clock_of", lambda device: clock)
        Yardsticks().take()
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert seen
    assert not any(flag for flag, _ in seen)


def test_yardsticks_of_a_device_are_timed_between_events_over_many_products(monkeypatch):
    asked, calls = [], []
    real = {"zeros": torch.zeros, "randn": torch.randn}
    for name, function in real.items():
        monkeypatch.setattr(torch, name, lambda *size, device, function=function, **rest: function(8, 8))

    def clock_of(device):
        asked.append(device)
        return lambda function, count: calls.append(count) or 1.0

    monkeypatch.setattr(limits, "clock_of", clock_of)
    Yardsticks("cuda")
    assert asked == ["cuda"]
    assert min(calls) > 4


def test_a_device_s_limits_are_named_as_the_cases_name_them(monkeypatch):
    rates = {"copy, bytes/s": 3e12, "host to device, bytes/s": 5e10, "float32, FLOP/s": 5e13, "bfloat16, FLOP/s": 6e14}
    monkeypatch.setattr("benchmarks.gpu_profile.device_limits", lambda seconds: rates)
    found = {each.name: (each.value, each.unit) for each in cuda_limits(0.1)}
    assert found["copy"] == (3e12, "bytes")
    assert found["products"] == (6e14, "FLOP")
    assert found["products, float32"] == (5e13, "FLOP")
    assert found["host to device"] == (5e10, "bytes")


def test_gpu_state_is_the_driver_s(monkeypatch):
    line = "580.1, 700.00 W, 1980 MHz, 81559 MiB\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, line))
    assert machine.gpu_state() == {
        "driver": "580.1",
        "power limit": "700.00 W",
        "SM clock at most": "1980 MHz",
        "GPU memory": "81559 MiB",
    }

    def missing(*a, **k):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert machine.gpu_state() == {"driver": "unknown (no nvidia-smi)"}
    assert machine.commit() == "unknown"


def test_the_machine_block_has_what_a_reader_needs():
    block = machine.machine()
    assert {"CPU", "cores", "memory", "Python", "torch", "numpy", "commit", "date"} <= set(block)
    assert all(isinstance(value, str) and value for value in block.values())


def test_the_machine_block_says_how_many_threads_the_store_copies_with():
    from serl_fast.replay import _native

    before = _native.threads()
    try:
        _native.set_threads(2)
        assert machine.machine()["threads of the replay store's copies"] == "2"
    finally:
        _native.set_threads(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_device_s_limits():
    found = {each.name: each.value for each in limits.measured("cuda", quick=True)}
    assert found["copy"] > 1e10
    assert found["products"] > 1e11
