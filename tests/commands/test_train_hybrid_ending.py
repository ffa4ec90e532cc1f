"""What the end of a run of ``train_hybrid`` logs: the last losses, and the evaluation that was due."""

import csv

import pytest

from serl_fast import train_hybrid

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
