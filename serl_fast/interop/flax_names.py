"""Where each parameter of ours stands in the parameter trees of SERL and HIL-SERL, and in which layout.

A leaf's name is the '/'-joined path below ``params``: ``modules_actor/network/Dense_0/kernel``. Dense kernels are
[in, out] there and [out, in] here; convolutions [height, width, in, out] and [out, in, height, width]; an ensemble has
the member first in both. The original's critics share ONE last layer. Where ours have one each, the recorded one is
copied to every member, and gradients of the members add up to the gradient of the recorded one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from serl_fast.networks.classifier import Discriminator, RewardClassifier
from serl_fast.networks.critic import CriticEnsemble, GraspCritic
from serl_fast.networks.encoder import CameraHead, Encoder, ProprioceptionBranch
from serl_fast.networks.mlp import MLP, StackedLayerNorm, StackedLinear
from serl_fast.networks.policy import Policy, Temperature
from serl_fast.networks.resnet10 import ResNet10, ResNetBlock
from serl_fast.networks.trunks import SmallCNN


class Leaf(NamedTuple):
    """One recorded tensor and the parameter it belongs to.

    Attributes:
        path: '/'-joined name in the tree.
        parameter: ours.
        to_flax: a gradient (or a value, where ``copies`` is 1) shaped like the parameter -> the recorded layout.
            It is linear; copies are added up.
        from_flax: the recorded layout -> shaped like the parameter.
        copies: how many copies of the recorded tensor the parameter holds.
    """

    path: str
    parameter: Tensor
    to_flax: Callable[[Tensor], Tensor]
    from_flax: Callable[[Tensor], Tensor]
    copies: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the recorded tensor."""
        return tuple(self.to_flax(self.parameter.detach().to("meta")).shape)

    def value(self) -> Tensor:
        """The parameter's value in the recorded layout, detached.

        Raises:
            ValueError: copies of the same recorded tensor differ, as those of trained critics with separate heads do.
        """
        value = self.parameter.detach()
        if self.copies == 1:
            return self.to_flax(value)
        if not bool((value == value[:1]).all()):
            raise ValueError(
                f"{self.path!r}: the {self.copies} critics have last layers of their own, HIL-SERL's tree has one for "
                "all: train with compat='hil_serl' to write whole agents, or write the networks that act alone "
                "(--policy_only), or SERL's layout of SAC from states (--separate_heads)"
            )
        return self.to_flax(value[:1])


def agent_leaves(networks: nn.ModuleDict, target: bool = False, *, separate_heads: bool = False) -> list[Leaf]:
    """The leaves of an agent, in the order of the names.

    Args:
        networks: of an agent with an ``encoder`` and an ``actor``; ``critic``, ``grasp_critic`` and ``temperature``
            where it has them.
        target: those of the target networks, under the same names; only the targets that the agent keeps.
        separate_heads: see :func:`module_leaves`.
    """
    found: list[Leaf] = []
    for name, prefix in NETWORKS.items():
        key = f"target_{name}" if target else name
        if key in networks:
            found += module_leaves(networks[key], prefix, separate_heads=separate_heads)
    return sorted(found, key=lambda leaf: leaf.path)


NETWORKS = {
    "encoder": "modules_actor/encoder",
    "actor": "modules_actor",
    "critic": "modules_critic",
    "grasp_critic": "modules_grasp_critic",
    "temperature": "modules_temperature",
    "classifier": "",
    "vice": "modules_vice",
}
"""Where the tree has each network. The encoder that actor and critics share stands under the actor."""


def module_leaves(module: nn.Module, prefix: str = "", *, separate_heads: bool = False) -> list[Leaf]:
    """The leaves of one network.

    Args:
        module: one of ours.
        prefix: path of the network in the tree; empty for none.
        separate_heads: the layout of SERL's critic of states, where every member has its own last layer: there is
            no ``VmapMLP_0``, and ``Dense_0`` has the members first.

    Raises:
        ValueError: the tree has no place for this kind of network.
    """
    if isinstance(module, CriticEnsemble):
        found = list(_critic(module, separate_heads))
    elif type(module) in _KINDS:
        found = list(_KINDS[type(module)](module))
    else:
        raise ValueError(f"a {type(module).__name__} has no place in HIL-SERL's parameter trees")
    return [leaf._replace(path=f"{prefix}/{leaf.path}") for leaf in found] if prefix else found


