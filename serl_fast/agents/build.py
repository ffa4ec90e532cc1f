"""Agents from plain values: a setup mode's layout, an algorithm's name, or the settings stored in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from serl_fast.agents.bc import BCConfig, bc
from serl_fast.agents.calql import CalQLConfig, calql
from serl_fast.agents.cql import CQLConfig, cql
from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.iql import IQLConfig, iql
from serl_fast.agents.rebrac import ReBRACConfig, rebrac
from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig, from_dict
from serl_fast.agents.td3bc import TD3BCConfig, td3bc
from serl_fast.core import Agent


class Algorithm(NamedTuple):
    """An algorithm and how it is meant to be run.

    Attributes:
        build: (state_dim, action_dim, image_keys, config, *, trunk) -> Agent; the second is the number of grippers
            where ``size`` says so.
        config: the type of its configuration.
        critic_to_actor_ratio: gradient steps per step of the actor in its publication.
        fields: what its batches hold beyond observations, actions, rewards and discounts.
        size: the entry of ``Agent.settings`` with the width of the action.
    """

    build: Callable[..., Agent]
    config: type[Any]
    critic_to_actor_ratio: int = 1
    fields: tuple[str, ...] = ()
    size: str = "action_dim"


ALGORITHMS = {
    "sac": Algorithm(sac, SACConfig, 2),
    "hybrid_sac": Algorithm(hybrid_sac, SACConfig, 2, ("grasp_penalty",), "grippers"),
    "bc": Algorithm(bc, BCConfig),
    "iql": Algorithm(iql, IQLConfig),
    "td3bc": Algorithm(td3bc, TD3BCConfig, 2),
    "rebrac": Algorithm(rebrac, ReBRACConfig, 2, ("next_actions",)),
    "cql": Algorithm(cql, CQLConfig),
    "calql": Algorithm(calql, CalQLConfig, 1, ("mc_returns",)),
}


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
    name = settings.get("algorithm")
    if name not in ALGORITHMS:
        raise ValueError(
            f"algorithm {name!r} is not known; this version has {', '.join(ALGORITHMS)}, and takes one of your own by "
            "--algorithm module:callable"
        )
    algorithm = ALGORITHMS[name]
    try:
        cameras, state_dim, values = settings["image_keys"], settings["state_dim"], settings["config"]
        if values.get("encoder") == "custom" and trunk is None:
            raise ValueError("this agent was built with an image trunk of its user's; give the same module as trunk")
        size = settings[algorithm.size]
        return algorithm.build(state_dim, size, cameras, from_dict(algorithm.config, values), trunk=trunk)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the agent's settings are not complete: {error}") from error
