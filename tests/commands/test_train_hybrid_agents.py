"""train_hybrid with every kind of agent that its flags choose, a few steps each."""

import pickle

import numpy as np
import pytest
import torch

from serl_fast import evaluate, train_hybrid
from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.interop.flax_names import module_leaves
from serl_fast.networks.resnet10 import ResNet10
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


def test_a_run_of_an_older_version_is_resumed(tmp_path):
    run(tmp_path)
    path = tmp_path / "checkpoint_4.pth"
    checkpoint = torch.load(path)
    for name in ("reward_bias", "warmup_steps", "std_parameterization", "frames", "compat", "encoder", "image_size"):
        del checkpoint["agent"]["config"][name]
    torch.save(checkpoint, path)
    longer = [flag.replace("max_steps=4", "max_steps=6") for flag in TINY]
    train_hybrid.run([*longer, "--save_dir", str(tmp_path), "--resume"])
    assert (tmp_path / "checkpoint_6.pth").exists()


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


@pytest.fixture
def trunk_file(tmp_path):
    """A parameter file of one value, 0.25, everywhere."""
    tree = {"output_dense": {"kernel": np.zeros(3, np.float32)}}
    for leaf in module_leaves(ResNet10()):
        *parents, last = leaf.path.split("/")
        inner = tree
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = np.full(leaf.shape, 0.25, np.float32)
    path = tmp_path / "trunk.pkl"
    path.write_bytes(pickle.dumps(tree))
    return path


def build(directory, *flags):
    return train_hybrid.Run(TrainHybridConfig(env="toy/Arm-v0", save_dir=directory, eval_interval=0, **dict(flags)))


def test_a_trained_resnet_starts_pretrained_where_told_so(tmp_path, trunk_file, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    usual = tmp_path / ".serl" / "resnet10_params.pkl"
    usual.parent.mkdir()
    usual.write_bytes(trunk_file.read_bytes())
    flags = [("image_keys", ("front", "side")), ("encoder", "resnet"), ("final_eval_episodes", 0)]
    networks = build(tmp_path / "random", *flags).agent.networks
    assert "pre-trained" not in capsys.readouterr().out  # random without a word, also where the file is at hand
    assert not bool((networks["encoder"].trunks[0].conv_init.weight == 0.25).any())
    networks = build(tmp_path / "given", *flags, ("pretrained_encoder", trunk_file)).agent.networks
    assert f"pre-trained ResNet-10 from {trunk_file}; ignored in it: output_dense\n" in capsys.readouterr().out
    for name in ("encoder", "target_encoder"):
        assert len(networks[name].trunks) == 2
        for trunk in networks[name].trunks:
            assert all(bool((parameter == 0.25).all()) for parameter in trunk.parameters())


def own_algorithm(state_dim, action_dim, image_keys):
    return sac(state_dim, action_dim, image_keys, SACConfig(hidden_widths=(8,), encoder="small", image_size=(32, 32)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [*CAMERA, "--encoder", "small"],
            "no use with --encoder small and image_keys front: the Encoder has an image trunk SmallCNN; .* 'resnet'",
        ),
        ([], "no use with --encoder resnet-pretrained and no image_keys: the Encoder has no image trunk"),
        ([*CAMERA, "--algorithm", f"{__name__}:own_algorithm"], "no use with --algorithm .*:own_algorithm and image_k"),
    ],
)
def test_a_pretrained_trunk_without_use_is_refused(flags, message, tmp_path, trunk_file):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *flags, "--pretrained_encoder", str(trunk_file))
    assert not (tmp_path / "run" / "metrics.csv").exists()


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
