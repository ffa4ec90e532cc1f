"""A run of ``train_hybrid`` that meets what is not finite, and one whose step does not compile."""

import json
import math
import subprocess
import sys

import pytest
import torch

from serl_fast import train_hybrid
from serl_fast.agents.build import from_settings
from serl_fast.checkpoint import load_checkpoint
from serl_fast.engine import Engine, NonFiniteLossError
from serl_fast.engine import runner as engine_module
from serl_fast.replay import ReplayStore

FLAGS = [
    *("--env=toy/Arm-v0", "--max_steps=40", "--batch_size=16", "--training_starts=20", "--random_steps=10"),
    *("--hidden_widths", "16", "16", "--eval_interval=0", "--final_eval_episodes=0", "--log_interval=5"),
    *("--save_interval=20", "--replay_buffer_capacity=500", "--threads=1", "--synchronous"),
]


def break_batch(monkeypatch, update: int) -> None:
    """Put a NaN among the rewards of one update's batch."""
    plain = Engine.update_block

    def broken(self, batch, updates, with_actor):
        if self.updates < update <= self.updates + updates:
            rewards = batch["rewards"].clone()
            rewards.view(updates, -1)[update - self.updates - 1, 3] = math.nan
            batch = {**batch, "rewards": rewards}
        return plain(self, batch, updates, with_actor)

    monkeypatch.setattr(Engine, "update_block", broken)


@pytest.mark.parametrize("block", [1, 5])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_kept_for_inspection(tmp_path, monkeypatch, block):
    break_batch(monkeypatch, 28)  # of the block 26 to 30 the third
    blocks = [f"--cta_ratio={block}", f"--max_utd_ratio={block}"]
    with pytest.raises(RuntimeError) as caught:
        train_hybrid.run([*FLAGS, *blocks, "--save_dir", str(tmp_path), "--execution=eager"])
    assert isinstance(caught.value.__cause__, NonFiniteLossError)
    said = str(caught.value)
    assert said.startswith("training stopped: critic/loss is nan at update 28, which was not taken")
    path = tmp_path / "non_finite_28.pth"
    assert f"are in {path}; everything up to here is in {tmp_path / 'checkpoint_27.pth'}" in said
    assert len(ReplayStore.load(tmp_path / "replay_27" / "online")) > 0
    content = load_checkpoint(path)
    saved = load_checkpoint(tmp_path / "checkpoint_27.pth")
    assert content["updates"] == saved["engine"]["updates"] == 27
    for name, value in saved["engine"]["networks"].items():
        assert torch.equal(content["engine"]["networks"][name], value)
        assert value.isfinite().all()
    assert content["batch"]["rewards"].isnan().tolist() == [row == 3 for row in range(16)]
    engine = Engine(from_settings(content["agent"]))
    engine.load_state_dict(content["engine"])
    with pytest.raises(NonFiniteLossError, match="critic/loss is nan at update 28"):
        engine.update(content["batch"], content["with_actor"])


def test_the_exit_status_is_not_zero(tmp_path):
    """An environment's own rewards can not be NaN, since the store refuses them; weights can be made to diverge."""
    command = [sys.executable, "-c", f"""
import sys
sys.argv = ["train_hybrid"]
import tests.conftest
from pytest import MonkeyPatch
from serl_fast import train_hybrid
from serl_fast.cli import main
from tests.engine.test_runs import FLAGS, break_batch
break_batch(MonkeyPatch(), 3)
main(lambda: train_hybrid.run([*FLAGS, "--save_dir", {str(tmp_path)!r}, "--execution=eager"]))
"""]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert "critic/loss is nan at update 3" in result.stderr
    assert (tmp_path / "non_finite_3.pth").exists()


def test_a_step_that_does_not_compile_is_in_the_records(tmp_path, monkeypatch, capsys):
    def refuse(function, **_):
        def call(*arguments):
            raise RuntimeError("no compiler")

        return call

    monkeypatch.setattr(engine_module, "compile_function", refuse)
    with pytest.raises(
        RuntimeError, match=r"'compiled' failed \(RuntimeError: no compiler\) and strict execution is on"
    ):
        train_hybrid.run([*FLAGS, "--save_dir", str(tmp_path / "s"), "--execution=compiled", "--strict_execution"])
    flags = [*FLAGS, "--save_dir", str(tmp_path / "run"), "--execution=compiled", "--precision=float16"]
    assert train_hybrid.run(flags) == 0
    assert "execution 'compiled' failed, going on with 'eager': RuntimeError: no compiler" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["execution_used"] == "eager"
    assert "engine/skipped_steps" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
