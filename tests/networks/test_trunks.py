"""Small trunks by hand, and the contract of every trunk."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serl_fast.errors import MissingExtraError
from serl_fast.networks.resnet10 import ResNet10
from serl_fast.networks.trunks import (
    TRUNKS,
    ImpalaSmall,
    ImpalaStack,
    SmallCNN,
    feature_shape_of,
    is_frozen,
    make_trunk,
    torchvision_trunk,
)


def images_of(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)


@pytest.fixture(params=["resnet18", "mobilenet_v3_small"])
def torchvision_name(request) -> str:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # a build for another torch fails in its operators
        pytest.skip(f"torchvision is not installed or does not suit this torch: {error}")
    return request.param


@pytest.mark.parametrize(
    ("trunk", "size", "shape"),
    [
        (SmallCNN, (128, 128), (7, 7, 256)),
        (SmallCNN, (64, 96), (3, 5, 256)),
        (SmallCNN, (31, 31), (1, 1, 256)),
        (ImpalaSmall, (64, 64), (8, 8, 32)),
        (ImpalaSmall, (33, 40), (5, 5, 32)),
    ],
)
def test_feature_shapes(trunk, size, shape):
    network = trunk(size)
    assert network.feature_shape == shape
    assert network.image_shape == (*size, 3)
    assert network(images_of(2, 3, *size)).shape == (2, 3, *shape)
    image = images_of(*size)
    torch.testing.assert_close(network(image), network(image[None])[0])


def test_small_cnn_by_hand():
    torch.manual_seed(0)
    network, image = SmallCNN((40, 48)), images_of(2, 40, 48)
    x = image.permute(0, 3, 1, 2) / 255
    for layer, filters in zip(network.convolutions, (32, 64, 128, 256), strict=True):
        assert layer.weight.shape[0] == filters
        # Every second window of the unpadded convolution.
        x = torch.relu(F.conv2d(x, layer.weight, layer.bias)[:, :, ::2, ::2])
    torch.testing.assert_close(network(image), x.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-6)


def test_small_cnn_starts_lecun_normal():
    torch.manual_seed(0)
    layer = SmallCNN().convolutions[3]
    std = (128 * 9) ** -0.5
    assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.02)
    assert not layer.bias.any()


def test_impala_stack_by_hand():
    stack = ImpalaStack(1, 1)
    with torch.no_grad():
        for layer in (stack.conv, stack.residual1, stack.residual2):
            layer.weight.zero_()
            layer.weight[0, 0, 1, 1] = 1.0  # the identity
        stack.residual2.weight.mul_(10)
    x = torch.arange(16.0).view(1, 1, 4, 4) - 10
    # Windows of the pooling start at rows and columns 0 and 2 and are padded after the image: maxima at (2, 2), (2, 3),
    # (3, 2) and (3, 3): 0, 1, 4, 5. Each plus ten times its positive part.
    assert torch.equal(stack(x)[0, 0], torch.tensor([[0.0, 11.0], [44.0, 55.0]]))
    assert torch.equal(stack(x - 5)[0, 0], torch.tensor([[-5.0, -4.0], [-1.0, 0.0]]))


def test_impala_small_has_one_block_for_each_stack():
    torch.manual_seed(0)
    network = ImpalaSmall((64, 64))
    # Convolutions 3 x 3 with biases: 3 -> 16, then 16 -> 32, 32 -> 32, each with two more of its own width.
    weights = [9 * a * b + b for a, b in [(3, 16), (16, 16), (16, 16), (16, 32), *[(32, 32)] * 5]]
    assert sum(p.numel() for p in network.parameters()) == sum(weights)
    bound = (6 / (9 * 32 + 9 * 32)) ** 0.5
    assert 0.99 * bound < float(network.stacks[2].residual1.weight.detach().abs().max()) <= bound
    assert float(network(images_of(2, 64, 64)).detach().min()) == 0.0  # it ends in a relu


@pytest.mark.parametrize("name", ["resnet", "small", "impala_small"])
def test_every_parameter_of_a_trained_trunk_gets_a_gradient(name):
    torch.manual_seed(0)
    trunk = make_trunk(name, (32, 40))
    assert not is_frozen(trunk)
    features = trunk(images_of(4, 32, 40))
    gradients = torch.autograd.grad((features * torch.randn_like(features)).sum(), list(trunk.parameters()))
    assert all(bool(gradient.any()) for gradient in gradients)


def test_frozen_trunk():
    trunk = make_trunk("resnet-pretrained", (32, 32))
    assert isinstance(trunk, ResNet10)
    assert is_frozen(trunk)
    assert not trunk(images_of(2, 32, 32)).requires_grad
    assert is_frozen(nn.Identity())  # nothing to train


def test_wrong_images():
    for trunk in (SmallCNN((32, 40)), ImpalaSmall((32, 40))):
        with pytest.raises(ValueError, match=r"uint8 \(2, 40, 32, 3\); the trunk takes torch.uint8 .*\(32, 40, 3\)"):
            trunk(images_of(2, 40, 32))
        with pytest.raises(ValueError, match=r"float32 \(2, 32, 40, 3\)"):
            trunk(torch.zeros(2, 32, 40, 3))
    with pytest.raises(ValueError, match=r"\(30, 64\); the small CNN takes images of at least 31 x 31"):
        SmallCNN((30, 64))


def test_names():
    with pytest.raises(ValueError, match="'resnet50' is not known; choose one of resnet-pretrained, resnet, small"):
        make_trunk("resnet50")
    with pytest.raises(ValueError, match="'vgg' is not known"):
        torchvision_trunk("vgg")
    assert set(TRUNKS) == {"resnet-pretrained", "resnet", "small", "impala_small", "resnet18", "mobilenet"}


class Silent(nn.Module):
    """Tells no shape; batch norm would remember a black image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3).eval()

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(images.permute(0, 3, 1, 2).float())
        return F.avg_pool2d(x, 4).permute(0, 2, 3, 1)


def test_the_feature_shape_is_found():
    trunk = Silent()
    assert feature_shape_of(trunk, (8, 12)) == (2, 3, 3)
    assert trunk.norm.num_batches_tracked == 0
    assert trunk.norm.training
    assert not trunk.other.training
    assert feature_shape_of(ResNet10((64, 96)), (1, 1)) == (2, 3, 512)
    with pytest.raises(ValueError, match=r"\[1, 8, 12, 3\] to \(288,\); it must return feature maps"):
        feature_shape_of(nn.Flatten(0), (8, 12))


def test_a_missing_torchvision_says_which_extra_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(MissingExtraError, match=r"torchvision.*serl-fast\[vision\]"):
        make_trunk("resnet18")


def test_torchvision_trunk(torchvision_name):
    torch.manual_seed(0)
    trunk = torchvision_trunk(torchvision_name, (64, 96), weights=None)
    assert trunk.feature_shape == (2, 3, 512 if torchvision_name == "resnet18" else 576)
    assert is_frozen(trunk)
    assert not trunk.network.training
    images = images_of(2, 3, 64, 96)
    features = trunk(images)
    assert features.shape == (2, 3, *trunk.feature_shape)
    assert not features.requires_grad
    # The network itself on normalised images, one at a time.
    normalised = (images[1, 2] / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    expected = trunk.network(normalised.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    torch.testing.assert_close(features[1, 2], expected, rtol=1e-4, atol=1e-5)
    assert trunk(images_of(2, 50, 70)).shape == (2, *trunk.feature_shape)  # resized
