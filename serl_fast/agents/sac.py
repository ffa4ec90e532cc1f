"""Soft actor-critic (Haarnoja et al. 2018) with an ensemble of critics, as HIL-SERL uses it.

Differences from HIL-SERL's own SAC, each the textbook behaviour where the original has a defect
(``SACConfig(compat="hil_serl")`` takes all but the last back, see ``serl_fast.agents.compat``):

* every critic has its own final layer (the original shares one between all members);
* the entropy bonus of the backup, when asked for, is discounted and masked with the rest of the target;
* each parameter is in exactly one optimizer, and a network that is not updated does not move;
* critics first, then the actor against the new critics (the original evaluates all losses at the old parameters);
* the temperature is trained on the actor's own sample at s (the original draws a second one at s');
* the actor's loss reaches the actor alone: the whole encoder is trained by the critics (the original lets it reach
  the proprioception branch too);
* a subset of critics is drawn without replacement;
* time-outs bootstrap: ``discounts`` is zero only where the episode terminated.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from serl_fast.agents import compat
from serl_fast.agents.parts import (
    Prepare,
    build_networks,
    checked,
    encode,
    encoder_of,
    image_preparation,
    log_probabilities,
    noise_source,
    target_updates,
)
from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import AdamConfig, Agent, Batch, Loss, Noise, Objective, Observations

__all__ = ["SACConfig", "actor_objective", "critic_objective", "critic_targets", "policy", "sac"]


def sac(
    state_dim: int,
    action_dim: int,
    image_keys: Sequence[str] = (),
    config: SACConfig | None = None,
    *,
    trunk: nn.Module | None = None,
) -> Agent:
    """Build a SAC agent.

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
    config = config or SACConfig()
    if trunk is not None:
        config = dataclasses.replace(config, encoder="custom")
    networks = build_networks(state_dim, action_dim, image_keys, config, trunk)
    actor_step: tuple[Objective, ...] = (actor_objective(config, action_dim),)
    if config.compat:
        actor_step = (compat.actor_objective(), compat.temperature_objective(config, action_dim))
    return Agent(
        networks=networks,
        critic_step=(critic_objective(config, every_action),),
        actor_step=actor_step,
        targets=target_updates(networks, config),
        draw_noise=noise_source(config, action_dim, networks),
        prepare=checked(preparation(image_keys, config, networks), action_dim),
        policy=policy,
        policy_networks=("encoder", "actor"),
        action_dim=action_dim,
        policy_noise_dim=action_dim,
        optimizers=optimizers(config),
        optimize="objectives" if config.compat else "networks",
        settings={
            "algorithm": "sac",
            "state_dim": state_dim,
            "action_dim": action_dim,
            "image_keys": list(image_keys),
            "config": dataclasses.asdict(config),
        },
    )


def optimizers(config: SACConfig) -> dict[str, AdamConfig]:
    """The same Adam for every network (or objective), without schedule or decay for the temperature."""
    names = ("encoder", "actor", "critic", "grasp_critic")
    return {**dict.fromkeys(names, config.adam()), "temperature": AdamConfig(config.learning_rate)}


def every_action(actions: Tensor) -> Tensor:
    """The continuous part of a fully continuous action: all of it."""
    return actions


def preparation(image_keys: Sequence[str], config: SACConfig, networks: nn.ModuleDict) -> Prepare:
    """The images' preparation and, where no update of critics changes it, the policy's sample at s'.

    Critics-only updates move the policy's sample a'(s') through the encoder alone. One without trained parameters (a
    state that is passed on as it is) leaves it constant over a block of updates, of which only the last has the
    actor's step: one pass over the rows of all of them. (Under ``compat`` momentum moves the policy in every update.)
    """
    images = image_preparation(image_keys, config)
    if config.compat or any(p.requires_grad for p in networks["encoder"].parameters()):
        return images

    def prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        batch = images(networks, batch, noise)
        actions, log_probs = next_sample(networks, batch, noise)
        return {**batch, "sampled_next_actions": actions, "sampled_next_log_probs": log_probs}

    return prepare


