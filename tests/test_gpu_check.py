"""The GPU check, as far as it goes without a GPU: its arithmetic, its choice of tests and cases, its pages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_update, gpu_check, suite
from benchmarks.gpu_profile import busy_and_idle
from benchmarks.limits import Yardsticks
from benchmarks.measure import Outcome
from benchmarks.results import Results
from benchmarks.suite import Run
from benchmarks.workloads import WORKLOADS


def test_gaps_between_overlapping_kernels():
    busy, gaps = busy_and_idle([(5.0, 6.0), (0.0, 2.0), (1.0, 1.5), (1.5, 3.0), (8.0, 9.0)])
    assert busy == 5.0
    assert gaps == [2.0, 2.0]
    assert busy_and_idle([]) == (0.0, [])


def test_every_gpu_test_is_found():
    names = {path.parent.name + "/" + path.name for path in gpu_check.gpu_tests()}
    assert {"gpu/test_executions.py", "gpu/test_replay.py", "kernels/test_random_crop.py"} <= names


def test_the_slowest_tests_come_last():
    assert gpu_check.gpu_tests()[-1].name == "test_executions.py"


def test_the_tests_are_shared_out(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    lines = ["import pytest", "def test_of_the_processor(): pass"]
    lines += [f"@pytest.mark.gpu\ndef test_{number}(): assert {number} != 3, 'it is three'" for number in range(5)]
    (tmp_path / "tests" / "test_some.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    found = gpu_check.run_tests(300, shares=2)
    assert found["status"] == 1
    text = "\n".join(found["output"])
    assert sorted(re.findall(r"::test_(\d) (?:PASSED|FAILED)", text)) == list("01234")
    assert "it is three" in text
    assert re.fullmatch(r"3 passed, .*; 1 failed, 1 passed, .*", found["output"][-1])


def test_tests_that_take_too_long_say_what_they_have_found():
    script = """
import time
try:
    print("here", flush=True)
    time.sleep(600)
finally:
    print("found", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "here\n"
    assert gpu_check.ended([process], 0.0) == [gpu_check.LATE]
    assert process.stdout.read() == "found\n"


def test_the_ladder_is_made_of_cases_of_the_suite():
    steps = {"-".join(map(str, each.values)) for each in bench_update.STEPS + bench_update.STEPS_OF_A_GPU}
    for name in gpu_check.LADDER:
        case, label = re.fullmatch(r"(.+)\[(.+)\]", name).groups()
        assert label in steps if case == "update/step" else name in suite.REGISTRY, name


def test_the_ladder_on_the_processor(monkeypatch):
    monkeypatch.setattr(gpu_check, "SHORTEST_CASE", 0.0)
    monkeypatch.setitem(WORKLOADS, "rlpd", WORKLOADS["rlpd"].small())
    run = Run("cpu", "quick", rounds=2, seconds=0.01)
    yardsticks = Yardsticks()
    (found,) = gpu_check.run_ladder(gpu_check.Deadline(1e9), run, ["update/by_ensemble[2]"], yardsticks)
    assert [len(times) for times in yardsticks.times.values()] == [2, 2]
    assert found.passes["eager"][0][0] > 0
    assert "graphed" not in found.passes
    assert not gpu_check.has_failed([found])


def test_what_there_is_no_time_for_is_said():
    kept = []
    run, ids = Run("cpu", "quick"), ["update/step[state-256-float32]"]
    (found,) = gpu_check.run_ladder(gpu_check.Deadline(0), run, ids, keep=kept.append)
    assert kept == [found]
    assert not found.passes
    assert set(found.missing.values()) == {"not run: no time was left"}
    assert not gpu_check.has_failed([found])


def test_a_variant_that_failed_fails_the_check():
    found = Outcome.of(suite.REGISTRY["update/step[state-256-float32]"])
    found.missing["graphed"] = "failed: no memory"
    assert gpu_check.has_failed([found])


def test_what_is_written(tmp_path):
    case = Outcome.of(suite.REGISTRY["update/step[state-256-float32]"])
    case.passes = {"eager": [[1e-3] * 7], "graphed": [[1e-4] * 7]}
    results = Results({"GPU": "A GPU"}, {"scale": "normal"}, "make gpu-check", cases=[case])
    check = {"tests": {"status": 1, "output": ["1 failed"]}, "profiles": {}}
    gpu_check.write(results, check, "| a table |", tmp_path)
    assert "status 1: 1 failed" in (tmp_path / "check.md").read_text()
    assert "| a table |" in (tmp_path / "check.md").read_text()
    assert json.loads((tmp_path / "check.json").read_text()) == check
    assert Results.load(tmp_path).cases[0].passes == case.passes
    assert "10 x" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("status", "reason", "expected"), [(0, "", 0), (1, "", 1), (0, "failed: no memory", 1)])
def test_the_whole_check_beside_a_stand_in(tmp_path, monkeypatch, status, reason, expected):
    case = Outcome.of(suite.REGISTRY["update/step[state-256-float32]"])
    case.missing = {"graphed": reason or "not run: no time was left"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "machine", lambda device: {"GPU": "A GPU", "date": "2026-01-02"})
    monkeypatch.setattr(gpu_check, "measured", lambda device, quick: [])
    monkeypatch.setattr(gpu_check, "run_tests", lambda seconds: {"status": status, "output": ["said"]})
    folder = tmp_path / "a-gpu_2026-01-02"

    def run_ladder(deadline, run, yardsticks, keep):
        assert json.loads((folder / "check.json").read_text())["tests"]["status"] == status
        keep(case)
        partial = Results.load(folder)
        assert partial.interrupted
        assert len(partial.cases) == 1
        yardsticks.take()
        yardsticks.take()

    monkeypatch.setattr(gpu_check, "Yardsticks", lambda device: Yardsticks())
    monkeypatch.setattr(gpu_check, "run_ladder", run_ladder)
    monkeypatch.setattr(gpu_check, "run_profiles", lambda deadline: ("| table |", {}))
    assert gpu_check.main(["--output", str(tmp_path)]) == expected
    names = {path.name for path in folder.iterdir()}
    assert {"results.json", "report.md", "check.json", "check.md"} <= names
    assert not Results.load(folder).interrupted
    assert Results.load(folder).unrest is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_nothing_is_written(tmp_path, capsys):
    assert gpu_check.main(["--output", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
