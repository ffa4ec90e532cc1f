"""Agents from plain values: a setup mode's layout, or the settings stored in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from serl_fast.agents.bc import BCConfig, bc
from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig, from_dict
from serl_fast.core import Agent


def build_agent(
    state_dim: int, action_dim: int, grippers: int, image_keys: Sequence[str], config: SACConfig | None = None
) -> Agent:
    """SAC where every action is continuous, hybrid SAC where ``grippers`` are learned."""
    if grippers:
        return hybrid_sac(state_dim, grippers, image_keys, config)
    return sac(state_dim, action_dim, image_keys, config)


def from_settings(settings: dict[str, Any], trunk: nn.Module | None = None) -> Agent:
    """Rebuild an agent from ``Agent.settings``, with fresh weights.

    Args:
        settings: plain values.
        trunk: the image trunk of an agent that was built with one of its user's.

    Raises:
        ValueError: an algorithm that this version does not know, a missing entry, or a missing ``trunk``.
    """
    algorithm = settings.get("algorithm")
    if algorithm not in ("sac", "hybrid_sac", "bc"):
        raise ValueError(
            f"algorithm {algorithm!r} is not known; this version has 'sac', 'hybrid_sac' and 'bc', and takes one of "
            "your own by --algorithm module:callable"
        )
    try:
        cameras, state_dim, values = settings["image_keys"], settings["state_dim"], settings["config"]
        if values.get("encoder") == "custom" and trunk is None:
            raise ValueError("this agent was built with an image trunk of its user's; give the same module as trunk")
        if algorithm == "sac":
            return sac(state_dim, settings["action_dim"], cameras, from_dict(SACConfig, values), trunk=trunk)
        if algorithm == "hybrid_sac":
            return hybrid_sac(state_dim, settings["grippers"], cameras, from_dict(SACConfig, values), trunk=trunk)
        return bc(state_dim, settings["action_dim"], cameras, from_dict(BCConfig, values), trunk=trunk)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the agent's settings are not complete: {error}") from error