def _within(prefix: str, leaves: Iterator[Leaf]) -> Iterator[Leaf]:
    return (leaf._replace(path=f"{prefix}/{leaf.path}") for leaf in leaves)


def _same(path: str, parameter: Tensor) -> Leaf:
    return Leaf(path, parameter, _identity, _identity)


def _identity(value: Tensor) -> Tensor:
    return value


def _transpose(value: Tensor) -> Tensor:
    return value.T


def _layer(name: str, layer: Any) -> Iterator[Leaf]:
    """Weight and bias of a layer, called ``name`` in the tree."""
    kind, weight, bias = "kernel", _identity, _identity
    back, bias_back = _identity, _identity
    if isinstance(layer, nn.Linear):
        weight = back = _transpose
    elif isinstance(layer, nn.Conv2d):
        weight, back = (lambda value: value.permute(2, 3, 1, 0)), (lambda value: value.permute(3, 2, 0, 1))
    elif isinstance(layer, StackedLinear):
        bias, bias_back = _drop_axis, _add_axis
    elif isinstance(layer, StackedLayerNorm):
        kind, weight, back, bias, bias_back = "scale", _drop_axis, _add_axis, _drop_axis, _add_axis
    elif isinstance(layer, (nn.LayerNorm, nn.GroupNorm)):
        kind = "scale"
    else:
        raise ValueError(f"{name}: a {type(layer).__name__} has no place in HIL-SERL's parameter trees")
    yield Leaf(f"{name}/{kind}", layer.weight, weight, back)
    if layer.bias is not None:
        yield Leaf(f"{name}/bias", layer.bias, bias, bias_back)


def _drop_axis(value: Tensor) -> Tensor:
    return value.squeeze(1)  # [E, 1, D] -> [E, D]


def _add_axis(value: Tensor) -> Tensor:
    return value.unsqueeze(1)


def _stack(module: MLP | CriticEnsemble) -> Iterator[Leaf]:
    for index, layer in enumerate(module.layers):
        yield from _layer(f"Dense_{index}", layer)
    norms = (norm for norm in module.norms if not isinstance(norm, nn.Identity))
    for index, norm in enumerate(norms):
        yield from _layer(f"LayerNorm_{index}", norm)


def _policy(module: Policy) -> Iterator[Leaf]:
    yield from _layer("Dense_0", module.mean)
    if module.log_std is not None:
        yield from _layer("Dense_1", module.log_std)
    if module.log_stds is not None:
        yield _same("log_stds", module.log_stds)
    yield from _within("network", _stack(module.trunk))


def _critic(module: CriticEnsemble, separate_heads: bool) -> Iterator[Leaf]:
    head = module.head
    if separate_heads:
        yield from _layer("Dense_0", head)
        yield from _within("network", _stack(module))
        return
    copies = head.weight.shape[0]

    def add(value: Tensor) -> Tensor:
        return value.sum(0)  # [E, D, 1] -> [D, 1]

    def add_bias(value: Tensor) -> Tensor:
        return value.sum((0, 1))  # [E, 1, 1] -> [1]

    def repeat(value: Tensor) -> Tensor:
        return value.expand(copies, -1, 1) if value.dim() == 2 else value.expand(copies, 1, 1)

    yield Leaf("Dense_0/kernel", head.weight, add, repeat, copies)
    yield Leaf("Dense_0/bias", head.bias, add_bias, repeat, copies)
    yield from _within("network/VmapMLP_0", _stack(module))


def _grasp_critic(module: GraspCritic) -> Iterator[Leaf]:
    yield from _layer("Dense_0", module.head)
    yield from _within("network", _stack(module.trunk))


