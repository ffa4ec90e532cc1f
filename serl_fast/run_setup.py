"""What a training run is set up from: device, threads, spaces, directories, settings."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import nn

from serl_fast.agents.sac_config import SACConfig, from_dict
from serl_fast.core import Agent, Batch, Noise
from serl_fast.data.offline import FOLLOWING, MC_RETURNS
from serl_fast.engine.ranks import ranks_on_this_machine
from serl_fast.interop.pretrained import resnet10_trunks

ROOM_FOR_INTERVENTIONS = 20_000
"""Transitions, half an hour at 10 Hz, that a replay on the device has room for at first beside the demonstrations."""

EMPTY_STATE = gymnasium.spaces.Box(-1, 1, (0,))


def check_takes_pretrained(agent: Agent, image_keys: Sequence[str], algorithm: str) -> None:
    """Refuse pre-trained weights that nothing would take."""
    try:
        resnet10_trunks(dict(agent.networks.items()).get("encoder"))
    except ValueError as error:
        own = ":" in algorithm
        of = f"algorithm {algorithm}" if own else f"encoder {agent.settings['config']['encoder']}"
        cameras = f"image_keys {' '.join(image_keys)}" if image_keys else "no image_keys"
        raise ValueError(f"--pretrained_encoder has no use with --{of} and {cameras}: {error}") from None


def can_be_filmed(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether an environment can be filmed; if not, why is said. Training does not fail for want of a video."""
    if env.render_mode != "rgb_array":
        print(f"no video: {env.spec.id if env.spec else env} does not render (it takes no render_mode='rgb_array')")
        return False
    try:
        env.reset()
        picture = np.asarray(env.render())
    except Exception as error:  # a missing graphics library shows only now
        print(f"no video: {error}")
        return False
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        print(f"no video: a picture is {picture.dtype} {picture.shape}, not uint8 (height, width, 3)")
        return False
    return True


def close_quietly(env: gymnasium.Env[Any, Any]) -> None:
    """Close an environment; what goes wrong is said, and hides nothing that went wrong before."""
    try:
        env.close()
    except Exception as error:
        print(f"closing the environment failed: {error!r}", file=sys.stderr)


def check_augmentation(config: Any) -> None:
    """Refuse DALI where images are not those of a batch that the host draws, or are cropped elsewhere too.

    Args:
        config: flags of a training command.

    Raises:
        ValueError: names the first flag that does not go with it.
    """
    if config.augment != "dali":
        return
    wrong = {
        "image_keys": not config.image_keys,
        "algorithm": ":" in config.algorithm,
        "feature_cache": bool(getattr(config, "feature_cache", 0)),
        "replay_device": config.replay_device == "device",
    }
    for name in [name for name, refused in wrong.items() if refused]:
        raise ValueError(
            f"augment is 'dali', which crops the images of batches that the host draws, and {name} is "
            f"{getattr(config, name)!r}; it takes image_keys, an algorithm of this package, no feature_cache and "
            "replay_device 'auto' or 'host'"
        )


def choose_device(name: str) -> torch.device:
    """The device of a name; for "auto" CUDA, else MPS, else the CPU."""
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # torch's ways of saying unknown or absent
            raise ValueError(f"device {name!r} can not be used: {error}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_threads(images: bool, device: torch.device) -> int:
    """Threads for torch, so that learner and actor do not fight for cores.

    Beyond two threads the update of 256-wide MLPs gains little (``python -m benchmarks --suite update``), and a team
    that outnumbers the free cores waits at its barriers.

    Args:
        images: whether there are any to learn from.
        device: of the learner.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // ranks_on_this_machine())
    wanted = cores - 1 if images or device.type != "cpu" else 2
    return max(1, min(wanted, cores - 1))


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of fields that the version which wrote them did not have."""
    if settings.get("algorithm") not in ("sac", "hybrid_sac"):
        return settings
    return {**settings, "config": dataclasses.asdict(from_dict(SACConfig, settings["config"]))}


def flattened(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the nested ones beside the others, and sequences comparable after a checkpoint."""
    merged = {**settings, **settings.get("config", {})}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in merged.items() if key != "config"}


class Spaces(NamedTuple):
    """What the actor observes and does; ranks without an environment know it by this."""

    observations: dict[str, gymnasium.spaces.Box]
    actions: gymnasium.spaces.Box


def spaces_of(env: gymnasium.Env[Any, Any]) -> Spaces:
    """The spaces of an environment whose observations are a Dict of Box."""
    assert isinstance(env.observation_space, gymnasium.spaces.Dict)
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    return Spaces(dict(env.observation_space.spaces), env.action_space)  # type: ignore[arg-type]


def with_next_actions(agent: Agent) -> Agent:
    """The agent, with batches whose ``next_actions`` are what stores hold as :data:`FOLLOWING`."""

    def prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        if FOLLOWING in batch:
            batch = {**batch, "next_actions": batch[FOLLOWING]}
        return agent.prepare(networks, batch, noise)

    return dataclasses.replace(agent, prepare=prepare)


def example_transition(spaces: Spaces, further: Sequence[str] = ()) -> dict[str, Any]:
    """A transition of zeros with the environment's shapes: the stores' schema.

    Args:
        spaces: of the environment.
        further: fields beside the usual ones, of ``data.offline``.
    """
    also = {MC_RETURNS: np.float32(0), FOLLOWING: np.zeros(spaces.actions.shape, np.float32)}
    observation = {key: np.zeros(space.shape, space.dtype) for key, space in spaces.observations.items()}
    return {
        "observations": observation,
        "actions": np.zeros(spaces.actions.shape, np.float32),
        "next_observations": observation,
        "rewards": np.float32(0),
        "terminated": False,
        "truncated": False,
        "grasp_penalty": np.float32(0),
        **{name: also[name] for name in further},
    }


def new_directory(name: str, seed: int) -> Path:
    """Where a run goes that was not told where; ``name`` may be an environment's id."""
    name = name.rpartition("/")[2].rpartition(":")[2]
    return Path("runs") / f"{name}_seed{seed}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"


def newest_run() -> Path:
    """The directory under runs/ with the newest checkpoint."""
    runs = [path.parent for path in Path("runs").glob("*/checkpoint_*.pth")]
    if not runs:
        raise ValueError("resume: no run with a checkpoint under runs/; give --save_dir")
    return max(runs, key=lambda path: path.stat().st_mtime)


def plain_values(config: Any) -> dict[str, Any]:
    """The flags, a dataclass, as JSON takes them."""
    return {
        key: str(v)
        if isinstance(v, Path)
        else [str(each) if isinstance(each, Path) else each for each in v]
        if isinstance(v, tuple)
        else v
        for key, v in dataclasses.asdict(config).items()
    }
