"""What agents are built from: networks with their targets, noise, image preparation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import Batch, Loss, Noise, Objective, TargetUpdate
from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks.critic import CriticEnsemble
from serl_fast.networks.dropout import draw_dropout_mask
from serl_fast.networks.encoder import Encoder, make_encoder
from serl_fast.networks.policy import ActionDistribution, Policy, Temperature

SQUASH_LIMIT = 1 - 1e-6
"""Largest magnitude of a demonstrated action under a squashed policy, 0.99999899 in float32: tanh does not reach 1."""

Prepare = Callable[[nn.ModuleDict, Batch, Noise], Batch]


def build_networks(
    state_dim: int,
    continuous_dim: int,
    image_keys: Sequence[str],
    config: SACConfig,
    trunk: nn.Module | None = None,
) -> nn.ModuleDict:
    """The encoder, policy, critics and temperature, with the target copies of encoder and critics.

    Under ``compat`` the policy and the temperature have target copies too: nothing reads them, but the original
    averages and stores its whole tree.
    """
    if continuous_dim < 1:
        raise ValueError(f"the continuous action has {continuous_dim} dimensions; at least 1 is needed")
    encoder = make_encoder(
        image_keys,
        state_dim,
        encoder=config.encoder,
        trunk=trunk,
        pooling=config.pooling,
        image_size=config.image_size,
        latent=config.proprioception_dim,
        frames=config.frames,
    )
    shared: dict[str, Any] = {"layer_norm": config.layer_norm, "activation": config.activation}
    networks = nn.ModuleDict(
        {
            "encoder": encoder,
            "actor": Policy(
                encoder.feature_size,
                continuous_dim,
                config.hidden_widths,
                std_parameterization=config.std_parameterization,
                std_min=config.std_min,
                std_max=config.std_max,
                fixed_std=config.fixed_std,
                **shared,
            ),
            "critic": CriticEnsemble(
                encoder.feature_size,
                continuous_dim,
                config.hidden_widths,
                members=config.critic_ensemble_size,
                shared_head=config.compat == "hil_serl",
                **shared,
            ),
            "temperature": Temperature(config.initial_temperature),
            "target_encoder": encoder.target_copy(),
        }
    )
    for name in ("critic", "actor", "temperature") if config.compat else ("critic",):
        add_target(networks, name)
    return networks


def add_target(networks: nn.ModuleDict, name: str) -> None:
    """Add ``target_<name>``, a copy of ``name`` that no gradient ever reaches."""
    networks[f"target_{name}"] = copy.deepcopy(networks[name]).requires_grad_(False)


def target_updates(networks: nn.ModuleDict, config: SACConfig) -> tuple[TargetUpdate, ...]:
    """One average for each network that has a target copy."""
    return tuple(
        TargetUpdate(name, f"target_{name}", config.target_update_rate)
        for name in networks
        if f"target_{name}" in networks
    )


def encoder_of(networks: nn.ModuleDict, name: str = "encoder") -> Encoder:
    """An encoder of ``networks``, with its type."""
    encoder = networks[name]
    assert isinstance(encoder, Encoder)
    return encoder


def normalize_states(networks: nn.ModuleDict, states: Tensor) -> None:
    """Scale every coordinate of the state by the statistics of ``states``, float [N, P], in every encoder."""
    for name in ("encoder", "target_encoder"):
        if name in networks:
            normalizer = encoder_of(networks, name).normalizer
            if normalizer is None:
                raise ValueError("this agent observes no state; there is nothing to normalise")
            normalizer.set_statistics(states)


def noise_source(
    config: SACConfig, continuous_dim: int, networks: nn.ModuleDict
) -> Callable[[torch.Generator, int, torch.device], Noise]:
    """A function that draws all random numbers of one update."""
    encoder = encoder_of(networks)

    def draw(generator: torch.Generator, batch_size: int, device: torch.device) -> Noise:
        passes = {"actions": "dropout", "next_actions": "next_dropout"}
        if config.compat:
            passes["temperature_actions"] = "temperature_dropout"
        noise = {name: torch.randn(batch_size, continuous_dim, generator=generator, device=device) for name in passes}
        if config.critic_subsample_size is not None:
            noise["critic_members"] = critic_subset(config, generator, device)
        if encoder.image_keys:
            noise |= crop_noise(("crop", "next_crop"), config.crop_padding, generator, batch_size, device)
            if config.encoder_dropout > 0:
                for name in passes.values():
                    shape = (batch_size, *encoder.dropout_shape)
                    noise[name] = draw_dropout_mask(shape, config.encoder_dropout, generator, device)
        return noise

    return draw


def critic_subset(config: SACConfig, generator: torch.Generator, device: torch.device) -> Tensor:
    """M of E members, int64 [M]: without replacement (REDQ), or with it under ``compat`` (HIL-SERL)."""
    assert config.critic_subsample_size is not None
    size, count = config.critic_ensemble_size, config.critic_subsample_size
    if config.compat:
        return torch.randint(size, (count,), generator=generator, device=device)
    # Not randperm, which on CUDA is a chain of kernels beside which the update's own look short.
    return torch.rand(size, generator=generator, device=device).argsort()[:count]


def crop_noise(
    names: Sequence[str], padding: int, generator: torch.Generator, batch_size: int, device: torch.device
) -> Noise:
    """Offsets of random crops by name, int64 [B, 2] each; none for padding 0."""
    if not padding:
        return {}
    shape = (batch_size, 2)
    return {name: torch.randint(2 * padding + 1, shape, generator=generator, device=device) for name in names}


class Preparing(Protocol):
    """The settings that :func:`image_preparation` reads."""

    @property
    def reward_scale(self) -> float:
        """Every reward is multiplied by it."""

    @property
    def reward_bias(self) -> float:
        """Then added to every reward."""

    @property
    def crop_padding(self) -> int:
        """Pixels of edge padding of the random crop; 0 for no crop."""


def image_preparation(image_keys: Sequence[str], config: Preparing) -> Prepare:
    """Scale and shift the rewards, crop every camera at random, and run a frozen trunk once over both observations.

    All cameras of one sample share their offsets; observations and next observations have their own.
    """

    def prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        if config.reward_scale != 1 or config.reward_bias:
            batch = {**batch, "rewards": batch["rewards"] * config.reward_scale + config.reward_bias}
        if all(batch["observations"][key].dtype != torch.uint8 for key in image_keys):  # no cameras, or their features
            return batch
        current, following = dict(batch["observations"]), dict(batch["next_observations"])
        encoder, padding = encoder_of(networks), config.crop_padding
        if encoder.frozen_trunk and padding:
            offsets = (noise["crop"], noise["next_crop"])
            current, following = encoder.encode_crops((current, following), offsets, padding)
        elif encoder.frozen_trunk:
            joint = encoder.encode_trunk({key: torch.cat([current[key], following[key]]) for key in image_keys})
            size = batch["actions"].shape[0]
            for key in image_keys:
                current[key], following[key] = joint[key][:size], joint[key][size:]
        elif padding:
            for key in image_keys:
                current[key] = random_crop(current[key], noise["crop"], padding)
                following[key] = random_crop(following[key], noise["next_crop"], padding)
        return {**batch, "observations": current, "next_observations": following}

    return prepare


def encode(
    networks: nn.ModuleDict, batch: Batch, which: str, dropout: Tensor | None = None, *, by: str = "encoder"
) -> Tensor:
    """``networks[by](batch[which], dropout)``, float [B, D], or what :func:`with_encodings` found it to be."""
    name = (by, which, dropout is not None)
    if name in batch.get("encodings", {}):
        features: Tensor = batch["encodings"][name]
        return features
    features = networks[by](batch[which]) if dropout is None else networks[by](batch[which], dropout)
    return features


def with_encodings(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
    """The batch with every encoding that the losses of critics and grasp critic read, each evaluated once.

    They hold for the present parameters; those of the observations carry the gradient into the encoder. Compilers
    leave equal matrix products as they are.
    """
    following, dropout = batch["next_observations"], noise.get("next_dropout")
    encodings = {("encoder", "observations", False): networks["encoder"](batch["observations"])}
    with torch.no_grad():
        if dropout is None:
            encodings["encoder", "next_observations", False] = networks["encoder"](following)
        else:
            dropped, plain = encoder_of(networks).with_and_without_dropout(following, dropout)
            encodings["encoder", "next_observations", False] = plain
            encodings["encoder", "next_observations", True] = dropped
        encodings["target_encoder", "next_observations", False] = networks["target_encoder"](following)
    return {**batch, "encodings": encodings}


def together(name: str, parts: tuple[Objective, ...]) -> Objective:
    """Objectives of one step as one: the sum of their losses, behind encodings evaluated once, forward and backward.

    Equal to taking their gradients apart and adding them up, since none of them reaches a network that only another
    one trains.

    Args:
        name: of the sum, which messages about a loss that is not finite say.
        parts: at least two, which read encodings by :func:`encode`.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        shared = with_encodings(networks, batch, noise)
        losses = [part.loss(networks, shared, noise) for part in parts]
        metrics = {
            part.metric(key): metric
            for part, each in zip(parts, losses, strict=True)
            for key, metric in each.metrics.items()
        }
        return Loss(torch.stack([each.value for each in losses]).sum(), metrics)

    trains = tuple(dict.fromkeys(network for part in parts for network in part.trains))
    return Objective(name, loss, trains, parts)


