"""Calibrated Q-learning (Nakamoto et al. 2023): CQL that pushes no value below what the data achieved.

The values of the policy's actions in CQL's log-sum-exp are replaced by the return of the data where that is larger, so
that the critics keep their scale, and training goes on online without a drop.

``batch["mc_returns"]`` float32 [B]: the discounted sum of the rewards from the transition on to the end of its
episode, of the rewards as this agent sees them (after ``reward_scale`` and ``reward_bias``), with the discount of the
run. For episodes that were cut off by time it is the sum up to there, or any other lower bound of the policy's value;
-inf for a transition without one (CORL stores 0 for those that were collected online, which bounds in another way).

One critic step and one of the actor each update (``critic_to_actor_ratio`` 1); differences from the published code as
in ``serl_fast.agents.cql``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from serl_fast.agents import offline
from serl_fast.agents.cql import CQLConfig, actor_objective, build_networks, critic_objective, noise_source
from serl_fast.agents.sac import policy
from serl_fast.core import Agent


@dataclasses.dataclass(frozen=True)
class CalQLConfig(CQLConfig):
    """CQL's settings and defaults; CORL's Cal-QL has two hidden layers in the critics where its CQL has three."""


def calql(
    state_dim: int,
    action_dim: int,
    image_keys: Sequence[str] = (),
    config: CalQLConfig | None = None,
    *,
    trunk: nn.Module | None = None,
) -> Agent:
    """Build a Cal-QL agent; its batches hold ``mc_returns`` float32 [B] too (see the top of this file).

    Args:
        state_dim: P, width of ``observations["state"]``; 0 when there is none.
        action_dim: A, every dimension continuous in [-1, 1].
        image_keys: cameras, in the order in which their features are concatenated.
        config: hyper-parameters.
        trunk: an image trunk of your own in place of ``config.encoder``.

    Returns:
        The agent; weights come from torch's global generator.

    Raises:
        ValueError: there is nothing to observe, or ``action_dim`` is not positive.
    """
    config = config or CalQLConfig()
    return Agent(
        networks=build_networks(state_dim, action_dim, image_keys, config, trunk),
        # max(Q, V of the behaviour policy): Cal-QL, equation 5.1, with the return of the data for V.
        critic_step=(critic_objective(config, lambda batch: batch["mc_returns"]),),
        actor_step=(actor_objective(config, action_dim),),
        targets=offline.averages(config, "encoder", "critic"),
        draw_noise=noise_source(image_keys, config, action_dim),
        prepare=offline.preparation(image_keys, config, action_dim, rows=("mc_returns",)),
        policy=policy,
        policy_networks=("encoder", "actor"),
        action_dim=action_dim,
        policy_noise_dim=action_dim,
        optimizers=config.adam(),
        settings=offline.settings_of("calql", state_dim, action_dim, image_keys, config, trunk is not None),
    )
