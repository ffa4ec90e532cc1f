"""train_hybrid with every kind of agent that its flags choose, a few steps each."""

import pytest
import torch

from serl_fast import evaluate, train_hybrid
from serl_fast.train_hybrid_config import TrainHybridConfig

TINY = [
    *("--env", "toy/Arm-v0", "--max_steps=4", "--batch_size=4", "--training_starts=4", "--random_steps=4"),
    *("--execution=eager", "--eval_interval=0", "--final_eval_episodes=0", "--hidden_widths", "16"),
]
CAMERA = ["--image_keys", "front", "--image_size", "32"]


def run(directory, *flags):
    train_hybrid.run([*TINY, *flags, "--save_dir", str(directory)])
    return torch.load(directory / "final_model.pth")


@pytest.mark.parametrize(
    "flags",
    [
        ["--compat", "hil_serl"],
        ["--critic_ensemble_size=4", "--critic_subsample_size=2", "--backup_entropy", "--activation", "relu"],
        ["--warmup_steps=2", "--cosine_decay_steps=4", "--weight_decay=0.01", "--clip_gradient_norm=1"],
        ["--reward_bias=-0.1"],
        [*CAMERA, "--encoder", "small", "--encoder_dropout=0"],
        [*CAMERA, "--encoder", "small", "--pooling", "none", "--compat", "hil_serl"],
        [*CAMERA, "--encoder", "impala_small"],
    ],
    ids=lambda flags: flags[-1],
)
def test_it_trains_saves_and_evaluates(flags, tmp_path, capsys):
    checkpoint = run(tmp_path, *flags)
    assert all(bool(torch.isfinite(value).all()) for value in checkpoint["networks"].values())
    evaluate.run(["--checkpoint", str(tmp_path / "final_model.pth"), "--episodes", "1"])
    assert "success rate" in capsys.readouterr().out


def test_a_trained_encoder_moves_and_its_target_follows(tmp_path):
    networks = run(tmp_path, *CAMERA, "--encoder", "small", "--target_update_rate=0.5")["networks"]
    names = [name for name in networks if name.startswith("encoder.trunks.")]
    assert names
    differ = [not torch.equal(networks[name], networks[f"target_{name}"]) for name in names]
    assert all(differ)


def test_another_agent_is_not_resumed(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"compat None, not hil_serl.*resume it with its own flags"):
        train_hybrid.run([*TINY, "--compat", "hil_serl", "--save_dir", str(tmp_path), "--resume"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoder", "resnet50", *CAMERA], "encoder 'resnet50' is not known; choose one of resnet-pretrained"),
        (["--pooling", "sum", *CAMERA], "pooling 'sum' is not known; choose one of spatial_embeddings"),
    ],
)
def test_encoders_that_are_not_there_are_named(flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *flags)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "cosine"}, "activation 'cosine' is not known; choose one of tanh, relu"),
        ({"compat": "hil_serl", "weight_decay": 0.1}, "weight_decay with compat"),
        ({"cosine_decay_steps": 2, "warmup_steps": 3}, "cosine_decay_steps is 2"),
    ],
)
def test_flags_that_can_not_be_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainHybridConfig(**settings)
