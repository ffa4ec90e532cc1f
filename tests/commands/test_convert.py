"""``convert`` really runs, there and back, and its output is evaluated."""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from serl_fast import convert, evaluate
from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.checkpoint import load_checkpoint, save_checkpoint
from serl_fast.interop.flax_agents import export_params
from serl_fast.interop.flax_trees import ParameterTrees, read_trees, write_trees
from serl_fast.interop.policies import build, load_policy, save_policy
from serl_fast.networks.classifier import RewardClassifier

pytest.importorskip("msgpack", reason="msgpack is not installed (extra interop)")
pytest.importorskip("safetensors", reason="safetensors is not installed (extra interop)")

FLAX = Path(__file__).parents[1] / "interop" / "data" / "agent.msgpack"  # written by flax 0.10.1
CONFIG = SACConfig(hidden_widths=(8, 8), compat="hil_serl")


def run(source, output, *flags):
    return convert.run(["--input", str(source), "--output", str(output), *flags])


@pytest.fixture(autouse=True)
def no_home(tmp_path, monkeypatch):
    """Nobody's own ~/.serl/resnet10_params.pkl."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def hybrid(tmp_path):
    """A toy arm's agent in a flax file, its sizes those of toy/Arm-v0."""
    torch.manual_seed(0)
    agent = hybrid_sac(4, 1, (), CONFIG)
    return agent, write_trees(tmp_path / "agent.msgpack", export_params(agent.networks))


def test_a_flax_checkpoint_becomes_a_checkpoint_and_comes_back(tmp_path, capsys):
    model, back = tmp_path / "model.pth", tmp_path / "back.npz"
    assert run(FLAX, model) == 0
    output = capsys.readouterr().out
    assert f"38 tensors read from {FLAX}\nnot read, because no weights: step, opt_states, rng\n" in output
    assert "sac: cameras none, state 3, actions 2, layers 4, compat hil_serl" in output
    assert run(model, back) == 0
    first, second = read_trees(FLAX), read_trees(back)
    for ours, theirs in ((first.params, second.params), (first.target_params, second.target_params)):
        assert set(ours) == set(theirs)
        assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


def test_a_converted_policy_is_evaluated(hybrid, tmp_path, capsys):
    agent, source = hybrid
    policy = tmp_path / "policy.safetensors"
    assert run(source, policy, "--env", "toy/Arm-v0") == 0
    loaded, content = load_policy(policy)
    assert content["setup_mode"] == "single-arm-learned-gripper"
    state = {"state": torch.randn(6, 4)}
    with torch.no_grad():
        expected = agent.policy(agent.networks, state, None)
        assert torch.equal(loaded.policy(loaded.networks, state, None), expected)
    capsys.readouterr()
    assert evaluate.run(["--checkpoint", str(policy), "--episodes", "2"]) == 0
    assert "episodes      2" in capsys.readouterr().out
    # The same weights as a checkpoint do the same.
    assert run(source, tmp_path / "model.pth", "--env", "toy/Arm-v0") == 0
    first = evaluate.evaluate_checkpoint(evaluate.EvaluateConfig(policy, episodes=2))
    second = evaluate.evaluate_checkpoint(evaluate.EvaluateConfig(tmp_path / "model.pth", episodes=2))
    assert first.metrics() == second.metrics()


def test_a_policy_that_does_not_name_its_environment_needs_one(hybrid, tmp_path):
    policy = tmp_path / "policy.safetensors"
    assert run(hybrid[1], policy) == 0
    with pytest.raises(ValueError, match="does not say in which environment it acts; give --env"):
        evaluate.run(["--checkpoint", str(policy)])
    assert evaluate.run(["--checkpoint", str(policy), "--env", "toy/Arm-v0", "--episodes", "1"]) == 0


def test_separate_critics_are_written_only_where_there_is_a_place(tmp_path, capsys):
    agent = sac(4, 6, (), SACConfig(hidden_widths=(8, 8)))
    model, output = tmp_path / "model.pth", tmp_path / "agent.msgpack"
    save_checkpoint(model, {"agent": agent.settings, "networks": agent.networks.state_dict(), "env": "x"})
    with pytest.raises(ValueError, match="last layers of their own"):
        run(model, output)
    assert not output.exists()
    assert run(model, output, "--policy_only") == 0
    assert {path.split("/")[0] for path in read_trees(output).params} == {"modules_actor"}
    assert run(model, output, "--separate_heads") == 0
    assert read_trees(output).params["modules_critic/Dense_0/kernel"].shape == (2, 8, 1)
    assert run(output, tmp_path / "again.pth", "--activation", "relu") == 0
    content = load_checkpoint(tmp_path / "again.pth")
    assert torch.equal(content["networks"]["critic.head.weight"], agent.networks["critic"].head.weight)
    assert content["agent"]["config"]["activation"] == "relu"
    assert content["agent"]["config"]["compat"] is None


