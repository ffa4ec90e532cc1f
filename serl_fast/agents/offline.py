"""What the offline algorithms share: settings, encoder, preparation, noise and the deterministic policy.

All of them encode observations as SAC does: the critics train the encoder, policies and value functions read its
features without a gradient, and target critics have a target encoder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from serl_fast.agents.parts import Prepare, checked, crop_noise, image_preparation
from serl_fast.agents.sac_config import check_shapes
from serl_fast.core import AdamConfig, Batch, Noise, TargetUpdate
from serl_fast.networks.critic import CriticEnsemble
from serl_fast.networks.encoder import Encoder, make_encoder
from serl_fast.networks.mlp import MLP, at_least_float32, linear

SATURATED = 0.99
"""Magnitude from which on an action counts as saturated in the metrics."""


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    """The settings that every offline algorithm has. Defaults are those of CORL's MuJoCo runs where they agree.

    Attributes:
        hidden_widths: hidden layers of policy, critics and value function.
        activation: of the hidden layers, a name of ``networks.mlp.activation``.
        actor_layer_norm: LayerNorm before each activation of the policy.
        critic_layer_norm: LayerNorm before each activation of critics and value function.
        critic_ensemble_size: E.
        target_update_rate: tau of the target averages.
        actor_learning_rate: Adam's, for the policy.
        critic_learning_rate: Adam's, for encoder, critics and value function.
        reward_scale: every reward is multiplied by it, before ``reward_bias`` is added.
        reward_bias: added to every reward.
        encoder: of the cameras, see ``networks.encoder.make_encoder``; "custom" where a module was given.
        pooling: see ``networks.encoder.make_encoder``; None for the encoder's own.
        image_size: (height, width) of the trunk's input, pixels.
        frames: stacked frames T per camera.
        proprioception_dim: width of the state's Dense -> LayerNorm -> tanh branch; None passes the state through.
        crop_padding: pixels of edge padding of the random crop; 0 for no crop.
    """

    hidden_widths: tuple[int, ...] = (256, 256)
    activation: str = "relu"
    actor_layer_norm: bool = False
    critic_layer_norm: bool = False
    critic_ensemble_size: int = 2
    target_update_rate: float = 0.005
    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    reward_scale: float = 1.0
    reward_bias: float = 0.0
    encoder: str = "resnet-pretrained"
    pooling: str | None = None
    image_size: tuple[int, int] = (128, 128)
    frames: int = 1
    proprioception_dim: int | None = None
    crop_padding: int = 4

    def __post_init__(self) -> None:
        check_shapes(self)
        if self.critic_ensemble_size < 1:
            raise ValueError(f"critic_ensemble_size is {self.critic_ensemble_size}; it must be at least 1")
        if not 0 < self.target_update_rate <= 1:
            raise ValueError(f"target_update_rate is {self.target_update_rate}; it must be in (0, 1]")
        check_positive(self, "actor_learning_rate", "critic_learning_rate", "reward_scale")
        if not math.isfinite(self.reward_bias):
            raise ValueError(f"reward_bias is {self.reward_bias}; it must be a finite number")

    def adam(self) -> dict[str, AdamConfig]:
        """Adam's settings by network."""
        critics = dict.fromkeys(("encoder", "critic"), AdamConfig(self.critic_learning_rate))
        return {**critics, "actor": AdamConfig(self.actor_learning_rate)}


def check_positive(config: Any, *names: str) -> None:
    """Check that settings are positive and finite.

    Raises:
        ValueError: names the first that is not.
    """
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be positive and finite")


def check_not_negative(config: Any, *names: str) -> None:
    """Check that settings are at least 0 and finite.

    Raises:
        ValueError: names the first that is not.
    """
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 0 and finite")


def build_encoder(
    state_dim: int, action_dim: int, image_keys: Sequence[str], config: OfflineConfig, trunk: nn.Module | None
) -> Encoder:
    """The encoder of the observations.

    Raises:
        ValueError: there is nothing to observe, or ``action_dim`` is not positive.
    """
    if action_dim < 1:
        raise ValueError(f"action_dim is {action_dim}; at least 1 is needed")
    return make_encoder(
        image_keys,
        state_dim,
        encoder=config.encoder if trunk is None else "custom",
        trunk=trunk,
        pooling=config.pooling,
        image_size=config.image_size,
        latent=config.proprioception_dim,
        frames=config.frames,
    )


