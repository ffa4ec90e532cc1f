"""The settings of SAC, and the published configurations of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

from serl_fast.core import AdamConfig, Compat
from serl_fast.networks.mlp import known_activation
from serl_fast.networks.policy import StdParameterization

UNSIZED_ENCODERS = ("small", "impala_small")
"""Encoders whose trunk takes images as they come; the others resize them to ``image_size``."""


def check_shapes(config: Any) -> None:
    """Check the settings of hidden layers and cameras, which every agent that acts has.

    Raises:
        ValueError: names the setting, its value and what is accepted.
    """
    if not config.hidden_widths or min(config.hidden_widths) < 1:
        raise ValueError(f"hidden_widths is {config.hidden_widths}; at least one layer, of at least 1, is needed")
    known_activation(config.activation)
    for name in ("frames", "proprioception_dim"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if min(config.image_size) < 1:
        raise ValueError(f"image_size is {config.image_size}; both must be at least 1 pixel")
    if config.crop_padding < 0:
        raise ValueError(f"crop_padding is {config.crop_padding}; it must be at least 0")


def check_networks(config: Any) -> None:
    """Check the settings that SAC's and BC's networks share.

    Raises:
        ValueError: names the setting, its value and what is accepted.
    """
    check_shapes(config)
    if not 0 < config.std_min <= config.std_max < math.inf:
        raise ValueError(f"std_min {config.std_min} and std_max {config.std_max}: 0 < std_min <= std_max is needed")
    if config.fixed_std is not None and not all(0 < std < math.inf for std in config.fixed_std):
        raise ValueError(f"fixed_std is {config.fixed_std}; standard deviations are positive and finite")
    if not 0 <= config.encoder_dropout < 1:
        raise ValueError(f"encoder_dropout is {config.encoder_dropout}; it must be in [0, 1)")
    if config.compat is not None and config.compat not in get_args(Compat):
        raise ValueError(f"compat is {config.compat!r}; choose 'hil_serl' or None")
    config.adam()  # its own checks


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """Everything about SAC but the sizes of observations and actions. Defaults are HIL-SERL's launcher's.

    Attributes:
        hidden_widths: hidden layers of policy and critics.
        activation: "tanh" (HIL-SERL), "relu" (RLPD), or another of ``networks.mlp.activation``.
        layer_norm: LayerNorm before each activation.
        critic_ensemble_size: E.
        critic_subsample_size: M members, drawn without replacement, whose minimum is the target (REDQ); None: all E.
        initial_temperature: SAC's alpha at the start.
        target_entropy: H; None means -(dimension of the continuous action) / 2.
        backup_entropy: subtract temperature * log pi from the target value.
        reward_scale: every reward is multiplied by it, before ``reward_bias`` is added.
        bc_weight: of -log pi of the batch's actions in the policy's loss, for training without an environment; 0: none.
        reward_bias: added to every reward.
        target_update_rate: tau of the target averages.
        learning_rate: Adam's, for every network.
        warmup_steps: Adam's, for every network but the temperature (see ``core.AdamConfig``), like the next three.
        cosine_decay_steps: see ``core.AdamConfig``.
        weight_decay: see ``core.AdamConfig``.
        clip_gradient_norm: see ``core.AdamConfig``.
        std_parameterization: "exp", "softplus", "uniform" (one learned vector) or "fixed" (``fixed_std``).
        std_min: smallest standard deviation of the policy before tanh.
        std_max: largest standard deviation of the policy before tanh.
        fixed_std: the standard deviations of "fixed".
        encoder: of the cameras, see ``networks.encoder.make_encoder``; "custom" where a module was given.
        pooling: of the trunk's feature maps, see ``networks.camera_head``; None: the encoder's own.
        image_size: (height, width) of the trunk's input, pixels.
        frames: stacked frames T per camera.
        proprioception_dim: width of the state's Dense -> LayerNorm -> tanh branch; None passes the state through.
        encoder_dropout: dropout on the camera embeddings, on the policy path only, in [0, 1).
        crop_padding: pixels of edge padding of the random crop; 0 for no crop.
        compat: "hil_serl" reproduces the original's update exactly (``agents.compat``); None is the textbook's.
    """

    hidden_widths: tuple[int, ...] = (256, 256)
    activation: str = "tanh"
    layer_norm: bool = True
    critic_ensemble_size: int = 2
    critic_subsample_size: int | None = None
    initial_temperature: float = 0.01
    target_entropy: float | None = None
    backup_entropy: bool = False
    bc_weight: float = 0.0
    reward_scale: float = 1.0
    reward_bias: float = 0.0
    target_update_rate: float = 0.005
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    cosine_decay_steps: int | None = None
    weight_decay: float = 0.0
    clip_gradient_norm: float | None = None
    std_parameterization: StdParameterization = "exp"
    std_min: float = 1e-5
    std_max: float = 5.0
    fixed_std: tuple[float, ...] | None = None
    encoder: str = "resnet-pretrained"
    pooling: str | None = None
    image_size: tuple[int, int] = (128, 128)
    frames: int = 1
    proprioception_dim: int | None = 64
    encoder_dropout: float = 0.1
    crop_padding: int = 4
    compat: Compat | None = None

    def __post_init__(self) -> None:
        check_networks(self)
        if self.critic_ensemble_size < 1:
            raise ValueError(f"critic_ensemble_size is {self.critic_ensemble_size}; it must be at least 1")
        kept = self.critic_subsample_size
        if kept is not None and not 1 <= kept <= self.critic_ensemble_size:
            raise ValueError(f"critic_subsample_size is {kept}; it must be in 1..{self.critic_ensemble_size}")
        if not 0 < self.target_update_rate <= 1:
            raise ValueError(f"target_update_rate is {self.target_update_rate}; it must be in (0, 1]")
        for name in ("target_entropy", "reward_bias", "reward_scale"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; it must be a finite number")
        if not 0 <= self.bc_weight < math.inf:
            raise ValueError(f"bc_weight is {self.bc_weight}; it must be at least 0 and finite")
        if self.compat and self.bc_weight:
            raise ValueError("bc_weight with compat='hil_serl': the original has no such term; leave one out")
        if self.compat and self.weight_decay:
            raise ValueError(
                "weight_decay with compat='hil_serl': the original would decay every parameter once for each of its "
                "optimizers, which is not reproduced; leave one of the two out"
            )

    def adam(self) -> AdamConfig:
        """Adam for everything but the temperature."""
        return AdamConfig(
            self.learning_rate,
            self.warmup_steps,
            self.cosine_decay_steps,
            self.weight_decay,
            self.clip_gradient_norm,
        )

    @classmethod
    def redq(cls, **changes: Any) -> SACConfig:
        """REDQ (Chen et al. 2021): ten critics, the minimum of two; run it with 20 critic steps per actor step."""
        redq: dict[str, Any] = {
            "activation": "relu",
            "layer_norm": False,
            "critic_ensemble_size": 10,
            "critic_subsample_size": 2,
            "backup_entropy": True,
            "initial_temperature": 1.0,
            "std_min": math.exp(-20),
            "std_max": math.exp(2),
            "proprioception_dim": None,
        }
        return cls(**(redq | changes))

    @classmethod
    def rlpd(cls, **changes: Any) -> SACConfig:
        """RLPD (Ball et al. 2023): REDQ with LayerNorm; half of every batch from demonstrations."""
        return cls.redq(**({"layer_norm": True} | changes))

    @classmethod
    def serl(cls, **changes: Any) -> SACConfig:
        """SERL's SAC from states (``make_sac_agent``): ten critics, the minimum of two."""
        serl: dict[str, Any] = {
            "critic_ensemble_size": 10,
            "critic_subsample_size": 2,
            "warmup_steps": 2000,
            "proprioception_dim": None,
        }
        return cls(**(serl | changes))

    @classmethod
    def drq(cls, **changes: Any) -> SACConfig:
        """SERL's DrQ (``make_drq_agent``): ten critics, the minimum of two, a small trained CNN for each camera."""
        drq: dict[str, Any] = {
            "critic_ensemble_size": 10,
            "critic_subsample_size": 2,
            "encoder": "small",
            "encoder_dropout": 0.0,
        }
        return cls(**(drq | changes))


def from_dict(config: type[Any], values: dict[str, Any]) -> Any:
    """A config dataclass from plain values, whose tuples may have become lists in a file."""
    return config(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