def test_the_trunk_comes_from_the_file_or_a_flag_or_home(recorded_trunk, tmp_path, capsys):
    torch.manual_seed(0)
    classifier = RewardClassifier(("side", "front"))
    trees = export_params(classifier)
    bare = ParameterTrees({path: v for path, v in trees.params.items() if "pretrained_encoder" not in path})
    source, flags = write_trees(tmp_path / "bare.npz", bare), ("--image_keys", "side", "front")
    with pytest.raises(ValueError, match="does not hold the pre-trained ResNet-10; give --pretrained_encoder"):
        run(source, tmp_path / "c.safetensors", *flags)
    assert run(source, tmp_path / "c.safetensors", *flags, "--pretrained_encoder", str(recorded_trunk)) == 0
    assert f"pre-trained ResNet-10 from {recorded_trunk}" in capsys.readouterr().out
    agent, _ = load_policy(tmp_path / "c.safetensors")
    taken = agent.networks["classifier"]
    assert taken.image_keys == ("side", "front")
    expected = read_trees(recorded_trunk).params["conv_init/kernel"].astype(np.float32)
    assert np.array_equal(taken.encoder.trunk.conv_init.weight.permute(2, 3, 1, 0).numpy(), expected)
    assert torch.equal(taken.head.weight, classifier.head.weight)

    usual = tmp_path / "home" / ".serl" / "resnet10_params.pkl"
    usual.parent.mkdir(parents=True)
    usual.write_bytes(lzma.decompress(recorded_trunk.read_bytes()))
    assert run(source, tmp_path / "d.safetensors", *flags) == 0
    assert f"pre-trained ResNet-10 from {usual}" in capsys.readouterr().out
    whole = write_trees(tmp_path / "whole.npz", trees)
    assert run(whole, tmp_path / "e.safetensors", *flags) == 0
    assert "pre-trained" not in capsys.readouterr().out
    assert run(tmp_path / "e.safetensors", tmp_path / "f.npz") == 0
    back = read_trees(tmp_path / "f.npz").params
    assert set(back) == set(trees.params)
    assert all(np.array_equal(back[path], trees.params[path]) for path in back)


