"""Policies as safetensors: what acts is kept, the rest is left out, and damaged files are refused."""

from __future__ import annotations

import json

import pytest
import torch

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.checkpoint import CheckpointError, save_checkpoint
from serl_fast.interop.policies import build, load_policy, load_weights, read_policy, save_policy
from serl_fast.rewards.classifier import ClassifierConfig, reward_classifier

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed (extra interop)")
SMALL = SACConfig(hidden_widths=(8, 8), image_size=(32, 32))


@pytest.fixture
def agent():
    torch.manual_seed(0)
    return hybrid_sac(3, 1, ("a",), SMALL)


def test_a_policy_acts_as_before(agent, tmp_path):
    agent.networks["encoder"].normalizer.set_statistics(torch.randn(20, 3))
    facts = {"env": "toy/Arm-v0", "setup_mode": "single-arm-learned-gripper", "image_size": None, "other": 1}
    path = save_policy(tmp_path / "new" / "policy.safetensors", agent, facts)
    before = torch.get_rng_state()
    loaded, content = load_policy(path)
    assert torch.equal(torch.get_rng_state(), before)  # loading draws nothing
    assert loaded.settings == agent.settings
    assert (content["env"], content["setup_mode"]) == ("toy/Arm-v0", "single-arm-learned-gripper")
    assert "other" not in content
    assert {key.partition(".")[0] for key in content["networks"]} == {"encoder", "actor", "grasp_critic"}
    observations = {"state": torch.randn(5, 3), "a": torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)}
    with torch.no_grad():
        expected = agent.policy(agent.networks, observations, None)
        assert torch.equal(loaded.policy(loaded.networks, observations, None), expected)
    assert [p.name for p in path.parent.iterdir()] == ["policy.safetensors"]


def test_a_classifier_is_kept_whole(tmp_path):
    agent = reward_classifier(("a",), ClassifierConfig(hidden=8, image_size=(32, 32), threshold=0.75))
    loaded, _ = load_policy(save_policy(tmp_path / "c.safetensors", agent))
    observation = {"a": torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)}
    expected = agent.networks["classifier"].predict_success(observation)
    assert loaded.networks["classifier"].predict_success(observation) == expected


def test_weights_of_some_networks_must_be_all_of_theirs(agent):
    state = agent.networks.state_dict()
    other = build(agent.settings)
    assert load_weights(other.networks, state) == tuple(agent.networks)
    actor = {key: value for key, value in state.items() if key.startswith("actor.")}
    assert load_weights(other.networks, actor) == ("actor",)
    del actor["actor.mean.bias"]
    with pytest.raises(CheckpointError, match=r"not of this agent: .*actor\.mean\.bias"):
        load_weights(other.networks, actor)
    with pytest.raises(CheckpointError, match=r"not of this agent: .*value\.weight"):
        load_weights(other.networks, state | {"value.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_weights(other.networks, state | {"actor.mean.bias": torch.zeros(9)})


def test_files_that_are_no_policy_are_refused(agent, tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(CheckpointError, match="no such policy"):
        read_policy(path)
    whole = save_policy(tmp_path / "whole.safetensors", agent).read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2], b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable safetensors file"):
            read_policy(path)
    tensors = {"actor.mean.bias": torch.zeros(6)}
    for metadata, message in (
        (None, "no policy of serl_fast"),
        ({"serl_fast": "2"}, "its metadata hold serl_fast = '2'; '1' is read"),
        ({"serl_fast": "1"}, "no settings of an agent"),
        ({"serl_fast": "1", "agent": "{", "facts": "{}"}, "no settings of an agent"),
        ({"serl_fast": "1", "agent": "[]", "facts": "[]"}, "it holds no agent"),
    ):
        safetensors.save_file(tensors, path, metadata)
        with pytest.raises(CheckpointError, match=message):
            read_policy(path)
    metadata = {"serl_fast": "1", "agent": json.dumps(agent.settings), "facts": "{}"}
    safetensors.save_file(agent.networks["actor"].state_dict(prefix="actor."), path, metadata)
    with pytest.raises(CheckpointError, match="it has no weights of encoder, grasp_critic"):
        load_policy(path)


def test_settings_that_do_not_suit_are_refused():
    with pytest.raises(ValueError, match="algorithm 'nonsense' is not known"):
        build({"algorithm": "nonsense", "image_keys": [], "state_dim": 1, "config": {}})
    with pytest.raises(ValueError, match=r"do not suit: .*unexpected keyword argument 'colour'"):
        build({"algorithm": "reward_classifier", "image_keys": ["a"], "config": {"colour": 1}})
    with pytest.raises(ValueError, match="do not suit: 'config'"):
        build({"algorithm": "vice", "image_keys": ["a"]})


def test_a_checkpoint_is_a_policy_too(agent, tmp_path):
    content = {"agent": agent.settings, "networks": agent.networks.state_dict(), "env": "toy/Arm-v0"}
    loaded, read = load_policy(save_checkpoint(tmp_path / "final_model.pth", content))
    assert read["env"] == "toy/Arm-v0"
    assert torch.equal(loaded.networks["critic"].head.weight, agent.networks["critic"].head.weight)
    with pytest.raises(CheckpointError, match="it holds no agent, but format_version"):
        load_policy(save_checkpoint(tmp_path / "other.pth", {}))
