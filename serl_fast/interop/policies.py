"""Policies as safetensors files, and agents rebuilt from what a file says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from serl_fast.agents.build import from_settings
from serl_fast.agents.sac_config import from_dict
from serl_fast.checkpoint import CheckpointError, load_checkpoint
from serl_fast.core import Agent
from serl_fast.errors import require
from serl_fast.files import written_whole
from serl_fast.rewards.classifier import ClassifierConfig, reward_classifier
from serl_fast.rewards.vice import ViceConfig, vice

FORMAT_VERSION = "1"
_FACTS = ("env", "setup_mode", "image_size")


def build(settings: dict[str, Any]) -> Agent:
    """Rebuild an agent or a classifier from ``Agent.settings``, with fresh weights.

    Raises:
        ValueError: an algorithm that this version does not know, or a missing or impossible entry.
    """
    try:
        if settings["algorithm"] == "reward_classifier":
            return reward_classifier(settings["image_keys"], from_dict(ClassifierConfig, settings["config"]))
        if settings["algorithm"] == "vice":
            return vice(settings["image_keys"], from_dict(ViceConfig, settings["config"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"the settings do not suit: {error}") from error
    return from_settings(settings)


def acting_networks(agent: Agent) -> tuple[str, ...]:
    """Networks that are needed to use the agent: the policy's, or all of a classifier."""
    return agent.policy_networks or tuple(agent.networks)


def save_policy(path: str | Path, agent: Agent, facts: Mapping[str, Any] | None = None) -> Path:
    """Write the networks that act, with the settings that rebuild them, as a safetensors file.

    Args:
        path: the file to make; an old one stays whole until the new one is.
        agent: whose weights are written.
        facts: ``env``, ``setup_mode`` and ``image_size`` of the training, for ``serl_fast.evaluate``.
    """
    safetensors = require("safetensors.torch", "interop")
    path = Path(path)
    names = acting_networks(agent)
    state = {
        key: value.detach().cpu().contiguous()
        for key, value in agent.networks.state_dict().items()
        if key.partition(".")[0] in names
    }
    known = {key: value for key, value in (facts or {}).items() if key in _FACTS and value is not None}
    metadata = {"serl_fast": FORMAT_VERSION, "agent": json.dumps(agent.settings), "facts": json.dumps(known)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_bytes(safetensors.save(state, metadata))
    return path


def read_policy(path: str | Path) -> dict[str, Any]:
    """Read a policy file or a checkpoint: ``agent`` (settings), ``networks`` (tensors), ``env``, ``setup_mode``.

    Args:
        path: a safetensors file of :func:`save_policy`, or a checkpoint of ``train_hybrid``.

    Raises:
        CheckpointError: no such file, damaged, or of another kind or version.
    """
    path = Path(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else load_checkpoint(path)
    if not all(isinstance(content.get(key), dict) for key in ("agent", "networks")):
        raise CheckpointError(f"{path}: it holds no agent, but {', '.join(sorted(content))}")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such policy")
    try:
        with require("safetensors", "interop").safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            networks = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    except ImportError:
        raise
    except Exception as error:  # the library has its own kind for damaged files
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    if metadata.get("serl_fast") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: no policy of serl_fast, or of a newer version: its metadata hold serl_fast = "
            f"{metadata.get('serl_fast')!r}; {FORMAT_VERSION!r} is read"
        )
    try:
        agent, facts = json.loads(metadata["agent"]), json.loads(metadata["facts"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata hold no settings of an agent ({error})") from None
    facts = facts if isinstance(facts, dict) else {}
    return {**{key: facts.get(key) for key in _FACTS}, "agent": agent, "networks": networks}


def load_weights(networks: nn.ModuleDict, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Fill networks from a state dict of all of them, or of some and those completely.

    Returns:
        The names of the networks that were filled.

    Raises:
        CheckpointError: a tensor is missing, too many, or has another shape.
    """
    given = tuple(name for name in networks if any(key.partition(".")[0] == name for key in state))
    try:
        nn.ModuleDict({name: networks[name] for name in given}).load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(f"the weights are not of this agent: {' '.join(str(error).split())}") from None
    return given


def load_policy(path: str | Path, builder: Callable[[dict[str, Any]], Agent] = build) -> tuple[Agent, dict[str, Any]]:
    """The agent of a policy file or a checkpoint, its acting networks filled, and what else the file says.

    Args:
        path: see :func:`read_policy`.
        builder: an agent with fresh weights from its settings.

    Raises:
        CheckpointError: see :func:`read_policy`, or networks that act are not in the file.
    """
    content = read_policy(path)
    with torch.random.fork_rng(devices=()):  # the fresh weights are overwritten
        agent = builder(content["agent"])
    missing = set(acting_networks(agent)) - set(load_weights(agent.networks, content["networks"]))
    if missing:
        raise CheckpointError(f"{path}: it has no weights of {', '.join(sorted(missing))}")
    return agent, content
