"""Activations by their values, and where dropout acts."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from serl_fast.networks.mlp import MLP, activation


@pytest.mark.parametrize(
    ("name", "at_minus_one", "at_two"),
    [
        ("tanh", -math.tanh(1), math.tanh(2)),
        ("relu", 0.0, 2.0),
        ("silu", -1 / (1 + math.e), 2 / (1 + math.exp(-2))),
        ("swish", -1 / (1 + math.e), 2 / (1 + math.exp(-2))),
        # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); the exact form gives -0.158655 and 1.954500.
        ("gelu", -0.158808, 1.954598),
        ("elu", math.exp(-1) - 1, 2.0),
        ("leaky_relu", -0.01, 2.0),
    ],
)
def test_activations(name, at_minus_one, at_two):
    values = activation(name, torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(values, torch.tensor([at_minus_one, at_two]), rtol=0, atol=1e-6)


def test_unknown_activation_names_the_choices():
    with pytest.raises(ValueError, match=r"activation 'sine' is not known; choose one of tanh, relu"):
        MLP(3, (4,), activation="sine")


def test_dropout_acts_between_the_dense_layer_and_its_norm():
    torch.manual_seed(0)
    network, x = MLP(3, (5, 4), activation="relu"), torch.randn(2, 3)
    masks = [torch.tensor([[0.0, 2.0, 2.0, 0.0, 2.0]]), torch.tensor([[2.0, 0.0, 2.0, 2.0]])]
    expected = x
    for layer, mask in zip(network.layers, masks, strict=True):
        expected = torch.relu(F.layer_norm(layer(expected) * mask, mask.shape[1:], eps=1e-6))
    torch.testing.assert_close(network(x, masks), expected)
    assert torch.equal(network(x, [torch.ones(1), torch.ones(1)]), network(x))


def test_a_linear_last_layer_takes_no_mask():
    network, x = MLP(3, (5, 4), activate_final=False), torch.randn(2, 3)
    assert network(x, [torch.ones(2, 5)]).shape == (2, 4)
    with pytest.raises(ValueError, match="2 dropout masks; the network takes 1"):
        network(x, [torch.ones(2, 5), torch.ones(2, 4)])


def test_no_layer_norm():
    network = MLP(3, (5, 4), layer_norm=False)
    assert not [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    assert len(network.state_dict()) == 4
    assert MLP(3, (5,)).norms[0].eps == 1e-6
