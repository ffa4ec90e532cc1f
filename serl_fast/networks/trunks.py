"""Image trunks beside ResNet-10: small convolutional networks to train, and torchvision's with ImageNet weights.

A trunk is any ``nn.Module`` that maps uint8 images [..., H, W, 3] to float feature maps [..., h, w, C]. It may tell
``feature_shape`` (h, w, C), and ``image_shape`` (H, W, 3) where it takes images of that shape alone. It is frozen when
no parameter of it takes a gradient. A trained one should do without batch norm: target networks average parameters,
not running statistics.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serl_fast.errors import require
from serl_fast.networks.resnet10 import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ResNet10,
    resize_images,
    same_max_pool,
    truncated_normal_,
)

TRUNKS = ("resnet-pretrained", "resnet", "small", "impala_small", "resnet18", "mobilenet")


def make_trunk(name: str, image_size: tuple[int, int] = (128, 128)) -> nn.Module:
    """Build the trunk called ``name``.

    Args:
        name: "resnet-pretrained" (ResNet-10, frozen, weights still random), "resnet" (ResNet-10, trained), "small",
            "impala_small", "resnet18" or "mobilenet" (torchvision's, frozen).
        image_size: (height, width) of the images, pixels; the ResNets and MobileNet resize others to it.

    Raises:
        ValueError: the name is not known.
        MissingExtraError: torchvision is needed and not installed.
    """
    if name in ("resnet-pretrained", "resnet"):
        return ResNet10(image_size, frozen=name == "resnet-pretrained")
    if name == "small":
        return SmallCNN(image_size)
    if name == "impala_small":
        return ImpalaSmall(image_size)
    if name in ("resnet18", "mobilenet"):
        return torchvision_trunk("resnet18" if name == "resnet18" else "mobilenet_v3_small", image_size)
    raise ValueError(f"encoder {name!r} is not known; choose one of {', '.join(TRUNKS)}")


def is_frozen(trunk: nn.Module) -> bool:
    """Whether no parameter of ``trunk`` takes a gradient, so that its features are a constant of the images."""
    return not any(parameter.requires_grad for parameter in trunk.parameters())


def feature_shape_of(trunk: nn.Module, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """(h, w, C) of the trunk's feature maps: what it says itself, else found with one black image.

    Raises:
        ValueError: the trunk returns no feature map [1, h, w, C].
    """
    told = getattr(trunk, "feature_shape", None)
    if told is not None:
        return tuple(told)
    device = next((parameter.device for parameter in trunk.parameters()), None)
    modes = [(module, module.training) for module in trunk.modules()]
    trunk.eval()  # a black image must not enter the statistics of a batch norm
    with torch.no_grad():
        features = trunk(torch.zeros(1, *image_size, 3, dtype=torch.uint8, device=device))
    for module, training in modes:
        module.training = training
    if features.dim() != 4 or features.shape[0] != 1:
        raise ValueError(
            f"the trunk maps images [1, {image_size[0]}, {image_size[1]}, 3] to {tuple(features.shape)}; "
            "it must return feature maps [1, h, w, C]"
        )
    height, width, channels = features.shape[1:]
    return height, width, channels


class _FixedSizeTrunk(nn.Module):
    """A trunk of plain convolutions over x / 255, whose feature map follows the image size."""

    feature_shape: tuple[int, int, int]

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_shape = (*image_size, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: uint8 [..., H, W, 3], 0 to 255, RGB.

        Returns:
            Feature maps, float [..., h, w, C], channels last.

        Raises:
            ValueError: the images are not uint8 or have another size.
        """
        if images.dtype != torch.uint8 or tuple(images.shape[-3:]) != self.image_shape:
            given = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"images are {given}; the trunk takes torch.uint8 [..., {self.image_shape}]")
        x = images.reshape(-1, *self.image_shape).permute(0, 3, 1, 2).float() / 255.0
        return self.features(x).permute(0, 2, 3, 1).reshape(*images.shape[:-3], *self.feature_shape)

    def features(self, x: Tensor) -> Tensor:
        """The network proper: [N, 3, H, W] in [0, 1] -> [N, C, h, w]."""
        raise NotImplementedError


