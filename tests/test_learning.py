"""The whole learns: from ten demonstrations and a scripted operator the arm reaches random targets by itself."""

import pytest

from serl_fast import evaluate, record_demos, train_hybrid

SUCCESS = 0.8  # of 50 fresh episodes; an untrained policy has 0


@pytest.mark.slow
def test_reach_is_learned(tmp_path):
    demos, run = tmp_path / "reach.pkl", tmp_path / "run"
    task = ["--env", "serl_robots/Reach-v0", "--setup_mode", "single-arm-fixed-gripper"]
    record_demos.run([*task, "--num_demos", "10", "--output", str(demos)])
    flags = [
        *("--demo_paths", str(demos), "--operator", "scripted", "--save_dir", str(run)),
        *("--synchronous", "--threads", "1", "--execution", "eager", "--max_steps", "12000"),
        *("--training_starts", "100", "--random_steps", "100", "--batch_size", "128", "--hidden_widths", "64", "64"),
        *("--lr", "1e-3", "--discount", "0.9", "--eval_interval", "500", "--eval_episodes", "10"),
        *("--final_eval_episodes", "0", "--video_episodes", "0"),
    ]
    train_hybrid.run([*task, *flags])
    result = evaluate.evaluate_checkpoint(evaluate.EvaluateConfig(run / "final_model.pth"))
    assert result.success_rate >= SUCCESS
