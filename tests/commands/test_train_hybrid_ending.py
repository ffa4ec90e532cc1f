"""What the end of a run of ``train_hybrid`` logs and leaves, and that no other process writes to its folder."""

import csv

import pytest

from serl_fast import train_hybrid
from tests.test_files import holder

FLAGS = [
    "--env=toy/Arm-v0", "--max_steps=6", "--batch_size=4", "--training_starts=4", "--random_steps=2",
    "--hidden_widths", "16", "--execution=eager", "--synchronous", "--video_episodes=0", "--replay_buffer_capacity=50",
    "--eval_episodes=1", "--save_interval=0", "--stop_success_rate=0",
]  # fmt: skip


def rows(folder, name: str) -> list[tuple[int, float]]:
    """(gradient steps, value) of every row that has the metric."""
    with (folder / "metrics.csv").open() as file:
        found = [(row["step"], row.get(name, "")) for row in csv.DictReader(file)]
    return [(int(float(step)), float(value)) for step, value in found if value]


def test_a_run_shorter_than_its_interval_logs_its_losses(tmp_path):
    flags = ["--log_interval=100", "--eval_interval=0", "--final_eval_episodes=0"]
    assert train_hybrid.run([*FLAGS, *flags, f"--save_dir={tmp_path}"]) == 0
    assert [step for step, _ in rows(tmp_path, "critic/loss")] == [6]


@pytest.mark.parametrize(
    ("interval", "final", "expected"),
    [(6, 2, [6]), (6, 0, [6]), (7, 2, []), (0, 2, [])],
    ids=["the final one stands for it", "there is no final one", "none is due", "none are wanted"],
)
def test_an_evaluation_that_is_due_at_the_end_is_logged(tmp_path, interval, final, expected):
    flags = [f"--eval_interval={interval}", f"--final_eval_episodes={final}", f"--save_dir={tmp_path}"]
    assert train_hybrid.run([*FLAGS, *flags]) == 0
    assert [step for step, _ in rows(tmp_path, "evaluation/success_rate")] == expected
    assert [step for step, _ in rows(tmp_path, "final_evaluation/success_rate")] == ([6] if final else [])


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_another_run_writes_to_is_refused(resume, tmp_path):
    if resume:
        (tmp_path / "checkpoint_1.pth").touch()
    unfinished = tmp_path / ".checkpoint_2.pth.77.tmp"
    unfinished.touch()
    with holder(tmp_path), pytest.raises(ValueError, match=r"is in use: .*; wait for it, or end it, or give another"):
        train_hybrid.run([*FLAGS, "--eval_interval=0", f"--save_dir={tmp_path}", *["--resume"] * resume])
    assert unfinished.exists()
    assert not (tmp_path / "metrics.csv").exists()


def test_a_folder_that_can_not_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the run's folder can not be used: .*file/run'; give another --save_dir"):
        train_hybrid.run([*FLAGS, "--eval_interval=0", f"--save_dir={tmp_path / 'file' / 'run'}"])


def test_what_a_killed_run_was_writing_goes(tmp_path, capsys):
    unfinished = tmp_path / ".checkpoint_2.pth.77.tmp"
    unfinished.touch()
    assert train_hybrid.run([*FLAGS, "--eval_interval=0", "--final_eval_episodes=0", f"--save_dir={tmp_path}"]) == 0
    assert not unfinished.exists()
    assert f"{tmp_path}/." not in capsys.readouterr().out  # the lock is nothing to look at
