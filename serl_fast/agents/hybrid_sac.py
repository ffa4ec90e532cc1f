"""Hybrid SAC: SAC for the arm's continuous action, double DQN for what the grippers do.

A full action is, for each arm, six continuous numbers and one gripper command in {-1 close, 0 stay, +1 open}.
One gripper has 3 choices; two have 9 joint ones, g = 3 * left + right.

The formulas are HIL-SERL's (``sac_hybrid_single.py``, ``sac_hybrid_dual.py``), one file here for any number of arms.
Beyond the differences listed in ``serl_fast.agents.sac``: the target entropy counts the continuous dimensions alone
(under ``compat`` the full action, as in the original).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from serl_fast.agents import compat, sac
from serl_fast.agents.parts import (
    add_target,
    build_networks,
    checked,
    encode,
    encoder_of,
    noise_source,
    target_updates,
    together,
)
from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import Agent, Batch, Loss, Noise, Objective, Observations
from serl_fast.networks.critic import GraspCritic

ARM_DIM = 6
CHOICES = 3  # close, stay, open


def hybrid_sac(
    state_dim: int,
    grippers: int = 1,
    image_keys: Sequence[str] = (),
    config: SACConfig | None = None,
    *,
    trunk: nn.Module | None = None,
) -> Agent:
    """Build a hybrid SAC agent for ``grippers`` arms, each with a learned gripper.

    Args:
        state_dim: P, width of ``observations["state"]``; 0 when there is none.
        grippers: number of arms, at least 1; the full action has 7 numbers for each.
        image_keys: cameras, in the order in which their features are concatenated.
        config: hyper-parameters.
        trunk: an image trunk of your own in place of ``config.encoder``.

    Raises:
        ValueError: no gripper, or nothing to observe.
    """
    if grippers < 1:
        raise ValueError(f"grippers is {grippers}; hybrid SAC needs at least 1 (use sac() for a fixed gripper)")
    config = config or SACConfig()
    if trunk is not None:
        config = dataclasses.replace(config, encoder="custom")
    continuous_dim, action_dim = ARM_DIM * grippers, (ARM_DIM + 1) * grippers
    networks = build_networks(state_dim, continuous_dim, image_keys, config, trunk)
    networks["grasp_critic"] = GraspCritic(
        encoder_of(networks).feature_size,
        CHOICES**grippers,
        config.hidden_widths,
        layer_norm=config.layer_norm,
        activation=config.activation,
    )
    add_target(networks, "grasp_critic")

    def continuous(actions: Tensor) -> Tensor:
        return split_action(actions, grippers)[0]

    critics = (sac.critic_objective(config, continuous), grasp_critic_objective(grippers))
    actor_step: tuple[Objective, ...] = (sac.actor_objective(config, continuous_dim, continuous),)
    if config.compat:
        actor_step = (compat.actor_objective(), compat.temperature_objective(config, action_dim))
    return Agent(
        networks=networks,
        critic_step=critics if config.compat else (together("critic+grasp_critic", critics),),
        actor_step=actor_step,
        targets=target_updates(networks, config),
        draw_noise=noise_source(config, continuous_dim, networks),
        prepare=checked(
            sac.preparation(image_keys, config, networks), action_dim, ("rewards", "discounts", "grasp_penalty")
        ),
        policy=hybrid_policy(grippers),
        policy_networks=("encoder", "actor", "grasp_critic"),
        action_dim=action_dim,
        policy_noise_dim=continuous_dim,
        optimizers=sac.optimizers(config),
        optimize="objectives" if config.compat else "networks",
        settings={
            "algorithm": "hybrid_sac",
            "state_dim": state_dim,
            "grippers": grippers,
            "image_keys": list(image_keys),
            "config": dataclasses.asdict(config),
        },
    )


def split_action(actions: Tensor, grippers: int) -> tuple[Tensor, Tensor]:
    """Split full actions [B, 7 * grippers] into arms [B, 6 * grippers] and the joint gripper choice, int64 [B].

    The choice of one gripper is round(command) + 1 in {0 close, 1 stay, 2 open}, halves rounded to even.
    """
    arms = actions.unflatten(-1, (grippers, ARM_DIM + 1))  # [B, grippers, 7]
    commands = (arms[..., ARM_DIM].round() + 1).clamp(0, CHOICES - 1).long()  # [B, grippers]
    choice = commands[..., 0]
    for index in range(1, grippers):
        choice = CHOICES * choice + commands[..., index]
    return arms[..., :ARM_DIM].flatten(-2), choice


def join_action(arms: Tensor, choice: Tensor, grippers: int) -> Tensor:
    """The inverse of :func:`split_action`, with gripper commands in {-1, 0, 1}."""
    commands = []
    for _ in range(grippers):
        commands.append(choice % CHOICES - 1)
        choice = choice // CHOICES
    command = torch.stack(commands[::-1], dim=-1).unsqueeze(-1).to(arms.dtype)  # [B, grippers, 1]
    return torch.cat([arms.unflatten(-1, (grippers, ARM_DIM)), command], dim=-1).flatten(-2)


@torch.no_grad()
def grasp_targets(networks: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor]:
    """The grasp critic's regression target y and the greedy next choice g*, float and int64 [B].

    g* = argmax_g Q_g(s'); y = r + grasp_penalty + discount * Q_target_g*(s').
    """
    next_q = networks["grasp_critic"](encode(networks, batch, "next_observations"))  # [B, G]
    target_q = networks["target_grasp_critic"](encode(networks, batch, "next_observations", by="target_encoder"))
    best = next_q.argmax(-1)
    value = target_q.gather(-1, best.unsqueeze(-1)).squeeze(-1)  # [B]
    return batch["rewards"] + batch["grasp_penalty"] + batch["discounts"] * value, best


def grasp_critic_objective(grippers: int) -> Objective:
    """Double DQN over the gripper's choices: mean (Q_g(s) - y)^2, g the stored choice, y of :func:`grasp_targets`.

    The penalty for moving a gripper that is already there enters only here.

    Source: van Hasselt et al. 2016; ``sac_hybrid_single.py`` of HIL-SERL.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        targets, _ = grasp_targets(networks, batch)
        q_all = networks["grasp_critic"](encode(networks, batch, "observations"))
        choice = split_action(batch["actions"], grippers)[1]
        q = q_all.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
        value = (q - targets).square().mean()
        metrics = {
            "loss": value.detach(),
            "predicted_qs": q.detach().mean(),
            "target_qs": targets.mean(),
            "rewards": (batch["rewards"] + batch["grasp_penalty"]).mean(),
        }
        return Loss(value, metrics)

    return Objective("grasp_critic", loss, trains=("encoder", "grasp_critic"))


def hybrid_policy(grippers: int) -> Callable[[nn.ModuleDict, Observations, Tensor | None], Tensor]:
    """Arms from the Gaussian policy, grippers greedily from the grasp critic, as HIL-SERL acts."""

    def policy(networks: nn.ModuleDict, observations: Observations, noise: Tensor | None) -> Tensor:
        features = networks["encoder"](observations)
        distribution = networks["actor"](features)
        arms = distribution.mode if noise is None else distribution.sample(noise)[0]
        choice = networks["grasp_critic"](features).argmax(-1)
        return join_action(arms, choice, grippers)

    return policy
