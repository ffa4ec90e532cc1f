"""Soft actor-critic (Haarnoja et al. 2018) with an ensemble of critics, as HIL-SERL uses it.

Differences from HIL-SERL's own SAC, each the textbook behaviour where the original has a defect:

* every critic has its own final layer (the original shares one between all members);
* the entropy bonus of the backup, when asked for, is discounted and masked with the rest of the target;
* each parameter is in exactly one optimizer, and a network that is not updated does not move;
* critics first, then the actor against the new critics (the original evaluates all losses at the old parameters);
* the temperature is trained on the actor's own sample at s (the original draws a second one at s');
* the actor's loss reaches the actor alone: the whole encoder is trained by the critics (the original lets it reach
  the proprioception branch too);
* time-outs bootstrap: ``discounts`` is zero only where the episode terminated.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from serl_fast.core import AdamConfig, Agent, Batch, Loss, Noise, Objective, Observations, TargetUpdate
from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks.critic import CriticEnsemble
from serl_fast.networks.encoder import Encoder, dropout_mask
from serl_fast.networks.policy import Policy, Temperature
from serl_fast.networks.resnet10 import ResNet10


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """Everything about SAC but the sizes of observations and actions. Defaults are HIL-SERL's launcher's.

    Attributes:
        hidden_widths: hidden layers of policy and critics.
        activation: "tanh" (HIL-SERL) or "relu" (RLPD).
        layer_norm: LayerNorm before each activation.
        critic_ensemble_size: E.
        critic_subsample_size: M members, drawn without replacement, whose minimum is the target (REDQ); None: all E.
        initial_temperature: SAC's alpha at the start.
        target_entropy: H; None means -(dimension of the continuous action) / 2.
        backup_entropy: subtract temperature * log pi from the target value.
        target_update_rate: tau of the target averages.
        learning_rate: Adam's, for every network.
        proprioception_dim: width of the state's Dense -> LayerNorm -> tanh branch; None passes the state through.
        encoder_dropout: dropout on the camera embeddings, on the policy path only, in [0, 1).
        crop_padding: pixels of edge padding of the random crop.
    """

    hidden_widths: tuple[int, ...] = (256, 256)
    activation: str = "tanh"
    layer_norm: bool = True
    critic_ensemble_size: int = 2
    critic_subsample_size: int | None = None
    initial_temperature: float = 0.01
    target_entropy: float | None = None
    backup_entropy: bool = False
    target_update_rate: float = 0.005
    learning_rate: float = 3e-4
    proprioception_dim: int | None = 64
    encoder_dropout: float = 0.1
    crop_padding: int = 4

    def __post_init__(self) -> None:
        kept = self.critic_subsample_size
        if kept is not None and not 1 <= kept <= self.critic_ensemble_size:
            raise ValueError(f"critic_subsample_size is {kept}; it must be in 1..{self.critic_ensemble_size}")
        if not 0 < self.target_update_rate <= 1:
            raise ValueError(f"target_update_rate is {self.target_update_rate}; it must be in (0, 1]")
        if not 0 <= self.encoder_dropout < 1:
            raise ValueError(f"encoder_dropout is {self.encoder_dropout}; it must be in [0, 1)")


def sac(
    state_dim: int,
    action_dim: int,
    image_keys: Sequence[str] = (),
    config: SACConfig | None = None,
) -> Agent:
    """Build a SAC agent.

    Args:
        state_dim: P, width of ``observations["state"]``; 0 when there is none.
        action_dim: A, every dimension continuous in [-1, 1].
        image_keys: cameras, in the order in which their features are concatenated.
        config: hyper-parameters.

    Returns:
        The agent; weights come from torch's global generator.

    Raises:
        ValueError: there is nothing to observe, or ``action_dim`` is not positive.
    """
    config = config or SACConfig()
    networks = build_networks(state_dim, action_dim, image_keys, config)
    return Agent(
        networks=networks,
        critic_step=(critic_objective(config, every_action),),
        actor_step=(actor_objective(config, action_dim),),
        targets=target_updates(networks, config),
        draw_noise=noise_source(config, action_dim, networks),
        prepare=image_preparation(image_keys, config.crop_padding),
        policy=policy,
        policy_networks=("encoder", "actor"),
        action_dim=action_dim,
        policy_noise_dim=action_dim,
        optimizer=AdamConfig(config.learning_rate),
        settings={
            "algorithm": "sac",
            "state_dim": state_dim,
            "action_dim": action_dim,
            "image_keys": list(image_keys),
            "config": dataclasses.asdict(config),
        },
    )


def build_networks(state_dim: int, continuous_dim: int, image_keys: Sequence[str], config: SACConfig) -> nn.ModuleDict:
    """The encoder, policy, critics and temperature, with the target copies of encoder and critics."""
    if continuous_dim < 1:
        raise ValueError(f"the continuous action has {continuous_dim} dimensions; at least 1 is needed")
    trunk = ResNet10() if image_keys else None
    encoder = Encoder(image_keys, state_dim, latent=config.proprioception_dim, trunk=trunk)
    # The target copy only ever sees trunk features, so the frozen trunk exists once.
    target_encoder = Encoder(image_keys, state_dim, latent=config.proprioception_dim)
    features = encoder.feature_size

    def critic() -> CriticEnsemble:
        return CriticEnsemble(
            features,
            continuous_dim,
            config.hidden_widths,
            members=config.critic_ensemble_size,
            layer_norm=config.layer_norm,
            activation=config.activation,
        )

    actor = Policy(
        features,
        continuous_dim,
        config.hidden_widths,
        layer_norm=config.layer_norm,
        activation=config.activation,
    )
    networks = nn.ModuleDict(
        {
            "encoder": encoder,
            "actor": actor,
            "critic": critic(),
            "temperature": Temperature(config.initial_temperature),
            "target_encoder": target_encoder,
            "target_critic": critic(),
        }
    )
    for name in ("encoder", "critic"):
        copy_to_target(networks, name)
    return networks


def copy_to_target(networks: nn.ModuleDict, name: str) -> None:
    """Start ``target_<name>`` at the values of ``name``; no gradient ever reaches it."""
    source, target = networks[name].state_dict(), networks[f"target_{name}"]
    target.load_state_dict({key: source[key] for key in target.state_dict()})
    target.requires_grad_(False)


def normalize_states(networks: nn.ModuleDict, states: Tensor) -> None:
    """Scale every coordinate of the state by the statistics of ``states``, float [N, P], in encoder and target."""
    for name in ("encoder", "target_encoder"):
        normalizer = encoder_of(networks, name).normalizer
        if normalizer is None:
            raise ValueError("this agent observes no state; there is nothing to normalise")
        normalizer.set_statistics(states)


def encoder_of(networks: nn.ModuleDict, name: str = "encoder") -> Encoder:
    """An encoder of ``networks``, with its type."""
    encoder = networks[name]
    assert isinstance(encoder, Encoder)
    return encoder


def target_updates(networks: nn.ModuleDict, config: SACConfig) -> tuple[TargetUpdate, ...]:
    """One average for each network that has a target copy."""
    return tuple(
        TargetUpdate(name, f"target_{name}", config.target_update_rate)
        for name in networks
        if f"target_{name}" in networks
    )


def every_action(actions: Tensor) -> Tensor:
    """The continuous part of a fully continuous action: all of it."""
    return actions


def critic_objective(config: SACConfig, continuous: Callable[[Tensor], Tensor]) -> Objective:
    """The critics' temporal-difference error.

    y = r + discount * min_e Q_target_e(s', a'), a' ~ pi(.|s'); with ``backup_entropy`` the minimum is lowered by
    temperature * log pi(a'|s'). Loss = mean over members and batch of (Q_e(s, a) - y)^2.

    Args:
        config: hyper-parameters.
        continuous: picks the continuous part of a stored action, [B, A] -> [B, A'].

    Source: SAC, equation 5; REDQ (Chen et al. 2021) for the subset of members.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            next_observations = batch["next_observations"]
            next_features = networks["encoder"](next_observations, noise.get("next_dropout"))
            next_actions, log_probs = networks["actor"](next_features).sample(noise["next_actions"])
            target_features = networks["target_encoder"](next_observations)
            target_q = networks["target_critic"](target_features, next_actions, noise.get("critic_members")).amin(0)
            if config.backup_entropy:
                target_q = target_q - networks["temperature"]() * log_probs
            targets = batch["rewards"] + batch["discounts"] * target_q  # [B]
        features = networks["encoder"](batch["observations"])
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


def actor_objective(config: SACConfig, continuous_dim: int) -> Objective:
    """The policy's and the temperature's losses, from one sample a ~ pi(.|s).

    Policy: mean(temperature * log pi(a|s) - mean_e Q_e(s, a)), critics and temperature constant.
    Temperature: temperature * (H - target entropy), H = -mean log pi(a|s), policy constant.
    The two touch different parameters, so their sum has both gradients.

    Source: SAC, equations 7 and 18; the mean over members follows HIL-SERL.
    """
    target_entropy = -continuous_dim / 2 if config.target_entropy is None else config.target_entropy

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        observations = batch["observations"]
        features = networks["encoder"](observations, noise.get("dropout")).detach()
        actions, log_probs = networks["actor"](features).sample(noise["actions"])
        critic_features = features if "dropout" not in noise else networks["encoder"](observations).detach()
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
        return Loss(policy_loss + temperature_loss, metrics)

    return Objective("actor", loss, trains=("actor", "temperature"))


def noise_source(
    config: SACConfig, continuous_dim: int, networks: nn.ModuleDict
) -> Callable[[torch.Generator, int, torch.device], Noise]:
    """A function that draws all random numbers of one update."""
    encoder = encoder_of(networks)
    choices = 2 * config.crop_padding + 1

    def draw(generator: torch.Generator, batch_size: int, device: torch.device) -> Noise:
        def normal() -> Tensor:
            return torch.randn(batch_size, continuous_dim, generator=generator, device=device)

        noise = {"actions": normal(), "next_actions": normal()}
        if config.critic_subsample_size is not None:
            order = torch.randperm(config.critic_ensemble_size, generator=generator, device=device)
            noise["critic_members"] = order[: config.critic_subsample_size]
        if encoder.image_keys:
            for name in ("crop", "next_crop"):
                noise[name] = torch.randint(choices, (batch_size, 2), generator=generator, device=device)
            if config.encoder_dropout > 0:
                for name in ("dropout", "next_dropout"):
                    uniform = torch.rand(batch_size, *encoder.dropout_shape, generator=generator, device=device)
                    noise[name] = dropout_mask(uniform, config.encoder_dropout)
        return noise

    return draw


def image_preparation(image_keys: Sequence[str], padding: int) -> Callable[[nn.ModuleDict, Batch, Noise], Batch]:
    """Crop every camera at random and run the frozen trunk once over observations and next observations.

    All cameras of one sample share their offsets; observations and next observations have their own.
    """

    def prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        if not image_keys:
            return batch
        current, following = dict(batch["observations"]), dict(batch["next_observations"])
        for key in image_keys:
            current[key] = random_crop(current[key], noise["crop"], padding)
            following[key] = random_crop(following[key], noise["next_crop"], padding)
        joint = {key: torch.cat([current[key], following[key]]) for key in image_keys}
        joint = encoder_of(networks).encode_trunk(joint)
        size = batch["actions"].shape[0]
        for key in image_keys:
            current[key], following[key] = joint[key][:size], joint[key][size:]
        return {**batch, "observations": current, "next_observations": following}

    return prepare


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
