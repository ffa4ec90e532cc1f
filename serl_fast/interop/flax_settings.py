"""An agent's sizes, read off the shapes of its parameter tree."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from serl_fast.agents.bc import BCConfig
from serl_fast.agents.hybrid_sac import ARM_DIM, CHOICES
from serl_fast.agents.sac_config import SACConfig
from serl_fast.interop.flax_trees import ParameterTrees, Tree, trees_of
from serl_fast.rewards.classifier import ClassifierConfig
from serl_fast.rewards.vice import ViceConfig

CONFIGS: dict[str, type[Any]] = {
    "sac": SACConfig,
    "hybrid_sac": SACConfig,
    "bc": BCConfig,
    "vice": ViceConfig,
    "reward_classifier": ClassifierConfig,
}
"""The configuration of each algorithm that the original has too."""

_RESNET_CHANNELS = 512


def infer_settings(
    trees: ParameterTrees | Mapping[str, Any], image_keys: Sequence[str] | None = None, **config: Any
) -> dict[str, Any]:
    """The settings of the agent or classifier that a tree belongs to, as ``Agent.settings`` has them.

    Shapes tell the state's width, the layers, LayerNorm, the critics, the cameras, the grippers, whether the standard
    deviation depends on the state, and most of the poolings. They do not tell activations, limits of the standard
    deviation, average from max pooling, the image size of all but ResNets with spatial embeddings, stacked frames
    where a state without a branch is as wide as a frame's features, or how the agent is trained: those have
    HIL-SERL's values unless ``config`` says otherwise.

    Args:
        trees: see ``load_params``.
        image_keys: the cameras in the order of the original's configuration, in which their features are concatenated;
            the tree has them in alphabetical order. Needed for two cameras and more.
        config: fields of the algorithm's configuration, such as ``activation``, ``std_parameterization`` or ``compat``;
            ``compat`` does nothing to a reward classifier, which is trained as in the original.

    Raises:
        ValueError: the tree is of no agent that is known here, or not all of it; the order of cameras or a pooling is
            not given; or ``config`` has a field that the algorithm does not have.
    """
    settings = _infer(trees, image_keys, config)
    algorithm = settings["algorithm"]
    known = {field.name for field in dataclasses.fields(CONFIGS[algorithm])}
    unknown = sorted(set(settings["config"]) - known)
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not a setting of {algorithm!r}; it has {', '.join(sorted(known))}")
    return settings


def _infer(
    trees: ParameterTrees | Mapping[str, Any], image_keys: Sequence[str] | None, config: dict[str, Any]
) -> dict[str, Any]:
    tree = (trees if isinstance(trees, ParameterTrees) else trees_of(trees)).params
    for path, value in tree.items():
        if not value.size:
            raise ValueError(f"{path!r} has shape {list(value.shape)}: nothing in it")
    if "modules_actor/Dense_0/bias" in tree:
        return _agent(tree, image_keys, config)
    if any(path.startswith("modules_vice/") for path in tree):
        return _classifier(tree, image_keys, config, vice=True)
    if any(path.startswith("encoder_def/") for path in tree):
        return _classifier(tree, image_keys, config, vice=False)
    roots = sorted({path.partition("/")[0] for path in tree})
    raise ValueError(
        f"no agent or classifier of HIL-SERL: the tree holds {roots}; expected modules_actor or encoder_def"
    )


def _agent(tree: Tree, image_keys: Sequence[str] | None, config: dict[str, Any]) -> dict[str, Any]:
    critics = "modules_critic/Dense_0/bias" in tree
    widths = _widths(tree, "modules_actor/network")
    found: dict[str, Any] = {
        "hidden_widths": widths,
        "layer_norm": "modules_actor/network/LayerNorm_0/scale" in tree,
        "std_parameterization": _std(tree),
        "compat": "hil_serl",
    }
    if critics:
        path = "modules_critic/network/VmapMLP_0"
        if f"{path}/Dense_0/kernel" not in tree:  # SERL's critics of states, each with its own last layer
            path, found["compat"] = "modules_critic/network", None
        of_critics = _widths(tree, path)
        if of_critics != widths:
            raise ValueError(
                f"the critics' layers are {list(of_critics)}, the policy's {list(widths)}; here they agree"
            )
        found["critic_ensemble_size"] = _size(tree, f"{path}/Dense_0/kernel", 0)
    state_dim, cameras, of_encoder = _encoder(tree, "modules_actor/encoder/", image_keys, widths, config)
    action_dim = _size(tree, "modules_actor/Dense_0/bias", 0)
    settings = {"algorithm": "sac" if critics else "bc", "state_dim": state_dim, "action_dim": action_dim}
    if "modules_grasp_critic/Dense_0/bias" in tree:
        settings = {"algorithm": "hybrid_sac", "state_dim": state_dim, "grippers": _grippers(tree, action_dim)}
    return settings | {"image_keys": cameras, "config": found | of_encoder | config}


def _std(tree: Tree) -> str:
    if "modules_actor/log_stds" in tree:
        return "uniform"
    return "exp" if "modules_actor/Dense_1/bias" in tree else "fixed"


def _grippers(tree: Tree, action_dim: int) -> int:
    choices = _size(tree, "modules_grasp_critic/Dense_0/bias", 0)
    for grippers in (1, 2):
        if choices == CHOICES**grippers and action_dim == ARM_DIM * grippers:
            return grippers
    raise ValueError(
        f"{action_dim} continuous actions with {choices} choices of the grippers; known are 6 with 3 and 12 with 9"
    )


def _encoder(
    tree: Tree, root: str, image_keys: Sequence[str] | None, widths: Sequence[int], config: Mapping[str, Any]
) -> tuple[int, list[str], dict[str, Any]]:
    """Width of the state, cameras, and what the configuration says of the encoder."""
    cameras = _cameras(tree, root, image_keys)
    features = _size(tree, "modules_actor/network/Dense_0/kernel", 0) if widths else 0
    branch = tree.get(f"{root}Dense_0/kernel")
    latent = 0 if branch is None else int(branch.shape[1])
    found: dict[str, Any] = {"proprioception_dim": latent or None}
    of_cameras = 0
    if cameras:
        found |= _camera_kind(tree, f"{root}encoder_{cameras[0]}/", config)
        width = _size(tree, f"{root}encoder_{cameras[0]}/Dense_0/bias", 0) * len(cameras)
        found["frames"] = config.get("frames") or max(1, (features - latent) // width)
        of_cameras = width * found["frames"]
    state_dim = features - of_cameras if branch is None else int(branch.shape[0])
    if state_dim < 0 or (branch is not None and of_cameras + latent != features):
        raise ValueError(
            f"the policy reads {features} features, but {len(cameras)} cameras and the state give {of_cameras + latent}"
        )
    return state_dim, cameras, found


def _camera_kind(tree: Tree, prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Kind of image encoder, its pooling where that is not the kind's own, and the image size where it is told."""
    embeddings = tree.get(f"{prefix}SpatialLearnedEmbeddings_0/kernel")
    if f"{prefix}Conv_0/kernel" in tree and f"{prefix}conv_init/kernel" not in tree:
        channels = _size(tree, f"{prefix}Conv_3/bias", 0)
        pooling = "spatial_embeddings" if embeddings is not None else _pooling(tree, prefix, channels)
        return {"encoder": "small"} | ({} if pooling == "average" else {"pooling": pooling})
    found: dict[str, Any] = {"encoder": "resnet" if f"{prefix}conv_init/kernel" in tree else "resnet-pretrained"}
    if embeddings is not None:
        return found | {"image_size": (32 * int(embeddings.shape[0]), 32 * int(embeddings.shape[1]))}
    pooling = _pooling(tree, prefix, _RESNET_CHANNELS)
    if pooling == "average" and config.get("pooling") is None:
        raise ValueError(
            f"{prefix!r} has no spatial embeddings, and the shapes do not tell average from max: give pooling"
        )
    return found | {"pooling": pooling}


