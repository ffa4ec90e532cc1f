"""Poolings by hand and against numbers recorded from the original."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from serl_fast.networks.camera_head import CameraHead, spatial_softmax

TOLERANCE = 1e-5  # of the largest magnitude; both sides are float32
POOLINGS = ("spatial_embeddings", "spatial_softmax", "average", "max", "none")


@pytest.mark.parametrize(
    ("pooling", "name"), [("average", "avg"), ("max", "max"), ("spatial_softmax", "spatial_softmax")]
)
def test_poolings_against_the_original(recording, error, pooling, name):
    arrays = recording("resnet10")
    features = arrays["features/128x128"]
    head = CameraHead(tuple(features.shape[1:]), bottleneck=None, pooling=pooling)
    assert not list(head.parameters())
    assert error(head(features), arrays[f"pool/{name}"]) < TOLERANCE


def test_spatial_softmax_by_hand():
    # Two rows of three positions, two channels. Channel 0 is all at row 1, column 2; channel 1 is flat.
    features = torch.zeros(1, 2, 3, 2)
    features[0, 1, 2, 0] = 50.0
    # Channel 0: x = +1 (last column), y = +1 (last row); channel 1: the middle.
    torch.testing.assert_close(spatial_softmax(features), torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    features = torch.tensor([[[[0.0], [1.0]]]])  # one row of two positions: x = sigmoid(1) - sigmoid(-1)
    expected = torch.tensor([[1.0]]).sigmoid() - torch.tensor([[-1.0]]).sigmoid()
    torch.testing.assert_close(spatial_softmax(features)[:, :1], expected)


def test_poolings_by_hand():
    features = torch.arange(12.0).view(1, 2, 3, 2)  # channel 0: 0, 2, ..., 10; channel 1: 1, 3, ..., 11
    results = {pooling: CameraHead((2, 3, 2), bottleneck=None, pooling=pooling)(features) for pooling in POOLINGS[2:]}
    assert torch.equal(results["average"], torch.tensor([[5.0, 6.0]]))
    assert torch.equal(results["max"], torch.tensor([[10.0, 11.0]]))
    assert torch.equal(results["none"], torch.arange(12.0)[None])  # position by position, as flax flattens


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bottleneck", [None, 16])
def test_widths_dropout_and_gradients(pooling, bottleneck):
    torch.manual_seed(0)
    head = CameraHead((2, 3, 4), embeddings=5, bottleneck=bottleneck, pooling=pooling)
    features = torch.randn(7, 2, 3, 4, requires_grad=True)
    pooled = head.pool(features)
    assert pooled.shape == (7, head.width)
    encoded = head(features)
    assert encoded.shape == (7, head.outputs) == (7, bottleneck or head.width)
    mask = torch.rand(7, head.width)
    expected = pooled * mask if bottleneck is None else torch.tanh(head.norm(head.dense(pooled * mask)))
    torch.testing.assert_close(head(features, mask), expected)
    gradients = torch.autograd.grad((encoded * torch.randn_like(encoded)).sum(), [features, *head.parameters()])
    assert all(bool(gradient.any()) for gradient in gradients)


def test_names_of_the_parameters():
    """What checkpoints hold."""
    names = set(CameraHead((2, 2, 3), bottleneck=4).state_dict())
    assert names == {"embeddings.kernel", "dense.weight", "dense.bias", "norm.weight", "norm.bias"}
    assert set(CameraHead((2, 2, 3), bottleneck=4, pooling="max").state_dict()) == names - {"embeddings.kernel"}


def test_head_of_impala():
    """flatten -> Dense (Xavier-uniform) -> gelu, without a norm."""
    torch.manual_seed(0)
    head = CameraHead((4, 4, 32), bottleneck=256, pooling="none", layer_norm=False, activation="gelu")
    features = torch.rand(3, 4, 4, 32)
    expected = F.gelu(F.linear(features.flatten(1), head.dense.weight, head.dense.bias), approximate="tanh")
    torch.testing.assert_close(head(features), expected)
    bound = (6 / (512 + 256)) ** 0.5
    assert 0.99 * bound < float(head.dense.weight.detach().abs().max()) <= bound
    assert not head.dense.bias.any()


def test_unknown_pooling_names_the_choices():
    with pytest.raises(ValueError, match=r"'sum' is not known; choose one of spatial_embeddings, .*, none"):
        CameraHead((2, 2, 3), pooling="sum")
