"""Where our parameters stand in the original's trees, in both layouts of the critics' last layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from serl_fast.interop.flax_names import agent_leaves, fill, module_leaves
from serl_fast.networks.classifier import Discriminator, RewardClassifier
from serl_fast.networks.critic import CriticEnsemble
from serl_fast.networks.encoder import Encoder, make_encoder
from serl_fast.networks.policy import Policy, Temperature
from serl_fast.networks.resnet10 import ResNet10, load_resnet10_params


def tree_like(leaves):
    return {leaf.path: torch.randn(leaf.shape) for leaf in leaves}


def paths(module, **arguments):
    return {leaf.path for leaf in module_leaves(module, **arguments)}


MODULES = {
    "policy": lambda: Policy(5, 2, (4, 3)),
    "uniform": lambda: Policy(5, 2, (4,), std_parameterization="uniform", layer_norm=False),
    "shared head": lambda: CriticEnsemble(5, 2, (4, 3), members=3, shared_head=True),
    "temperature": Temperature,
    "state": lambda: Encoder((), 3, latent=4),
    "small": lambda: make_encoder(("b", "a"), 3, encoder="small", image_size=(32, 32), bottleneck=8),
}


@pytest.mark.parametrize("name", MODULES)
def test_values_come_back_as_they_were_filled_in(name):
    torch.manual_seed(0)
    leaves = module_leaves(MODULES[name]())
    tree = tree_like(leaves)
    fill(leaves, tree)
    assert len({leaf.path for leaf in leaves}) == len(leaves)
    assert all(torch.equal(leaf.value(), tree[leaf.path]) for leaf in leaves)


@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_has_a_leaf(name):
    module = MODULES[name]()
    assert {id(leaf.parameter) for leaf in module_leaves(module)} == {id(p) for p in module.parameters()}


def test_a_dense_kernel_is_transposed():
    policy = Policy(5, 2, (4,))
    (kernel,) = [leaf for leaf in module_leaves(policy) if leaf.path == "network/Dense_0/kernel"]
    assert kernel.shape == (5, 4)
    assert torch.equal(kernel.value(), policy.trunk.layers[0].weight.T)


def test_one_recorded_head_fills_every_critic_and_gradients_add_up():
    critic = CriticEnsemble(5, 2, (4,), members=3)
    leaves = {leaf.path: leaf for leaf in module_leaves(critic)}
    head, bias = leaves["Dense_0/kernel"], leaves["Dense_0/bias"]
    assert (head.shape, bias.shape, head.copies) == ((4, 1), (1,), 3)
    value = torch.randn(4, 1)
    fill([head, bias], {"Dense_0/kernel": value, "Dense_0/bias": torch.ones(1)})
    assert all(torch.equal(member, value) for member in critic.head.weight)
    assert torch.equal(head.value(), value)
    gradient = torch.randn(3, 4, 1)
    assert torch.equal(head.to_flax(gradient), gradient.sum(0))
    assert torch.equal(bias.to_flax(torch.ones(3, 1, 1)), torch.tensor([3.0]))


def test_critics_with_different_heads_have_no_place_in_the_shared_layout():
    critic = CriticEnsemble(5, 2, (4,), members=3)
    leaves = {leaf.path: leaf for leaf in module_leaves(critic)}
    with pytest.raises(ValueError, match=r"'Dense_0/kernel': the 3 critics have last layers of their own"):
        leaves["Dense_0/kernel"].value()
    separate = {leaf.path: leaf for leaf in module_leaves(critic, separate_heads=True)}
    assert torch.equal(separate["Dense_0/kernel"].value(), critic.head.weight)
    assert separate["network/Dense_0/kernel"].shape == (3, 7, 4)


def test_the_shared_trunk_stands_under_the_first_camera_of_the_alphabet():
    module = make_encoder(("wrist", "front"), 3)
    trunk = {path for path in paths(module) if "pretrained_encoder" in path}
    assert len(trunk) == 36
    assert all(path.startswith("encoder_front/pretrained_encoder/") for path in trunk)
    assert not any("pretrained_encoder" in path for path in paths(module.target_copy()))


def test_a_trunk_is_mapped_as_its_reader_does(recorded):
    values = recorded("resnet10", "resnet10_params.pkl.xz").params
    expected, module = ResNet10(), ResNet10()
    nested: dict = {}
    for path, value in values.items():
        *parents, last = path.split("/")
        inner = nested
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = value
    load_resnet10_params(expected, nested)
    fill(module_leaves(module), {path: torch.from_numpy(value.astype("f4")) for path, value in values.items()})
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


def test_classifier_and_discriminator_have_their_own_roots():
    classifier = paths(RewardClassifier(("side",)))
    assert {"Dense_0/kernel", "Dense_1/kernel", "LayerNorm_0/scale"} <= classifier
    assert "encoder_def/encoder_side/SpatialLearnedEmbeddings_0/kernel" in classifier
    networks = nn.ModuleDict({"vice": Discriminator(("side",))})
    names = {leaf.path for leaf in agent_leaves(networks)}
    assert {"modules_vice/Dense_0/kernel", "modules_vice/network/LayerNorm_0/scale"} <= names
    assert "modules_vice/encoder/encoder_side/Dense_0/kernel" in names


def test_targets_have_the_names_of_what_they_follow():
    critic = CriticEnsemble(5, 2, (4,))
    networks = nn.ModuleDict({"critic": critic, "target_critic": CriticEnsemble(5, 2, (4,))})
    online, target = agent_leaves(networks), agent_leaves(networks, target=True)
    assert [leaf.path for leaf in online] == [leaf.path for leaf in target]
    assert all(a.parameter is not b.parameter for a, b in zip(online, target, strict=True))


def test_networks_that_the_original_does_not_have_are_refused():
    encoder = make_encoder(("a",), 0, encoder="impala_small", image_size=(32, 32))
    with pytest.raises(ValueError, match="ImpalaSmall has no place in HIL-SERL's parameter trees"):
        module_leaves(encoder)
    with pytest.raises(ValueError, match="Linear has no place"):
        module_leaves(nn.Linear(2, 2))


def test_a_missing_or_misshapen_tensor_is_named():
    leaves = module_leaves(Temperature(), "modules_temperature")
    with pytest.raises(ValueError, match="'modules_temperature/lagrange' is missing"):
        fill(leaves, {})
    with pytest.raises(ValueError, match=r"has shape \(2,\); the network takes \(\)"):
        fill(leaves, {"modules_temperature/lagrange": torch.zeros(2)})
