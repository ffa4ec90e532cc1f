"""The GPU check, as far as it goes without a GPU: its arithmetic, its choice of tests, its tables."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_profile import busy_and_idle


def test_gaps_between_overlapping_kernels():
    busy, gaps = busy_and_idle([(5.0, 6.0), (0.0, 2.0), (1.0, 1.5), (1.5, 3.0), (8.0, 9.0)])
    assert busy == 5.0
    assert gaps == [2.0, 2.0]
    assert busy_and_idle([]) == (0.0, [])


def test_every_gpu_test_is_found():
    names = {path.parent.name + "/" + path.name for path in gpu_check.gpu_tests()}
    assert {"gpu/test_executions.py", "gpu/test_replay.py", "kernels/test_random_crop.py"} <= names


def test_the_ladder_on_the_processor(monkeypatch):
    ladder = (("state", ("eager", "graphed"), ("float32",)), ("rlpd", ("eager",), ("float32",)))
    monkeypatch.setattr(gpu_check, "LADDER", ladder)
    monkeypatch.setattr(gpu_check, "SHORTEST_WORKLOAD", 0.0)
    parts, rows = gpu_check.run_ladder(gpu_check.Deadline(1e9), "cpu", rounds=2)
    assert len(parts) == 2
    by_execution = {row["execution"]: row for row in rows if row["workload"] == "state"}
    assert by_execution["eager"]["rate"].median > 0
    assert by_execution["graphed"]["rate"] is None
    assert "CUDA" in by_execution["graphed"]["missing"]


def test_what_there_is_no_time_for_is_said():
    parts, rows = gpu_check.run_ladder(gpu_check.Deadline(0), "cpu", rounds=2)
    assert not rows
    assert all("not run: no time was left" in part for part in parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_nothing_is_written(tmp_path, capsys):
    assert gpu_check.main(["--output", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
