"""Whole agents from the parameter trees of SERL and HIL-SERL and back: nothing is left out in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serl_fast.interop.flax_names import Leaf, agent_leaves, module_leaves
from serl_fast.interop.flax_trees import Array, ParameterTrees, Tree, trees_of
from serl_fast.networks.encoder import Encoder, ProprioceptionBranch

TRUNK = "pretrained_encoder"


@dataclass(frozen=True)
class Report:
    """What became of every tensor, by its name in the file (``params/modules_actor/Dense_0/kernel``).

    Attributes:
        placed: names of the tensors that a parameter took.
        missing: parameters for which there is no tensor, with their shapes.
        unplaced: tensors that no parameter takes, with their shapes and, where one has this name, its shape.
        unread: tensors without a place that change nothing: targets that the agent does not keep, and the frozen trunk
            under ``target_params``, which is that of ``params``.
    """

    placed: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    unplaced: dict[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def problems(self) -> str:
        """One line for each tensor that is missing or has no place; empty where there is none."""
        lines = [f"  missing   {name} {shape}" for name, shape in self.missing.items()]
        return "\n".join(lines + [f"  no place  {name} {shape}" for name, shape in self.unplaced.items()])


def load_params(networks: nn.Module, trees: ParameterTrees | Mapping[str, Any], *, strict: bool = True) -> Report:
    """Fill networks from a parameter tree; nothing is changed unless all of it fits.

    A tree without ``target_params`` starts the targets at ``params``. The state's normaliser, which the original does
    not have, becomes the identity. A critic's single last layer is copied to every member.

    Args:
        networks: ``Agent.networks``, or one network such as a ``RewardClassifier``.
        trees: of :func:`serl_fast.interop.flax_trees.read_trees`, or nested or flat dicts of arrays, with or without
            ``params`` at the top.
        strict: whether every tensor must have a place and every parameter a tensor; if not, those that fit are taken.

    Raises:
        ValueError: with ``strict``, a tensor is missing, has no place, or has another shape; all are listed.
    """
    if not isinstance(trees, ParameterTrees):
        trees = trees_of(trees)
    report, values = _plan(networks, trees)
    if strict and report.problems():
        raise ValueError(
            f"{len(report.missing)} tensors are missing and {len(report.unplaced)} have no place; nothing was changed "
            f"(strict=False takes the {len(report.placed)} that fit):\n{report.problems()}"
        )
    with torch.no_grad():
        for leaf, value in values:
            leaf.parameter.copy_(leaf.from_flax(value))
        for encoder in networks.modules():
            if isinstance(encoder, Encoder) and encoder.normalizer is not None:
                encoder.normalizer.mean.zero_()
                encoder.normalizer.std.fill_(1)
    return report


def export_params(networks: nn.Module, *, separate_heads: bool = False) -> ParameterTrees:
    """The parameter trees of networks, float32, as HIL-SERL has them.

    ``target_params`` are complete, as there: what the agent keeps no target of is taken from ``params``. A normalised
    state is written into the layer that reads it (kernel / std, bias - (mean / std) @ kernel), which is the same
    function up to rounding.

    Args:
        networks: ``Agent.networks``, or one network.
        separate_heads: SERL's layout for SAC from states, where every critic has its own last layer.

    Raises:
        ValueError: the tree has no place for a network, or the critics' last layers differ where it holds only one.
    """
    params = {leaf.path: leaf.value() for leaf in _leaves(networks, separate_heads=separate_heads)}
    targets = {leaf.path: leaf.value() for leaf in _leaves(networks, target=True, separate_heads=separate_heads)}
    for name, values in (("encoder", params), ("target_encoder", targets)):
        if isinstance(networks, nn.ModuleDict) and name in networks:
            _write_normalizer(networks[name], values)
    target_params = _arrays(params | targets) if targets else {}
    return ParameterTrees(_arrays(params), target_params)


def with_trunk(trees: ParameterTrees, trunk: Mapping[str, Any], image_keys: Sequence[str]) -> ParameterTrees:
    """Add a pre-trained trunk to trees that were stored without.

    Args:
        trees: of an agent or a classifier.
        trunk: flat or nested ``{conv_init: ..., norm_init: ..., ResNetBlock_0: ...}``; other entries are ignored, as
            in the original.
        image_keys: all cameras.
    """
    root = _encoder_root(trees.params)
    found = {
        f"{root}encoder_{min(image_keys)}/{TRUNK}/{path}": value
        for path, value in trees_of(trunk).params.items()
        if path.startswith(("conv_init/", "norm_init/", "ResNetBlock_"))
    }
    return ParameterTrees(trees.params | found, trees.target_params, trees.left)


def has_trunk(trees: ParameterTrees) -> bool:
    """Whether the frozen trunk is among the parameters."""
    return any(TRUNK in path.split("/") for path in trees.params)


def _encoder_root(tree: Tree) -> str:
    """Where the cameras' encoders stand: of an agent, a classifier or VICE's discriminator."""
    if any(path.startswith("modules_actor/") for path in tree):
        return "modules_actor/encoder/"
    return "modules_vice/encoder/" if any(path.startswith("modules_vice/") for path in tree) else "encoder_def/"


def _leaves(networks: nn.Module, target: bool = False, *, separate_heads: bool = False) -> list[Leaf]:
    if isinstance(networks, nn.ModuleDict):
        return agent_leaves(networks, target, separate_heads=separate_heads)
    return [] if target else module_leaves(networks, separate_heads=separate_heads)


def _plan(networks: nn.Module, trees: ParameterTrees) -> tuple[Report, list[tuple[Leaf, Tensor]]]:
    """What goes where, and the tensors that do."""
    placed: list[str] = []
    missing: dict[str, str] = {}
    unplaced: dict[str, str] = {}
    unread: list[str] = []
    values: list[tuple[Leaf, Tensor]] = []
    separate = "modules_critic/network/Dense_0/kernel" in trees.params
    online = {leaf.path: leaf for leaf in _leaves(networks, separate_heads=separate)}
    targets = {leaf.path: leaf for leaf in _leaves(networks, target=True, separate_heads=separate)}
    for section, tree, leaves in (
        ("params", trees.params, online),
        ("target_params", trees.target_params, targets),
    ):
        for path, array in tree.items():
            name, leaf = f"{section}/{path}", leaves.get(path)
            if leaf is not None and array.shape == leaf.shape and array.dtype.kind in "fiu":
                placed.append(name)
                values.append((leaf, torch.from_numpy(np.array(array, np.float32))))
            elif leaf is not None:
                unplaced[name] = f"{_shape(array)} {array.dtype}; the network takes {list(leaf.shape)} of floats"
            elif leaves is targets and path in online and array.shape == online[path].shape:
                unread.append(name)
            else:
                unplaced[name] = _shape(array)
        if tree or leaves is online:
            missing |= {f"{section}/{path}": str(list(leaf.shape)) for path, leaf in leaves.items() if path not in tree}
    if not trees.target_params:
        given = {leaf.path: value for leaf, value in values}
        values += [(leaf, given[path]) for path, leaf in targets.items() if path in given]
    return Report(tuple(placed), missing, unplaced, tuple(unread)), values


def _shape(array: Array) -> str:
    return str(list(array.shape))


def _arrays(values: Mapping[str, Tensor]) -> Tree:
    return {path: value.float().cpu().contiguous().numpy().copy() for path, value in sorted(values.items())}


def _write_normalizer(encoder: nn.Module, values: dict[str, Tensor]) -> None:
    """Put (state - mean) / std into the layer, or layers, that read the state."""
    normalizer = encoder.normalizer if isinstance(encoder, Encoder) else None
    if normalizer is None or bool((normalizer.mean == 0).all() and (normalizer.std == 1).all()):
        return
    assert isinstance(encoder, Encoder)
    mean, std = normalizer.mean.double(), normalizer.std.double()
    if isinstance(encoder.proprioception, ProprioceptionBranch):
        layers, first = ["modules_actor/encoder/Dense_0"], 0
    else:  # the state is the last part of the features, and the critics append the action
        layers, first = (
            [layer for layer in _FEATURE_LAYERS if f"{layer}/kernel" in values],
            encoder.feature_size - len(mean),
        )
    for layer in layers:
        kernel = values[f"{layer}/kernel"].to(torch.float64, copy=True)  # [(E,) inputs, width]
        rows = kernel[..., first : first + len(mean), :] / std[:, None]
        values[f"{layer}/bias"] = (values[f"{layer}/bias"].double() - mean @ rows).float()
        kernel[..., first : first + len(mean), :] = rows
        values[f"{layer}/kernel"] = kernel.float()


_FEATURE_LAYERS = (
    "modules_actor/network/Dense_0",
    "modules_critic/network/Dense_0",
    "modules_critic/network/VmapMLP_0/Dense_0",
    "modules_grasp_critic/network/Dense_0",
)