def log_probabilities(distribution: ActionDistribution, actions: Tensor) -> Tensor:
    """log pi(a|s) of demonstrated actions, float [B]; for a squashed policy they are clipped to ±(1 - 1e-6) first."""
    if distribution.squash:
        actions = actions.clamp(-SQUASH_LIMIT, SQUASH_LIMIT)
    return distribution.log_prob(actions)


def checked(prepare: Prepare, action_dim: int, rows: Sequence[str] = ("rewards", "discounts")) -> Prepare:
    """Refuse batches that would broadcast into something else, or fail deep inside a network, before ``prepare``.

    It costs nothing when compiled.

    Args:
        prepare: an agent's preparation.
        action_dim: width of the full action.
        rows: fields with one number per transition.

    Raises (when the result is called):
        ValueError: names the field, its shape and the one that is needed.
    """

    def check_and_prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        missing = [name for name in ("actions", *rows) if name not in batch]
        if missing:
            raise ValueError(f"the batch has no {', '.join(missing)}; it holds {', '.join(sorted(batch))}")
        size = batch["actions"].shape[0]
        for name, shape in {"actions": (size, action_dim), **dict.fromkeys(rows, (size,))}.items():
            if tuple(batch[name].shape) != shape:
                raise ValueError(f"field {name!r} has shape {tuple(batch[name].shape)}; this agent takes {shape}")
        return prepare(networks, batch, noise)

    return check_and_prepare