def build_critic(encoder: Encoder, action_dim: int, config: OfflineConfig) -> CriticEnsemble:
    """E functions Q(s, a)."""
    return CriticEnsemble(
        encoder.feature_size,
        action_dim,
        config.hidden_widths,
        members=config.critic_ensemble_size,
        layer_norm=config.critic_layer_norm,
        activation=config.activation,
    )


class DeterministicPolicy(nn.Module):
    """Features -> tanh(Dense(MLP(features))), actions in (-1, 1).

    Args:
        features: width D of the encoded observation.
        action_dim: width A.
        config: hidden layers.
    """

    def __init__(self, features: int, action_dim: int, config: OfflineConfig) -> None:
        super().__init__()
        self.trunk = MLP(
            features, config.hidden_widths, layer_norm=config.actor_layer_norm, activation=config.activation
        )
        self.mean = linear(config.hidden_widths[-1], action_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, D] to [B, A]."""
        return torch.tanh(at_least_float32(self.mean(self.trunk(features))))


def averages(config: OfflineConfig, *names: str, with_actor: bool = False) -> tuple[TargetUpdate, ...]:
    """One target average for each of ``names``, in every update or in those of the actor."""
    return tuple(TargetUpdate(name, f"target_{name}", config.target_update_rate, with_actor) for name in names)


def preparation(
    image_keys: Sequence[str],
    config: OfflineConfig,
    action_dim: int,
    rows: Sequence[str] = (),
    actions: Sequence[str] = (),
) -> Prepare:
    """Check the batch, scale its rewards and prepare its images (``parts.image_preparation``).

    Args:
        image_keys: cameras.
        config: settings.
        action_dim: A.
        rows: further fields with one number per transition.
        actions: further fields with one action per transition.
    """
    images = image_preparation(image_keys, config)

    def prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        for name in actions:
            if name not in batch:
                raise ValueError(
                    f"the batch has no {name}, which this agent takes; it holds {', '.join(sorted(batch))}"
                )
            if batch[name].shape != batch["actions"].shape:
                shape, expected = tuple(batch[name].shape), tuple(batch["actions"].shape)
                raise ValueError(f"field {name!r} has shape {shape}; this agent takes {expected}")
        return images(networks, batch, noise)

    return checked(prepare, action_dim, ("rewards", "discounts", *rows))


def noise_source(
    image_keys: Sequence[str],
    config: OfflineConfig,
    normal: Mapping[str, tuple[int, ...]],
    uniform: Mapping[str, tuple[int, ...]] | None = None,
) -> Callable[[torch.Generator, int, torch.device], Noise]:
    """A function that draws all random numbers of one update, the offsets of crops included.

    Args:
        image_keys: cameras.
        config: settings.
        normal: shapes of one row's standard normal numbers, by name.
        uniform: shapes of one row's numbers from [0, 1), by name.
    """

    def draw(generator: torch.Generator, batch_size: int, device: torch.device) -> Noise:
        noise = {
            name: torch.randn(batch_size, *shape, generator=generator, device=device) for name, shape in normal.items()
        }
        for name, shape in (uniform or {}).items():
            noise[name] = torch.rand(batch_size, *shape, generator=generator, device=device)
        if image_keys:
            noise |= crop_noise(("crop", "next_crop"), config.crop_padding, generator, batch_size, device)
        return noise

    return draw


def temporal_difference(q: Tensor, targets: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The critics' mean squared error over members and batch, and what to log of it.

    Args:
        q: Q_e(s, a) [E, B] of the data.
        targets: [B], without gradient.
        batch: whose rewards are logged.
    """
    value = (q - targets).square().mean()
    metrics = {
        "loss": value.detach(),
        "q_data": q.detach().mean(),
        "q_target": targets.mean(),
        "rewards": batch["rewards"].mean(),
    }
    return value, metrics


@torch.no_grad()
def policy_metrics(actions: Tensor, batch: Batch) -> dict[str, Tensor]:
    """How far the policy's ``actions`` [B, A] are from the data's, mean square of a coordinate; how many saturate."""
    return {
        "bc_error": (actions - batch["actions"]).square().mean(),
        "saturated": (actions.abs() > SATURATED).float().mean(),
    }


def settings_of(
    algorithm: str, state_dim: int, action_dim: int, image_keys: Sequence[str], config: OfflineConfig, custom: bool
) -> dict[str, Any]:
    """``Agent.settings``; ``custom`` for a trunk of the user's."""
    values = dataclasses.asdict(config)
    return {
        "algorithm": algorithm,
        "state_dim": state_dim,
        "action_dim": action_dim,
        "image_keys": list(image_keys),
        "config": values | {"encoder": "custom"} if custom else values,
    }
