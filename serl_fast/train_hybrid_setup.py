"""What a run of train_hybrid is set up from: device, threads, spaces, directories, settings."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from serl_fast.agents.sac_config import SACConfig, from_dict
from serl_fast.engine.ranks import ranks_on_this_machine
from serl_fast.interop.pretrained import resnet10_trunks
from serl_fast.train_hybrid_config import TrainHybridConfig

ROOM_FOR_INTERVENTIONS = 20_000
"""Transitions, half an hour at 10 Hz, that a replay on the device has room for at first beside the demonstrations."""

EMPTY_STATE = gymnasium.spaces.Box(-1, 1, (0,))


def check_takes_pretrained(encoder: torch.nn.Module | None, config: TrainHybridConfig) -> None:
    """Refuse pre-trained weights that nothing would take."""
    try:
        resnet10_trunks(encoder)
    except ValueError as error:
        of = f"encoder {config.encoder}" if config.algorithm == "sac" else f"algorithm {config.algorithm}"
        cameras = f"image_keys {' '.join(config.image_keys)}" if config.image_keys else "no image_keys"
        raise ValueError(f"--pretrained_encoder has no use with --{of} and {cameras}: {error}") from None


def can_be_filmed(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether an environment can be filmed; if not, why is said. Training does not fail for want of a video."""
    if env.render_mode != "rgb_array":
        print(f"no video: {env.spec.id if env.spec else env} does not render (it takes no render_mode='rgb_array')")
        return False
    try:
        env.reset()
        env.render()
    except Exception as error:  # a missing graphics library shows only now
        print(f"no video: {error}")
        return False
    return True


def close_quietly(env: gymnasium.Env[Any, Any]) -> None:
    """Close an environment; what goes wrong is said, and hides nothing that went wrong before."""
    try:
        env.close()
    except Exception as error:
        print(f"closing the environment failed: {error!r}", file=sys.stderr)


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


def default_threads(config: TrainHybridConfig, device: torch.device) -> int:
    """Threads for torch, so that learner and actor do not fight for cores.

    Beyond two threads the update of 256-wide MLPs gains little (``python -m benchmarks --suite update``), and a team
    that outnumbers the free cores waits at its barriers.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // ranks_on_this_machine())
    wanted = cores - 1 if config.image_keys or device.type != "cpu" else 2
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


def example_transition(spaces: Spaces) -> dict[str, Any]:
    """A transition of zeros with the environment's shapes: the stores' schema."""
    observation = {key: np.zeros(space.shape, space.dtype) for key, space in spaces.observations.items()}
    return {
        "observations": observation,
        "actions": np.zeros(spaces.actions.shape, np.float32),
        "next_observations": observation,
        "rewards": np.float32(0),
        "terminated": False,
        "truncated": False,
        "grasp_penalty": np.float32(0),
    }


def new_directory(config: TrainHybridConfig) -> Path:
    """Where a run goes that was not told where."""
    name = config.env.rpartition("/")[2].rpartition(":")[2]
    return Path("runs") / f"{name}_seed{config.seed}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"


def newest_run() -> Path:
    """The directory under runs/ with the newest checkpoint."""
    runs = [path.parent for path in Path("runs").glob("*/checkpoint_*.pth")]
    if not runs:
        raise ValueError("resume: no run with a checkpoint under runs/; give --save_dir")
    return max(runs, key=lambda path: path.stat().st_mtime)


def plain_values(config: TrainHybridConfig) -> dict[str, Any]:
    """The flags as JSON takes them."""
    values = dataclasses.asdict(config)
    return {
        key: str(v) if isinstance(v, Path) else [str(p) for p in v] if key == "demo_paths" else v
        for key, v in values.items()
    }
