"""A classifier as a folder: what is saved is what is loaded, and what is damaged is refused."""

import json

import pytest
import torch

from serl_fast.agents.sac import sac
from serl_fast.checkpoint import CheckpointError
from serl_fast.rewards.classifier import ClassifierConfig, reward_classifier, with_threshold
from serl_fast.rewards.files import load_classifier, save_classifier
from serl_fast.rewards.vice import vice

pytest.importorskip("safetensors", reason="safetensors is not installed")

SMALL = {"encoder": "small", "image_size": (32, 32)}


def shown(*cameras):
    return {key: torch.randint(256, (32, 32, 3), dtype=torch.uint8) for key in cameras}


def test_it_comes_back_as_it_was(tmp_path):
    agent = with_threshold(reward_classifier(["front", "left/wrist"], ClassifierConfig(**SMALL)), 0.73)
    path = save_classifier(tmp_path / "made" / "here", agent, {"class_names": ["failure", "success"]})
    assert path.name == "classifier.safetensors"
    assert sorted(p.name for p in path.parent.iterdir()) == ["classifier.safetensors", "config.json"]
    assert json.loads((path.parent / "config.json").read_text())["class_names"] == ["failure", "success"]
    before, loaded = agent.networks["classifier"], load_classifier(path.parent)
    assert loaded.threshold == 0.73
    assert loaded.image_keys == ("front", "left/wrist")
    assert not loaded.training
    assert loaded.settings == before.settings
    observation = shown("front", "left/wrist")
    assert loaded.predict_success(observation) == before.predict_success(observation)


def test_several_classes_and_the_one_that_means_success(tmp_path):
    agent = reward_classifier(["front"], ClassifierConfig(classes=3, success_class=2, **SMALL))
    save_classifier(tmp_path, agent)
    loaded = load_classifier(tmp_path)
    observation = shown("front")
    assert loaded.success_class == 2
    assert loaded.predict_success(observation) == loaded.predict_success(observation, success_class=2)
    assert loaded.predict_success(observation)[0] != loaded.predict_success(observation, success_class=0)[0]


def test_the_threshold_may_be_changed_by_hand(tmp_path):
    save_classifier(tmp_path, reward_classifier(["front"], ClassifierConfig(**SMALL)))
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    assert content["threshold"] == 0.5
    path.write_text(json.dumps({**content, "threshold": 0.9}))
    assert load_classifier(tmp_path).threshold == 0.9
    for wrong in (1.0, 0, True, "0.9", None, float("nan")):
        path.write_text(json.dumps({**content, "threshold": wrong}))
        with pytest.raises(CheckpointError, match=r"config.json: threshold is .*; it must be a number between 0 and 1"):
            load_classifier(tmp_path)
    for wrong in ("{", "[]", "{}"):
        path.write_text(wrong)
        with pytest.raises(CheckpointError, match=r"config.json: no settings of a classifier"):
            load_classifier(tmp_path)


def test_the_weights_alone_are_a_classifier_too(tmp_path):
    path = save_classifier(tmp_path, with_threshold(reward_classifier(["front"], ClassifierConfig(**SMALL)), 0.6))
    (tmp_path / "config.json").unlink()
    assert load_classifier(path).threshold == load_classifier(tmp_path).threshold == 0.6


def test_what_is_no_classifier(tmp_path):
    from serl_fast.interop.policies import save_policy

    with pytest.raises(CheckpointError, match=r"classifier.safetensors: no such classifier; give the output_dir"):
        load_classifier(tmp_path)
    with pytest.raises(CheckpointError, match=r"nothing.safetensors: no such classifier"):
        load_classifier(tmp_path / "nothing.safetensors")
    save_policy(tmp_path / "policy.safetensors", sac(3, 2))
    with pytest.raises(CheckpointError, match="it holds 'sac', not a reward classifier"):
        load_classifier(tmp_path / "policy.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"bad.safetensors: not a readable safetensors file"):
        load_classifier(tmp_path / "bad.safetensors")


def test_a_discriminator_is_none(tmp_path):
    from serl_fast.interop.policies import save_policy
    from serl_fast.rewards.vice import ViceConfig

    save_policy(tmp_path / "vice.safetensors", vice(["front"], ViceConfig(**SMALL)))
    with pytest.raises(CheckpointError, match="it holds 'vice', not a reward classifier"):
        load_classifier(tmp_path / "vice.safetensors")
