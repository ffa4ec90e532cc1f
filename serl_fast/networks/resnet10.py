"""The ResNet-10 image trunk of SERL and HIL-SERL, and the reader of its pretrained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serl_fast import safe_pickle
from serl_fast.kernels.choice import uses_triton
from serl_fast.kernels.crop_normalize import crop_normalize
from serl_fast.kernels.group_norm_relu import group_norm_relu
from serl_fast.kernels.random_crop import PADDING

GROUPS = 4
GROUP_NORM_EPSILON = 1e-5
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BLOCK_FILTERS = (64, 128, 256, 512)

# A normal distribution cut at two standard deviations has this standard deviation.
_TRUNCATED_STD = 0.87962566103423978


def truncated_normal_(weight: Tensor, fan_in: int, scale: float = 1.0) -> Tensor:
    """Fill with a normal of variance ``scale / fan_in``, cut at two standard deviations (of the uncut
    normal).

    ``scale`` 1 is "LeCun normal", 2 is "Kaiming normal", as flax defines them.

    Args:
        weight: any shape, filled in place.
        fan_in: inputs that reach one output.
        scale: variance gain.

    Returns:
        ``weight``.
    """
    std = (scale / fan_in) ** 0.5 / _TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def same_padding(height: int, width: int, kernel: int, stride: int) -> tuple[int, int, int, int]:
    """TensorFlow's and JAX's "SAME" padding, in the order of ``F.pad``: (left, right, top, bottom).

    The output has ceil(size / stride) positions; an odd amount puts the extra row after the image. For stride
    2 and an even size that is (0, 1), where torch's ``padding=1`` would shift every window by a pixel.
    """

    def pair(size: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    return (*pair(width), *pair(height))


def same_max_pool(x: Tensor) -> Tensor:
    """The largest of 3 x 3, stride 2, "SAME" padding with minus infinity: [N, C, H, W] -> [N, C, ceil(H/2), ceil(W/2)].

    Nothing is padded: the pooling ends its last window where the image does, where the extra row would be.
    """
    left, _, top, _ = same_padding(x.shape[-2], x.shape[-1], kernel=3, stride=2)
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=(top, left), ceil_mode=True)


def resize_images(images: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased when shrinking, not rounded: uint8 [N, H, W, 3] -> float32 [N, 3, *image_size]."""
    x = images.permute(0, 3, 1, 2).float()
    if x.shape[-2:] == image_size:
        return x
    return F.interpolate(x, image_size, mode="bilinear", align_corners=False, antialias=True)


class PrecastConv2d(nn.Conv2d):
    """A convolution without bias, Kaiming-normal (truncated) weights; frozen, its weights can be cast once and for all.

    Autocast casts weights in every pass, since it keeps no casts where no gradient is wanted or a compiler traces.

    Attributes:
        precast: the weights in another type, used wherever autocast would cast them to it; None: no copy is kept. Not
            saved. It follows the weights in ``load_state_dict`` and in passes that run eagerly.
    """

    precast: Tensor | None

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=False)
        truncated_normal_(self.weight, fan_in=inputs * kernel * kernel, scale=2.0)
        self.register_buffer("precast", None, persistent=False)
        self._version_cast = -1

    def set_precast(self, dtype: torch.dtype | None) -> None:
        """Keep a copy of the weights in ``dtype``; None: keep none."""
        self.precast = None if dtype is None else self.weight.detach().to(dtype, copy=True)
        self._version_cast = self.weight._version

    def refresh_precast(self) -> None:
        """Bring the copy up to date with the weights, in place: captured graphs know its address."""
        if self.precast is not None:
            self.precast.copy_(self.weight.detach())
            self._version_cast = self.weight._version

    def cast_weight(self, device: torch.device) -> Tensor:
        """The weights as a pass on ``device`` should use them."""
        if self.precast is None or not torch.is_autocast_enabled(device.type):
            return self.weight
        if torch.get_autocast_dtype(device.type) != self.precast.dtype or self.weight.requires_grad:
            return self.weight
        if not torch.compiler.is_compiling() and self.weight._version != self._version_cast:
            self.refresh_precast()
        return self.precast

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, h, w]."""
        return F.conv2d(x, self.cast_weight(x.device), stride=self.stride, padding=self.padding)  # type: ignore[arg-type]

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.refresh_precast()


class SameConv2d(PrecastConv2d):
    """A convolution without bias and with "SAME" padding; Kaiming-normal (truncated) weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride)
        self.kernel, self.step = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        weight = self.cast_weight(x.device)
        left, right, top, bottom = same_padding(x.shape[-2], x.shape[-1], self.kernel, self.step)
        if (left, top) == (right, bottom):  # symmetric: the convolution pads by itself, without a copy
            return F.conv2d(x, weight, stride=self.step, padding=(top, left))
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, stride=self.step)


