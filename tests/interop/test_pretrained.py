"""The pre-trained trunk goes into every ResNet-10 of an encoder, or nowhere."""

import pickle

import pytest
import torch
from torch import nn

from serl_fast.interop.flax_agents import export_params
from serl_fast.interop.flax_trees import nested
from serl_fast.interop.pretrained import find_pretrained, load_pretrained, resnet10_trunks
from serl_fast.networks.encoder import Encoder, make_encoder
from serl_fast.networks.resnet10 import ResNet10


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Nobody's own ~/.serl/resnet10_params.pkl."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def source():
    torch.manual_seed(0)
    return ResNet10((32, 32))


@pytest.fixture
def file(source, tmp_path):
    path = tmp_path / "trunk.pkl"
    content = nested(export_params(source).params) | {"z": {"kernel": 1.0}, "a": 2.0}
    path.write_bytes(pickle.dumps(content))
    return path


def equal(trunk, source):
    return all(torch.equal(a, b) for a, b in zip(trunk.parameters(), source.parameters(), strict=True))


def test_a_frozen_trunk_is_filled(source, file, capsys):
    encoder = make_encoder(("a", "b"), 0, image_size=(32, 32))
    load_pretrained(encoder, file)
    assert equal(encoder.trunk, source)
    assert not any(parameter.requires_grad for parameter in encoder.trunk.parameters())
    assert capsys.readouterr().out == f"pre-trained ResNet-10 from {file}; ignored in it: a, z\n"


def test_every_trained_trunk_is_filled_and_its_targets_too(source, file):
    encoder = make_encoder(("a", "b"), 0, encoder="resnet", image_size=(32, 32))
    target = encoder.target_copy()
    load_pretrained(encoder, file, target=target)
    assert len(resnet10_trunks(encoder)) == len(resnet10_trunks(target)) == 2
    assert all(equal(trunk, source) for trunk in (*encoder.trunks, *target.trunks))
    assert all(parameter.requires_grad for parameter in encoder.trunks.parameters())
    assert not any(parameter.requires_grad for parameter in target.parameters())
    frozen = make_encoder(("a",), 0, image_size=(32, 32))
    load_pretrained(frozen, file, target=frozen.target_copy())  # which has no trunk
    assert equal(frozen.trunk, source)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (make_encoder(("a",), 0, encoder="small", image_size=(32, 32)), "the Encoder has an image trunk SmallCNN"),
        (make_encoder(("a",), 0, encoder="impala_small", image_size=(32, 32)), "has an image trunk ImpalaSmall"),
        (make_encoder((), 3), "the Encoder has no image trunk"),
        (Encoder(("a",)), "the Encoder has no image trunk"),
        (nn.Linear(2, 2), "the Linear has no image trunk"),
    ],
)
def test_other_encoders_are_named(encoder, message, file):
    with pytest.raises(ValueError, match=f"{message}; .*goes into encoders 'resnet-pretrained' and 'resnet'"):
        load_pretrained(encoder, file)
    with pytest.raises(ValueError, match=message):  # whether there is a file or not
        load_pretrained(encoder)


def test_without_a_file_the_trunk_is_said_to_be_random(file, home, capsys):
    load_pretrained(make_encoder(("a",), 0, image_size=(32, 32)))
    assert "the frozen trunk is random, which learns worse; give --pretrained_encoder" in capsys.readouterr().out
    load_pretrained(make_encoder(("a",), 0, encoder="resnet", image_size=(32, 32)))
    assert "no pre-trained ResNet-10: the trunk is random" in capsys.readouterr().out
    (home / ".serl").mkdir(parents=True)
    usual = home / ".serl" / "resnet10_params.pkl"
    usual.write_bytes(file.read_bytes())
    assert find_pretrained() == usual
    assert find_pretrained(file) == file
