"""A recorded agent as one of ours: built with ``compat="hil_serl"``, filled, with its batches and noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import SACConfig, sac
from serl_fast.core import Agent, Batch, Noise
from serl_fast.interop.flax_names import Leaf, agent_leaves, fill, module_leaves
from tests.parity.fixture import Fixture, FixtureError
from tests.parity.kinds.vision import scaled_mask, trunk_for
from tests.parity.library import Library

GRIPPERS = {"sac": 0, "single": 1, "dual": 2}
LOOKS = ("observations", "next_observations")

# The original's name of a setting -> ours.
SETTINGS = {
    "hidden_dims": "hidden_widths",
    "activations": "activation",
    "use_layer_norm": "layer_norm",
    "critic_ensemble_size": "critic_ensemble_size",
    "critic_subsample_size": "critic_subsample_size",
    "target_entropy": "target_entropy",
    "backup_entropy": "backup_entropy",
    "reward_bias": "reward_bias",
    "soft_target_update_rate": "target_update_rate",
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup_steps",
    "cosine_decay_steps": "cosine_decay_steps",
    "clip_grad_norm": "clip_gradient_norm",
    "std_parameterization": "std_parameterization",
    "std_min": "std_min",
    "std_max": "std_max",
    "fixed_std": "fixed_std",
}
ADAM = {"b1": "beta1", "b2": "beta2", "eps": "epsilon"}


class Call(NamedTuple):
    """One forward pass of a network: its positional inputs and its output."""

    inputs: tuple[Any, ...]
    output: Any


def build_agent(
    fixture: Fixture, library: Library, batch: str, compat: Literal["hil_serl"] | None = "hil_serl"
) -> tuple[Agent, SACConfig]:
    """Our agent with the recorded settings and parameters.

    Args:
        fixture: the recording.
        library: where the parameters of trunk and camera heads are.
        batch: name of a recorded batch, whose shapes say the rest.
        compat: None for our own update in place of the original's.
    """
    settings = fixture.config
    values = {ours: settings[theirs] for theirs, ours in SETTINGS.items() if theirs in settings}
    values["hidden_widths"] = tuple(values["hidden_widths"])
    cameras = list(settings.get("cameras", ()))
    width = state_width(fixture, f"{batch}/observations")
    if cameras:
        frames = packed_frames(fixture, batch, cameras[0])
        values |= {"frames": frames, "image_size": trunk_for(fixture, library).image_size}
        offsets = f"{batch.removesuffix('batch')}noise/crop_offsets/observations"
        values |= {} if offsets in fixture else {"crop_padding": 0}
    if width:
        values["proprioception_dim"] = settings.get("proprio_latent_dim")
    config = SACConfig(**values, compat=compat)
    if settings["kind"] not in GRIPPERS:
        raise FixtureError(f"the agent's kind is {settings['kind']!r}; known are {', '.join(GRIPPERS)}")
    grippers = GRIPPERS[settings["kind"]]
    if grippers:
        agent = hybrid_sac(width, grippers, cameras, config)
    else:
        agent = sac(width, fixture.recorded(f"{batch}/actions").shape[-1], cameras, config)
    adam = {ours: settings["adam"][theirs] for theirs, ours in ADAM.items() if theirs in settings.get("adam", {})}
    optimizers = {name: dataclasses.replace(config, **adam) for name, config in agent.optimizers.items()}
    agent = dataclasses.replace(agent, optimizers=optimizers)
    online = fill_leaves(fixture, library, agent_leaves(agent.networks))
    target = agent_leaves(agent.networks, target=True)
    # A target leaf that is not recorded equals the online one.
    fill(target, {leaf.path: _given(fixture, f"target_params/{leaf.path}", online.get(leaf.path)) for leaf in target})
    return agent, config


def fill_leaves(fixture: Fixture, library: Library, leaves: Sequence[Leaf], root: str = "params") -> dict[str, Tensor]:
    """Fill ``leaves`` from the arrays below ``root``, trunk and camera heads perhaps from elsewhere; what with."""
    missing = [leaf.path for leaf in leaves if f"{root}/{leaf.path}" not in fixture]
    elsewhere = shared_parameters(fixture, library, missing)
    tree = {leaf.path: _given(fixture, f"{root}/{leaf.path}", elsewhere.get(leaf.path)) for leaf in leaves}
    fill(list(leaves), tree)
    return tree


def shared_parameters(fixture: Fixture, library: Library, paths: Sequence[str]) -> dict[str, Tensor]:
    """Those of the leaves ``paths`` that are recorded elsewhere: of the trunk and of the camera heads."""
    if not paths:
        return {}
    heads = library.find("encoder_heads", fixture)
    trunk = {leaf.path: leaf for leaf in module_leaves(trunk_for(fixture, library))}
    found: dict[str, Tensor] = {}
    for path in paths:
        _, is_trunk, name = path.partition("/pretrained_encoder/")
        if is_trunk:
            found |= {path: trunk[name].value()} if name in trunk else {}
            continue
        for camera in fixture.config.get("cameras", ()):
            _, is_head, name = path.partition(f"encoder_{camera}/")
            if is_head and f"params/{camera}/{name}" in heads:
                found[path] = heads.given(f"params/{camera}/{name}")
    return found


def batch_of(fixture: Fixture, at: str, discount: float) -> Batch:
    """A recorded batch as ours. Packed frames: observations are all but the last, next ones all but the first."""
    cameras = fixture.config.get("cameras", ())
    looks = {
        look: {key: fixture.given(f"{at}/{look}/{key}") for key in fixture.below(f"{at}/{look}")} for look in LOOKS
    }
    for camera in cameras:
        if camera not in looks["next_observations"]:
            packed = looks["observations"][camera]
            looks["observations"][camera], looks["next_observations"][camera] = packed[:, :-1], packed[:, 1:]
    rows = {name: fixture.given(f"{at}/{name}") for name in fixture.below(at) if "/" not in name}
    masks = rows.pop("masks")
    rows.pop("dones", None)  # the original's update reads the masks
    return {**looks, **rows, "discounts": discount * masks}


NOISE = {
    "actor/action_eps": "actions",
    "critic/next_action_eps": "next_actions",
    "temperature/next_action_eps": "temperature_actions",
    "critic/subsample_idcs": "critic_members",
    "crop_offsets/observations": "crop",
    "crop_offsets/next_observations": "next_crop",
}
DROPOUT = {"actor": "dropout", "critic": "next_dropout", "temperature": "temperature_dropout"}


def noise_of(fixture: Fixture, at: str) -> Noise:
    """The recorded noise of one update, by our names."""
    noise = {ours: fixture.given(f"{at}/{theirs}") for theirs, ours in NOISE.items() if f"{at}/{theirs}" in fixture}
    for loss, ours in DROPOUT.items():
        masks = [f"{at}/{loss}/dropout/encoder_{camera}" for camera in fixture.config.get("cameras", ())]
        if masks and masks[0] in fixture:
            noise[ours] = torch.stack([scaled_mask(fixture.given(name)) for name in masks], dim=1)  # [B, K, W]
    return {name: value if value.is_floating_point() else value.long() for name, value in noise.items()}


@contextmanager
def observed(networks: nn.ModuleDict) -> Iterator[dict[str, list[Call]]]:
    """Every forward pass of every network while the context is open, by the network's name."""
    calls: dict[str, list[Call]] = {name: [] for name in networks}
    hooks = [
        network.register_forward_hook(lambda _, inputs, output, name=name: calls[name].append(Call(inputs, output)))
        for name, network in networks.items()
    ]
    yield calls
    for hook in hooks:
        hook.remove()


def state_width(fixture: Fixture, observations: str) -> int:
    """Width P of the flattened state, 0 without one."""
    if f"{observations}/state" not in fixture:
        return 0
    return int(np.prod(fixture.recorded(f"{observations}/state").shape[1:]))


def packed_frames(fixture: Fixture, batch: str, camera: str) -> int:
    """Frames T of an observation; a packed one has the next frame too."""
    packed = f"{batch}/next_observations/{camera}" not in fixture
    return int(fixture.recorded(f"{batch}/observations/{camera}").shape[1]) - packed


def _given(fixture: Fixture, name: str, elsewhere: Tensor | None) -> Tensor:
    return fixture.given(name) if name in fixture or elsewhere is None else elsewhere