class ReluGroupNorm(nn.GroupNorm):
    """GroupNorm as the trunk has it, which can add a residual and apply the ReLU on its way."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=GROUP_NORM_EPSILON)

    def relu(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """relu(norm(x) + residual), one kernel where Triton runs and no gradient is recorded; [N, C, H, W]."""
        if self._fuses(x):
            return group_norm_relu(x, self.weight, self.bias, self.num_groups, self.eps, residual)
        y = self(x)
        return F.relu(y if residual is None else y + residual)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, C, H, W]."""
        if self._fuses(x):
            return group_norm_relu(x, self.weight, self.bias, self.num_groups, self.eps, relu=False)
        return super().forward(x)

    @staticmethod
    def _fuses(x: Tensor) -> bool:
        return uses_triton(x) and not torch.is_grad_enabled()


class ResNetBlock(nn.Module):
    """relu(skip(x) + norm2(conv2(relu(norm1(conv1(x)))))); the skip is projected where the shape changes."""

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv2d(inputs, filters, 3, stride)
        self.norm1 = ReluGroupNorm(filters)
        self.conv2 = SameConv2d(filters, filters, 3)
        self.norm2 = ReluGroupNorm(filters)
        projected = stride != 1 or inputs != filters
        self.projection = SameConv2d(inputs, filters, 1, stride) if projected else nn.Identity()
        self.projection_norm = ReluGroupNorm(filters) if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, filters, ceil(H / stride), ceil(W / stride)]."""
        y = self.conv2(self.norm1.relu(self.conv1(x)))
        if isinstance(self.projection_norm, ReluGroupNorm):
            return self.projection_norm.relu(self.projection(x), residual=self.norm2(y))
        return self.norm2.relu(y, residual=x)


class ResNet10(nn.Module):
    """Images -> the last feature map of a ResNet-10 with GroupNorm, frozen unless asked otherwise.

    resize -> (x / 255 - mean) / std -> conv 7x7 stride 2 -> GroupNorm -> relu -> max-pool 3x3 stride 2 ->
    four blocks of 64, 128, 256, 512 filters, the last three with stride 2. About 0.29 GMAC for a 128 x 128
    image.

    Args:
        image_size: (height, width) that images are resized to, pixels.
        frozen: parameters take no gradient and the forward pass records none.

    Source: ``serl_launcher/vision/resnet_v1.py`` ("resnetv1-10-frozen", the output before pooling).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: tuple[int, int] = (128, 128), *, frozen: bool = True) -> None:
        super().__init__()
        self.image_size = image_size
        self.frozen = frozen
        self.conv_init = PrecastConv2d(3, BLOCK_FILTERS[0], kernel=7, stride=2, padding=3)
        self.norm_init = ReluGroupNorm(BLOCK_FILTERS[0])
        inputs = (BLOCK_FILTERS[0], *BLOCK_FILTERS[:-1])
        self.blocks = nn.ModuleList(
            ResNetBlock(i, o, stride=1 if n == 0 else 2)
            for n, (i, o) in enumerate(zip(inputs, BLOCK_FILTERS, strict=True))
        )
        # In units of the stored bytes, so that normalising is one subtraction and one division.
        self.register_buffer("mean", 255.0 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255.0 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.requires_grad_(not frozen)
        # NHWC images are channels_last tensors already: with weights to match nothing is transposed.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, C) of one feature map: (4, 4, 512) for 128 x 128 images."""
        height, width = (-(-size // 32) for size in self.image_size)
        return height, width, BLOCK_FILTERS[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: uint8 [..., H, W, 3], 0 to 255, RGB; other sizes than ``image_size`` are resized.

        Returns:
            Feature maps, float [..., h, w, 512], channels last.

        Raises:
            ValueError: the images are not uint8 or have no three channels.
        """
        if images.dtype != torch.uint8 or images.dim() < 3 or images.shape[-1] != 3:
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}; the trunk takes torch.uint8 [..., height, width, 3]"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = self.features(self.normalise(images.flatten(0, -4) if images.dim() > 3 else images[None]))
        return x.permute(0, 2, 3, 1).reshape(*images.shape[:-3], *self.feature_shape)

    def encode_crops(self, images: Sequence[Tensor], offsets: Sequence[Tensor], padding: int = PADDING) -> Tensor:
        """Encode random crops of several batches of images, of several cameras say, in one pass.

        The same as :meth:`forward` of every :func:`serl_fast.kernels.random_crop.random_crop`, joined; bytes become
        the first convolution's input in one kernel, neither joined nor cropped in between.

        Args:
            images: uint8 [B, (T,) H, W, 3] each, of the trunk's ``image_size``, see :meth:`takes_crops`.
            offsets: of the crop, integers [B, 2] or [B, T, 2] for each of ``images``.
            padding: of the crop, pixels on each side.

        Returns:
            Feature maps, float [sum of B, (T,) h, w, 512], channels last.

        Raises:
            ValueError: images are of another shape, or offsets do not fit.
        """
        for image in images:
            if not self.takes_crops(image):
                given = f"{image.dtype} {tuple(image.shape)}"
                raise ValueError(f"images are {given}; encode_crops takes torch.uint8 [..., {(*self.image_size, 3)}]")
        kind = images[0].device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        mean, std = self.mean.flatten(), self.std.flatten()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x = self.features(crop_normalize(images, offsets, mean, std, padding=padding, dtype=dtype))
        return x.permute(0, 2, 3, 1).reshape(-1, *images[0].shape[1:-3], *self.feature_shape)

    def takes_crops(self, images: Tensor) -> bool:
        """Whether :meth:`encode_crops` takes ``images``: what has another size is cropped, then resized."""
        return images.dtype == torch.uint8 and tuple(images.shape[-3:]) == (*self.image_size, 3)

    def keep_cast(self, dtype: torch.dtype | None) -> None:
        """Keep the convolutions' weights in ``dtype`` for passes under autocast to it; None: keep no copies.

        For a frozen trunk: autocast would cast them in every pass. The copies follow ``load_state_dict``,
        :func:`load_resnet10_params` and, in passes that run eagerly, any other change; call :meth:`refresh_cast` where
        a compiled or captured pass must see one.
        """
        for conv in self._convolutions():
            conv.set_precast(dtype if self.frozen else None)

    def refresh_cast(self) -> None:
        """Bring what :meth:`keep_cast` keeps up to date with the weights, in place."""
        for conv in self._convolutions():
            conv.refresh_precast()

    def _convolutions(self) -> Iterator[PrecastConv2d]:
        for module in self.modules():
            if isinstance(module, PrecastConv2d):
                yield module

    def resize(self, images: Tensor) -> Tensor:
        """See :func:`resize_images`."""
        return resize_images(images, self.image_size)

    def normalise(self, images: Tensor) -> Tensor:
        """Resize, then normalise with ImageNet's mean and std: uint8 [N, H, W, 3] -> float32 [N, 3, h, w]."""
        return (self.resize(images) - self.mean) / self.std

    def features(self, x: Tensor) -> Tensor:
        """The network proper: normalised images [N, 3, H, W] -> [N, 512, H / 32, W / 32]."""
        x = self.norm_init.relu(self.conv_init(x))
        x = same_max_pool(x)
        for block in self.blocks:
            x = block(x)
        return x


def _leaf_names() -> Iterator[tuple[str, str]]:
    """Pairs of (path in the parameter file, name in the module)."""
    yield "conv_init/kernel", "conv_init.weight"
    yield from _norm_names("norm_init", "norm_init")
    for i in range(len(BLOCK_FILTERS)):
        source, target = f"ResNetBlock_{i}", f"blocks.{i}"
        for j in (0, 1):
            yield f"{source}/Conv_{j}/kernel", f"{target}.conv{j + 1}.weight"
            yield from _norm_names(f"{source}/MyGroupNorm_{j}", f"{target}.norm{j + 1}")
        if i > 0:
            yield f"{source}/conv_proj/kernel", f"{target}.projection.weight"
            yield from _norm_names(f"{source}/norm_proj", f"{target}.projection_norm")


def _norm_names(source: str, target: str) -> Iterator[tuple[str, str]]:
    yield f"{source}/scale", f"{target}.weight"
    yield f"{source}/bias", f"{target}.bias"


def load_resnet10_params(module: ResNet10, parameters: Mapping[str, Any] | str | Path) -> tuple[str, ...]:
    """Copy pretrained parameters into the trunk; nothing is changed unless all of them fit.

    Args:
        module: the trunk to fill.
        parameters: the nested dict ``{conv_init: {kernel}, norm_init: {scale, bias}, ResNetBlock_i: {...}}``
            of float arrays with convolution kernels as [height, width, in, out], or the pickle file that
            holds it (``resnet10_params.pkl`` of SERL). Further top-level keys are ignored, as in the
            original.

    Returns:
        The top-level keys that were ignored, sorted.

    Raises:
        ValueError: the file holds anything but arrays in containers; a parameter is missing, has another shape or
            holds a value that is not finite; or there is one, below a top-level key that is read, that the trunk does
            not have.

    Source: ``serl_launcher/utils/train_utils.py::load_resnet10_params``.
    """
    source = "the given parameters"
    if isinstance(parameters, (str, Path)):
        source = str(parameters)
        parameters = safe_pickle.load(parameters)
        if not isinstance(parameters, Mapping):
            raise ValueError(f"{source} holds a {type(parameters).__name__}; expected a dict of ResNet-10 parameters")
    names = dict(_leaf_names())
    read = {path.partition("/")[0] for path in names}
    unknown = [path for key in sorted(read) for path in _unknown(parameters.get(key), key, names)]
    if unknown:
        raise ValueError(f"{source}: the trunk has no parameters {', '.join(map(repr, unknown))}")
    state = module.state_dict()
    module.load_state_dict({name: _leaf(parameters, path, state[name], source) for path, name in names.items()})
    return tuple(sorted(str(key) for key in parameters if key not in read))


def _unknown(tree: Any, prefix: str, names: Mapping[str, str]) -> Iterator[str]:
    """Paths below ``prefix`` that lead to no parameter; what lies below such a path is not looked at."""
    if prefix in names or not isinstance(tree, Mapping):
        return
    for key, value in tree.items():
        path = f"{prefix}/{key}"
        if path in names or any(name.startswith(f"{path}/") for name in names):
            yield from _unknown(value, path, names)
        else:
            yield path


def _leaf(parameters: Mapping[str, Any], path: str, like: Tensor, source: str) -> Tensor:
    """The parameter at ``path`` in the layout of ``like``."""
    leaf: Any = parameters
    for key in path.split("/"):
        if not isinstance(leaf, Mapping) or key not in leaf:
            raise ValueError(f"{source}: parameter {path!r} is missing")
        leaf = leaf[key]
    array = np.asarray(leaf)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{source}: parameter {path!r} is a {type(leaf).__name__} of {array.dtype}; expected floats")
    expected = tuple(like.permute(2, 3, 1, 0).shape if like.dim() == 4 else like.shape)
    if array.shape != expected:
        raise ValueError(f"{source}: parameter {path!r} has shape {array.shape}; the trunk takes {expected}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is named
        value = torch.from_numpy(np.array(array, dtype=np.float32))
    wrong = int((~torch.isfinite(value)).sum())
    if wrong:
        raise ValueError(f"{source}: parameter {path!r} has {wrong} of {array.size} values that are not finite")
    return value.permute(3, 2, 0, 1) if value.dim() == 4 else value  # HWIO -> OIHW