def next_sample(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
    """a' ~ pi(.|s') [B, A] and log pi(a'|s') [B], under dropout where there is any."""
    if "sampled_next_actions" in batch:
        return batch["sampled_next_actions"], batch["sampled_next_log_probs"]
    features = encode(networks, batch, "next_observations", noise.get("next_dropout"))
    actions, log_probs = networks["actor"](features).sample(noise["next_actions"])
    return actions, log_probs


def critic_targets(config: SACConfig) -> Callable[[nn.ModuleDict, Batch, Noise], Tensor]:
    """The critics' regression target, as a function of (networks, batch, noise), float [B], without gradient.

    y = r + discount * min_e Q_target_e(s', a'), a' ~ pi(.|s'), the minimum over all members or a drawn subset.
    With ``backup_entropy`` the minimum is lowered by temperature * log pi(a'|s'); under ``compat`` that bonus is
    subtracted after discounting, as in the original.

    Source: SAC, equation 5; REDQ (Chen et al. 2021) for the subset of members.
    """

    @torch.no_grad()
    def targets(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Tensor:
        actions, log_probs = next_sample(networks, batch, noise)
        target_features = encode(networks, batch, "next_observations", by="target_encoder")
        value = networks["target_critic"](target_features, actions, noise.get("critic_members")).amin(0)  # [B]
        bonus = -networks["temperature"]() * log_probs if config.backup_entropy else torch.zeros_like(value)
        if config.compat:
            return batch["rewards"] + batch["discounts"] * value + bonus
        return batch["rewards"] + batch["discounts"] * (value + bonus)

    return targets


def critic_objective(config: SACConfig, continuous: Callable[[Tensor], Tensor]) -> Objective:
    """The critics' temporal-difference error: mean over members and batch of (Q_e(s, a) - y)^2.

    Args:
        config: hyper-parameters.
        continuous: picks the continuous part of a stored action, [B, A] -> [B, A'].

    Source: SAC, equation 5; y is :func:`critic_targets`.
    """
    targets_of = critic_targets(config)

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        targets = targets_of(networks, batch, noise)
        features = encode(networks, batch, "observations")
        q = networks["critic"](features, continuous(batch["actions"]))  # [E, B]
        value = (q - targets).square().mean()
        metrics = {
            "loss": value.detach(),
            "predicted_qs": q.detach().mean(),
            "target_qs": targets.mean(),
            "rewards": batch["rewards"].mean(),
        }
        return Loss(value, metrics)

    return Objective("critic", loss, trains=("encoder", "critic"))


def actor_objective(
    config: SACConfig, continuous_dim: int, continuous: Callable[[Tensor], Tensor] = every_action
) -> Objective:
    """The policy's and the temperature's losses, from one sample a ~ pi(.|s).

    Policy: mean(temperature * log pi(a|s) - mean_e Q_e(s, a)), critics and temperature constant; with ``bc_weight``
    less bc_weight * mean log pi(a_data|s).
    Temperature: temperature * (H - target entropy), H = -mean log pi(a|s), policy constant.
    The two touch different parameters, so their sum has both gradients.

    Args:
        config: hyper-parameters.
        continuous_dim: width of the continuous action.
        continuous: picks it from a stored action, [B, A] -> [B, A'].

    Source: SAC, equations 7 and 18; the mean over members follows HIL-SERL.
    """
    target_entropy = -continuous_dim / 2 if config.target_entropy is None else config.target_entropy

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        observations = batch["observations"]
        with torch.no_grad():
            dropout = noise.get("dropout")
            if dropout is None:
                features = critic_features = networks["encoder"](observations)
            else:
                features, critic_features = encoder_of(networks).with_and_without_dropout(observations, dropout)
        distribution = networks["actor"](features)
        actions, log_probs = distribution.sample(noise["actions"])
        q = networks["critic"](critic_features, actions).mean(0)  # [B]
        temperature = networks["temperature"]()
        entropy = -log_probs.mean()
        policy_loss = (temperature.detach() * log_probs - q).mean()
        temperature_loss = temperature * (entropy.detach() - target_entropy)
        metrics = {
            "loss": policy_loss.detach(),
            "entropy": entropy.detach(),
            "temperature": temperature.detach(),
            "temperature_loss": temperature_loss.detach(),
        }
        if config.bc_weight:
            imitation = -log_probabilities(distribution, continuous(batch["actions"])).mean()
            policy_loss = policy_loss + config.bc_weight * imitation
            metrics |= {"loss": policy_loss.detach(), "bc_loss": imitation.detach()}
        return Loss(policy_loss + temperature_loss, metrics)

    return Objective("actor", loss, trains=("actor", "temperature"))


def policy(networks: nn.ModuleDict, observations: Observations, noise: Tensor | None) -> Tensor:
    """Actions [B, A] in (-1, 1): a sample for standard normal ``noise`` [B, A], the mode for None."""
    distribution = networks["actor"](networks["encoder"](observations))
    action: Tensor = distribution.mode if noise is None else distribution.sample(noise)[0]
    return action


def __getattr__(name: str) -> Any:
    # The import path that users know. These objects own an engine, which this package must not import, so they
    # live beside the commands and are fetched when asked for.
    if name in ("SACAgent", "SACHybridAgent"):
        return getattr(importlib.import_module("serl_fast.drop_in"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
