"""Agents from plain values: a setup mode's layout, or the settings stored in a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import SACConfig, sac
from serl_fast.core import Agent


def build_agent(
    state_dim: int, action_dim: int, grippers: int, image_keys: Sequence[str], config: SACConfig | None = None
) -> Agent:
    """SAC where every action is continuous, hybrid SAC where ``grippers`` are learned."""
    if grippers:
        return hybrid_sac(state_dim, grippers, image_keys, config)
    return sac(state_dim, action_dim, image_keys, config)


def from_settings(settings: dict[str, Any]) -> Agent:
    """Rebuild an agent from ``Agent.settings``, with fresh weights.

    Raises:
        ValueError: an algorithm that this version does not know, or a missing entry.
    """
    try:
        values = dict(settings["config"])
        values["hidden_widths"] = tuple(values["hidden_widths"])
        config = SACConfig(**values)
        cameras, state_dim = settings["image_keys"], settings["state_dim"]
        if settings["algorithm"] == "sac":
            return sac(state_dim, settings["action_dim"], cameras, config)
        if settings["algorithm"] == "hybrid_sac":
            return hybrid_sac(state_dim, settings["grippers"], cameras, config)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the agent's settings are not complete: {error}") from error
    raise ValueError(f"algorithm {settings['algorithm']!r} is not known; this version has 'sac' and 'hybrid_sac'")