def _temperature(module: Temperature) -> Iterator[Leaf]:
    yield _same("lagrange", module.raw)


def _dense_and_norm(module: CameraHead | ProprioceptionBranch) -> Iterator[Leaf]:
    if module.dense is not None:
        yield from _layer("Dense_0", module.dense)
    if module.norm is not None:
        yield from _layer("LayerNorm_0", module.norm)


def _camera_head(module: CameraHead) -> Iterator[Leaf]:
    if module.embeddings is not None:
        yield _same("SpatialLearnedEmbeddings_0/kernel", module.embeddings.kernel)
    yield from _dense_and_norm(module)


def _resnet10(module: ResNet10) -> Iterator[Leaf]:
    yield from _layer("conv_init", module.conv_init)
    yield from _layer("norm_init", module.norm_init)
    for index, block in enumerate(module.blocks):
        assert isinstance(block, ResNetBlock)
        yield from _within(f"ResNetBlock_{index}", _resnet_block(block))


def _resnet_block(block: ResNetBlock) -> Iterator[Leaf]:
    yield from _layer("Conv_0", block.conv1)
    yield from _layer("MyGroupNorm_0", block.norm1)
    yield from _layer("Conv_1", block.conv2)
    yield from _layer("MyGroupNorm_1", block.norm2)
    if not isinstance(block.projection, nn.Identity):
        yield from _layer("conv_proj", block.projection)
        yield from _layer("norm_proj", block.projection_norm)


def _small_cnn(module: SmallCNN) -> Iterator[Leaf]:
    for index, layer in enumerate(module.convolutions):
        yield from _layer(f"Conv_{index}", layer)


def _encoder(module: Encoder) -> Iterator[Leaf]:
    if isinstance(module.proprioception, ProprioceptionBranch):
        yield from _dense_and_norm(module.proprioception)
    for key, head in zip(module.image_keys, module.heads, strict=True):
        assert isinstance(head, CameraHead)
        yield from _within(f"encoder_{key}", _camera_head(head))
    if module.trunk is not None:
        # One trunk for all cameras; flax keeps a shared module under the first name in alphabetical order.
        yield from module_leaves(module.trunk, f"encoder_{min(module.image_keys)}/pretrained_encoder")
    for key, trunk in zip(module.image_keys, module.trunks, strict=False):  # no trunks, or one for each camera
        yield from module_leaves(trunk, f"encoder_{key}")


def _classifier(module: RewardClassifier) -> Iterator[Leaf]:
    yield from _stack(module.hidden)
    yield from _layer("Dense_1", module.head)
    yield from _within("encoder_def", _encoder(module.encoder))


def _discriminator(module: Discriminator) -> Iterator[Leaf]:
    yield from _layer("Dense_0", module.head)
    yield from _within("network", _stack(module.hidden))
    yield from _within("encoder", _encoder(module.encoder))


_KINDS: dict[type[nn.Module], Callable[[Any], Iterator[Leaf]]] = {
    Policy: _policy,
    GraspCritic: _grasp_critic,
    Temperature: _temperature,
    ProprioceptionBranch: _dense_and_norm,
    CameraHead: _camera_head,
    ResNet10: _resnet10,
    SmallCNN: _small_cnn,
    Encoder: _encoder,
    RewardClassifier: _classifier,
    Discriminator: _discriminator,
}


def fill(leaves: list[Leaf], tree: dict[str, Tensor]) -> None:
    """Copy the tensors of ``tree``, by leaf name, into the parameters; every leaf must be there.

    Raises:
        ValueError: a leaf is missing or has another shape.
    """
    with torch.no_grad():
        for leaf in leaves:
            if leaf.path not in tree:
                raise ValueError(f"{leaf.path!r} is missing")
            value = tree[leaf.path]
            if tuple(value.shape) != leaf.shape:
                raise ValueError(f"{leaf.path!r} has shape {tuple(value.shape)}; the network takes {leaf.shape}")
            leaf.parameter.copy_(leaf.from_flax(value))
