"""The actor's policy in ``train_hybrid``: what it is made of, and when it is compiled."""

import gymnasium
import torch

from serl_fast import train_hybrid
from serl_fast.checkpoint import latest_checkpoint, load_checkpoint
from serl_fast.cli import parse
from serl_fast.engine import policy as policy_module
from serl_fast.train_hybrid_config import PRESETS, TrainHybridConfig

TINY = [
    "--max_steps=4", "--batch_size=4", "--training_starts=4", "--random_steps=2", "--hidden_widths", "16",
    "--eval_interval=0", "--final_eval_episodes=0", "--log_interval=2", "--threads=1", "--replay_buffer_capacity=50",
]  # fmt: skip


def build(*flags: str) -> train_hybrid.Run:
    return train_hybrid.Run(parse(TrainHybridConfig, [*TINY, *flags], description="", presets=PRESETS))


def test_samples_and_modes_are_compiled_before_the_environment_moves(tmp_path, monkeypatch):
    compiled = []

    def compile_function(function):
        compiled.append(function)
        return function

    monkeypatch.setattr(policy_module, "compile_function", compile_function)
    moved = []
    monkeypatch.setattr("tests.toy_arm.ToyArm.step", lambda self, action: moved.append(action))
    run = build("--env=toy/Arm-v0", "--execution=compiled", f"--save_dir={tmp_path / 'compiled'}")
    assert len(compiled) == 2
    assert not moved
    assert run.actor.runner.execution == "compiled"
    build("--env=toy/Arm-v0", "--execution=eager", f"--save_dir={tmp_path / 'eager'}")
    assert len(compiled) == 2


def test_a_resumed_actor_sees_through_the_trunk_of_the_checkpoint(tmp_path, toy_arm):
    if "toy/OneCamera-v0" not in gymnasium.registry:
        gymnasium.register("toy/OneCamera-v0", entry_point=toy_arm, kwargs={"image_keys": ("front",)})
    flags = ["--env=toy/OneCamera-v0", "--image_keys=front", f"--save_dir={tmp_path}", "--execution=eager"]
    assert train_hybrid.run([*TINY, *flags]) == 0
    saved = load_checkpoint(latest_checkpoint(tmp_path))["networks"]
    resumed = build(*flags, "--resume", "--seed=1")  # whose own weights are others
    acting = resumed.actor.runner._networks.state_dict()
    assert acting.keys() <= saved.keys()
    assert any("trunk" in name for name in acting)
    for name, value in acting.items():
        assert torch.equal(value, saved[name]), name
