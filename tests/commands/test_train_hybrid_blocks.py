"""``train_hybrid`` takes blocks of updates: boundaries, resuming, and where the batches come from."""

import csv
from pathlib import Path

import numpy as np
import pytest

from serl_fast import record_demos, train_hybrid
from serl_fast.checkpoint import latest_checkpoint, load_checkpoint
from serl_fast.engine import Engine
from tests.commands.test_train_hybrid import TINY

QUIET = [*TINY, "--env=toy/Arm-v0", "--eval_interval=0", "--final_eval_episodes=0", "--cta_ratio=4"]


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, int]]:
    """Updates before every call of the engine, and of the call."""
    made, plain = [], Engine.update_block

    def update_block(self, batch, updates, with_actor):
        made.append((self.updates, updates))
        return plain(self, batch, updates, with_actor)

    monkeypatch.setattr(Engine, "update_block", update_block)
    return made


def steps_reported(run: Path) -> list[int]:
    with (run / "metrics.csv").open() as file:
        return [int(float(row["step"])) for row in csv.DictReader(file) if row["critic/loss"]]


@pytest.mark.parametrize("place", ["host", "device"])
def test_a_run_of_blocks_ends_and_resumes_at_any_update(place, calls, tmp_path):
    flags = [*QUIET, "--save_dir", str(tmp_path), f"--replay_device={place}"]
    assert train_hybrid.run([*flags, "--max_steps=22"]) == 0
    assert calls == [(0, 4), (4, 4), (8, 4), (12, 4), (16, 4), (20, 1), (21, 1)]
    assert steps_reported(tmp_path)[:4] == [8, 12, 16, 20]  # every 5 gradient steps, at the end of a block
    assert load_checkpoint(tmp_path / "checkpoint_20.pth")["engine"]["updates"] == 20
    assert load_checkpoint(latest_checkpoint(tmp_path))["engine"]["updates"] == 22
    calls.clear()
    assert train_hybrid.run([*flags, "--max_steps=33", "--resume"]) == 0
    assert calls == [(22, 1), (23, 1), (24, 4), (28, 4), (32, 1)]
    last = load_checkpoint(latest_checkpoint(tmp_path))
    assert last["updates"] == last["counters"]["updates"] == last["engine"]["updates"] == 33
    steps = steps_reported(tmp_path)
    assert steps == sorted(steps)
    with (tmp_path / "metrics.csv").open() as file:
        assert all(np.isfinite(float(row["critic/loss"])) for row in csv.DictReader(file) if row["critic/loss"])


def test_pretraining_in_blocks_moves_checkpoints_behind_theirs(calls, tmp_path):
    demos = tmp_path / "demos.pkl"
    assert record_demos.run(["--num_demos", "1", "--output", str(demos), "--seed", "3"]) == 0
    flags = [*QUIET, "--env=serl_robots/PickCube-v0", "--demo_paths", str(demos), "--save_dir", str(tmp_path / "run")]
    assert train_hybrid.run([*flags, "--pretrain_steps=6", "--max_steps=24"]) == 0
    assert calls[:5] == [(0, 4), (4, 1), (5, 1), (6, 1), (7, 1)]
    assert all(updates == 4 for _, updates in calls[5:-2])
    assert (tmp_path / "run" / "checkpoint_22.pth").exists()  # 20 lies in the block from 18 to 22
    assert (tmp_path / "run" / "checkpoint_24.pth").exists()


def test_a_compiled_run_of_blocks(calls, tmp_path, capsys):
    flags = [*QUIET, "--save_dir", str(tmp_path), "--execution=compiled", "--strict_execution", "--max_steps=12"]
    assert train_hybrid.run([*flags, "--hidden_widths", "8"]) == 0
    assert [updates for _, updates in calls] == [4, 4, 4]
    assert "again" not in capsys.readouterr().err