def _pooling(tree: Tree, prefix: str, channels: int) -> str:
    """The pooling without parameters that gives as many features as the dense layer reads; "max" is as "average"."""
    features = _size(tree, f"{prefix}Dense_0/kernel", 0)
    return {channels: "average", 2 * channels: "spatial_softmax"}.get(features, "none")


def _cameras(tree: Tree, root: str, image_keys: Sequence[str] | None) -> list[str]:
    """The cameras in the order of their features."""
    pattern = re.compile(re.escape(root) + r"encoder_(.+?)/(?:SpatialLearnedEmbeddings_0|Dense_0|LayerNorm_0)/")
    names = sorted({match[1] for match in map(pattern.match, tree) if match})
    if image_keys is None and len(names) < 2:
        return names
    if image_keys is None:
        raise ValueError(
            f"cameras {', '.join(names)}: the tree does not tell their order; give image_keys in the order of the "
            "original's configuration"
        )
    if sorted(image_keys) != names:
        raise ValueError(f"image_keys are {sorted(image_keys)}; the tree has {names}")
    return list(image_keys)


def _classifier(tree: Tree, image_keys: Sequence[str] | None, config: dict[str, Any], *, vice: bool) -> dict[str, Any]:
    root = "modules_vice/encoder/" if vice else "encoder_def/"
    hidden, head = ("modules_vice/network/Dense_0", "modules_vice/Dense_0") if vice else ("Dense_0", "Dense_1")
    cameras = _cameras(tree, root, image_keys)
    if not cameras:
        raise ValueError(f"no camera below {root!r}")
    bottleneck = _size(tree, f"{root}encoder_{cameras[0]}/Dense_0/bias", 0)
    found: dict[str, Any] = {"hidden": _size(tree, f"{hidden}/bias", 0)}
    found |= _camera_kind(tree, f"{root}encoder_{cameras[0]}/", config)
    found["frames"] = max(1, _size(tree, f"{hidden}/kernel", 0) // (bottleneck * len(cameras)))
    if vice:
        found |= {"bottleneck": bottleneck, "compat": "hil_serl"}
    else:
        found["classes"] = _size(tree, f"{head}/bias", 0)
        config = {name: value for name, value in config.items() if name != "compat"}
    algorithm = "vice" if vice else "reward_classifier"
    return {"algorithm": algorithm, "image_keys": cameras, "config": found | config}


def _widths(tree: Tree, root: str) -> tuple[int, ...]:
    widths: list[int] = []
    while f"{root}/Dense_{len(widths)}/bias" in tree:
        widths.append(_size(tree, f"{root}/Dense_{len(widths)}/bias", -1))
    return tuple(widths)


def _size(tree: Tree, path: str, axis: int) -> int:
    """Length of an axis of a tensor that must be there."""
    if path not in tree or not tree[path].ndim:
        raise ValueError(f"{path!r} is missing; the tree's sizes can not be inferred without it")
    return int(tree[path].shape[axis])