@pytest.fixture
def recorded_trunk():
    golden = Path(os.environ.get("SERL_FAST_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
    path = golden / "resnet10" / "resnet10_params.pkl.xz"
    if not path.exists():
        pytest.skip(f"recordings of the original are not here: {path} (set SERL_FAST_GOLDEN)")
    return path


def test_an_agent_with_a_trained_cnn_comes_back(tmp_path):
    torch.manual_seed(0)
    config = SACConfig(hidden_widths=(8,), encoder="small", image_size=(48, 64), compat="hil_serl")
    agent = sac(3, 7, ("front",), config)
    source = write_trees(tmp_path / "a.msgpack", export_params(agent.networks))
    assert run(source, tmp_path / "a.pth", "--image_size", "48", "64") == 0
    content = load_checkpoint(tmp_path / "a.pth")
    assert tuple(content["agent"]["config"]["image_size"]) == (48, 64)
    state = agent.networks.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in content["networks"].items())


def test_what_shapes_do_not_tell_is_told_by_flags(tmp_path):
    config = SACConfig(
        hidden_widths=(8,),
        encoder="small",
        image_size=(48, 48),
        proprioception_dim=None,
        compat="hil_serl",
        pooling="max",
        activation="relu",
        std_parameterization="softplus",
        std_min=0.1,
        std_max=0.9,
    )
    agent = sac(256, 7, ("front",), config)
    source, output = write_trees(tmp_path / "a.msgpack", export_params(agent.networks)), tmp_path / "a.safetensors"
    flags = ["--pooling", "max", "--frames", "1", "--image_size", "48", "48", "--activation", "relu"]
    run(source, output, *flags, "--std_parameterization", "softplus", "--std_min", "0.1", "--std_max", "0.9")
    loaded, _ = load_policy(output)
    assert loaded.settings == agent.settings
    images = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
    observations = {"state": torch.randn(2, 256), "front": images}
    with torch.no_grad():
        expected = agent.policy(agent.networks, observations, None)
        assert torch.equal(loaded.policy(loaded.networks, observations, None), expected)


@pytest.mark.parametrize(("flag", "expected"), [((), "hil_serl"), (("--compat", "none"), None)])
@pytest.mark.parametrize("algorithm", ["vice", "bc", "reward_classifier"])
def test_compat_does_what_its_help_says(algorithm, flag, expected, tmp_path):
    settings = {"algorithm": algorithm, "image_keys": ["a"], "config": {"encoder": "small"}}
    settings |= {"state_dim": 3, "action_dim": 7} if algorithm == "bc" else {}
    source = write_trees(tmp_path / "a.msgpack", export_params(build(settings).networks))
    assert run(source, tmp_path / "a.pth", *flag) == 0
    config = load_checkpoint(tmp_path / "a.pth")["agent"]["config"]
    if algorithm == "reward_classifier":
        assert "compat" not in config
    else:
        assert config["compat"] == expected


def test_a_flag_that_the_algorithm_does_not_have_is_named(hybrid, tmp_path):
    with pytest.raises(ValueError, match="squash: not a setting of 'hybrid_sac'; it has activation, "):
        run(hybrid[1], tmp_path / "a.pth", "--squash")
    assert not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "mine"}, "its algorithm is 'mine'; convert knows sac, hybrid_sac, bc, vice, reward_classifier"),
        ({"algorithm": None}, "its algorithm is None; convert knows sac"),
        ({"config": {"encoder": "custom"}}, "its image trunk is a module of your own, which convert can not build"),
    ],
)
def test_an_agent_of_ones_own_is_converted_in_python(changes, message, tmp_path):
    agent = sac(4, 6, (), SACConfig(hidden_widths=(8, 8)))
    model, output = tmp_path / "model.pth", tmp_path / "p.safetensors"
    save_checkpoint(model, {"agent": agent.settings | changes, "networks": agent.networks.state_dict(), "env": "x"})
    with pytest.raises(ValueError, match=message) as error:
        run(model, output)
    assert "--algorithm" not in str(error.value)
    # What the message says to do.
    read, facts = load_policy(model, lambda settings: sac(4, 6, (), SACConfig(hidden_widths=(8, 8))))
    save_policy(output, read, facts)
    assert load_policy(output)[1]["env"] == "x"


def test_what_has_no_place_stops_the_conversion_unless_told_otherwise(hybrid, tmp_path, capsys):
    trees = read_trees(hybrid[1])
    trees.params["modules_actor/Dense_9/bias"] = np.zeros(3, np.float32)
    del trees.params["modules_temperature/lagrange"]
    source, output = write_trees(tmp_path / "odd.npz", trees), tmp_path / "model.pth"
    with pytest.raises(ValueError, match="1 tensors are missing and 1 have no place"):
        run(source, output)
    assert not output.exists()
    assert run(source, output, "--no_strict") == 0
    printed = capsys.readouterr().out
    assert "  missing   params/modules_temperature/lagrange []" in printed
    assert "  no place  params/modules_actor/Dense_9/bias [3]" in printed


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("a.msgpack", "b.zip", "its ending must be one of .pth, .pt, .safetensors, .msgpack, .npz"),
        ("a.npz", "a.npz", "input and output are the same file"),
    ],
)
def test_flags_are_checked(source, output, message, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        run(source, output)
    assert message in str(error.value) + " ".join(capsys.readouterr().err.split())


def test_mistakes_are_one_line(tmp_path):
    folder = tmp_path / "checkpoint_10"
    (folder / "d").mkdir(parents=True)
    for source, message in ((tmp_path / "none.npz", "No such file"), (folder, "Newer versions of flax write")):
        command = [sys.executable, "-m", "serl_fast.convert", "--input", source, "--output", tmp_path / "x.pth"]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_every_flag_is_explained(capsys):
    with pytest.raises(SystemExit):
        convert.run(["--help"])
    text = capsys.readouterr().out
    for word in ("--separate_heads", "last layer", "--image_keys", "order of the", "--pooling", "--frames"):
        assert word in text
