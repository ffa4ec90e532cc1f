"""A training run as a measured variant: paused and read through its log, here with a stand-in that writes one."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from benchmarks import bench_loop, training
from benchmarks.suite import REGISTRY, Run

WRITER = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--save_dir") + 1])
folder.mkdir(parents=True)
with (folder / "metrics.csv").open("w") as file:
    file.write("step,environment_steps,time,learner/updates_per_second\\n")
    step, start = 0, time.monotonic()
    while step < LAST:
        time.sleep(0.01)
        step += 50
        file.write(f"{step},{step // 2},{time.monotonic() - start:.6f},1\\n{step},{step // 2},{time.monotonic()},\\n")
        file.flush()
print("the end")
"""


@pytest.fixture
def writer(monkeypatch):
    """``train_hybrid`` that logs 50 updates and 25 environment steps about every 10 ms, up to so many."""

    def use(last):
        def start(command, output):
            return subprocess.Popen(
                [sys.executable, "-c", WRITER.replace("LAST", str(last)), *command],
                stdout=output, stderr=output, text=True,
            )  # fmt: skip

        monkeypatch.setattr(training, "_start", start)

    return use


def test_rates_of_a_run_that_is_paused_between(writer, tmp_path):
    writer(10**9)
    run = training.Training(tmp_path / "run", {}, 0.05)
    try:
        assert run.start_up() > 0
        for _ in range(5):  # of which one is not disturbed
            time.sleep(0.1)
            stands = len(run._rows())
            time.sleep(1.0)
            assert len(run._rows()) == stands
            found = run.seconds_per_call(0.05)
            if found < 2e-3:
                break
        assert run.seconds_per_call(0) > 0
    finally:
        run.close()
    assert 1e-4 < found < 2e-3  # 2e-4 on a quiet machine, 4e-3 with the pause of a second
    assert run.note().endswith("environment steps/s")


def test_a_run_that_ends_is_said(writer, tmp_path):
    writer(50)
    run = training.Training(tmp_path / "run", {}, 0.0)
    try:
        with pytest.raises(RuntimeError, match="train_hybrid ended: the end"):
            run.start_up()
    finally:
        run.close()


@pytest.mark.parametrize(("last", "reached"), [(150, True), (200, False)])
def test_success_is_an_end_before_the_last_update(writer, last, reached):
    writer(last)
    assert training.run_to_success({"max_steps": "200"})[1] is reached


def test_a_command_that_fails_says_its_last_line():
    with pytest.raises(RuntimeError, match=r"no_such_module failed: .*No module named"):
        training.finished(["no_such_module"], 30.0)


def test_without_the_simulator_both_cases_say_why(monkeypatch):
    monkeypatch.setattr(bench_loop, "needed", lambda: "mujoco not installed")
    instances = [REGISTRY[name] for name in ("loop/train[hil_serl]", "loop/time_to_success")]
    for instance in instances:
        work = instance.build(Run(scale="normal"))
        assert set(work.missing) == set(instance.variants)
        assert set(work.missing.values()) == {"mujoco not installed"}


def test_a_variant_that_does_not_start_is_left_out(writer, monkeypatch):
    writer(50)
    monkeypatch.setattr(bench_loop, "needed", lambda: "")
    monkeypatch.setattr(bench_loop, "make_train", lambda device, episodes: {})
    work = REGISTRY["loop/train[hil_serl]"].build(Run(scale="quick"))
    work.close()
    assert not work.functions
    assert work.missing["eager"] == "failed: train_hybrid ended: the end"
    assert work.missing["graphed"] == "captures a CUDA graph and this is cpu"


def test_runs_start_one_after_the_other_and_compile_for_themselves(writer, monkeypatch):
    writer(10**9)
    monkeypatch.setattr(bench_loop, "needed", lambda: "")
    monkeypatch.setattr(bench_loop, "make_train", lambda device, episodes: {})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/kept")
    start, came_up, said = training._start, training.Training.start_up, []

    def started(command, output):
        said.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        return start(command, output)

    def up(self):
        took = came_up(self)
        said.append("up")
        return took

    monkeypatch.setattr(training, "_start", started)
    monkeypatch.setattr(training.Training, "start_up", up)
    work = REGISTRY["loop/train[hil_serl]"].build(Run(scale="quick"))
    try:
        assert said[1::2] == ["up", "up"]
        assert len({"/kept", *said[::2]}) == 3
        assert all(os.path.isdir(cache) for cache in said[::2]), "the runs go on compiling"
        assert set(work.functions) == {"eager", "compiled"}
    finally:
        work.close()
    assert not any(os.path.exists(cache) for cache in said[::2])


def test_flags_with_several_values():
    assert training._train_hybrid({"seed": "1", "hidden_widths": ("16", "8")})[1:] == [
        "--seed", "1", "--hidden_widths", "16", "8",
    ]  # fmt: skip