class SmallCNN(_FixedSizeTrunk):
    """Four convolutions of 32, 64, 128, 256 filters, 3 x 3, stride 2, no padding, each with a relu; trained.

    A 128 x 128 image gives 7 x 7 x 256.

    Args:
        image_size: (height, width) of the images, pixels, at least 31 each.

    Raises:
        ValueError: the images are too small.

    Source: ``SmallEncoder`` in SERL's ``serl_launcher/vision/small_encoders.py``; LeCun-normal weights, zero biases.
    """

    FILTERS = (32, 64, 128, 256)

    def __init__(self, image_size: tuple[int, int] = (128, 128)) -> None:
        super().__init__(image_size)
        sides = list(image_size)
        for _ in self.FILTERS:
            sides = [(side - 3) // 2 + 1 for side in sides]
        if min(sides) < 1:
            raise ValueError(f"image_size is {image_size}; the small CNN takes images of at least 31 x 31")
        self.feature_shape = (sides[0], sides[1], self.FILTERS[-1])
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2) for a, b in pairwise((3, *self.FILTERS)))
        for layer in self.convolutions:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            truncated_normal_(layer.weight, fan_in=layer.in_channels * 3 * 3)
            nn.init.zeros_(layer.bias)

    def features(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, 256, h, w]."""
        for layer in self.convolutions:
            x = F.relu(layer(x))
        return x


class ImpalaStack(nn.Module):
    """conv 3 x 3 -> max-pool 3 x 3 stride 2 -> x + conv(relu(conv(relu(x)))), all with "SAME" padding."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, 3, padding=1)
        self.residual1 = nn.Conv2d(filters, filters, 3, padding=1)
        self.residual2 = nn.Conv2d(filters, filters, 3, padding=1)
        for layer in (self.conv, self.residual1, self.residual2):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, filters, ceil(H / 2), ceil(W / 2)]."""
        x = self.conv(x)
        x = same_max_pool(x)
        return x + self.residual2(F.relu(self.residual1(F.relu(x))))


class ImpalaSmall(_FixedSizeTrunk):
    """IMPALA's convolutions with one residual block for each of the stacks of 16, 32, 32 filters; trained.

    x / 255 -> three stacks -> relu; 8 x 8 x 32 for 64 x 64 images. FQL goes on with flatten -> Dense(512) -> gelu,
    which is the camera's head here.

    Args:
        image_size: (height, width) of the images, pixels.

    Source: IMPALA (Espeholt et al. 2018), figure 3, in the small form of FQL (``utils/encoders.py``, "impala_small");
    Xavier-uniform weights, zero biases.
    """

    FILTERS = (16, 32, 32)

    def __init__(self, image_size: tuple[int, int] = (128, 128)) -> None:
        super().__init__(image_size)
        height, width = (-(-side // 2 ** len(self.FILTERS)) for side in image_size)
        self.feature_shape = (height, width, self.FILTERS[-1])
        self.stacks = nn.ModuleList(ImpalaStack(a, b) for a, b in pairwise((3, *self.FILTERS)))

    def features(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, 32, h, w]."""
        for stack in self.stacks:
            x = stack(x)
        return F.relu(x)


class TorchvisionTrunk(nn.Module):
    """A network of torchvision without its pooling and classifier, frozen.

    resize -> (x / 255 - mean) / std with ImageNet's statistics -> ``network``, in evaluation mode.

    Args:
        network: maps [N, 3, H, W] to [N, C, h, w].
        image_size: (height, width) that images are resized to, pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size = image_size
        self.network = network.requires_grad_(False)
        self.register_buffer("mean", 255.0 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.eval()
        self.feature_shape = feature_shape_of(self, image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images [..., H, W, 3] to float feature maps [..., h, w, C]."""
        x = resize_images(images.flatten(0, -4) if images.dim() > 3 else images[None], self.image_size)
        x = self.network((x - self.mean) / self.std).permute(0, 2, 3, 1)
        return x.reshape(*images.shape[:-3], *x.shape[1:])


def torchvision_trunk(
    name: str, image_size: tuple[int, int] = (128, 128), *, weights: str | None = "DEFAULT"
) -> TorchvisionTrunk:
    """Build a frozen trunk from torchvision.

    Args:
        name: "resnet18" (C = 512) or "mobilenet_v3_small" (C = 576); both shrink an image 32 times.
        image_size: (height, width) that images are resized to, pixels.
        weights: torchvision's name of the weights, which it downloads once; None for random ones.

    Raises:
        MissingExtraError: torchvision is not installed.
        ValueError: another network is asked for.
    """
    if name not in ("resnet18", "mobilenet_v3_small"):
        raise ValueError(f"torchvision trunk {name!r} is not known; choose 'resnet18' or 'mobilenet_v3_small'")
    network = require("torchvision.models", extra="vision").get_model(name, weights=weights)
    # The last two children of a ResNet are the pooling and the classifier.
    layers = nn.Sequential(*list(network.children())[:-2]) if name == "resnet18" else network.features
    return TorchvisionTrunk(layers, image_size)
