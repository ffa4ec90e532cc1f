"""Behaviour cloning: maximum likelihood of the demonstrated actions under a diagonal Gaussian policy.

Differences from HIL-SERL's BC:

* the camera heads are trained; the original stops the gradient in front of them, so that they stay at their random
  start (``BCConfig(compat="hil_serl")`` does the same);
* there may be no camera at all.

SERL's own settings are ``BCConfig.serl()``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from serl_fast.agents.parts import crop_noise, encoder_of
from serl_fast.agents.parts import log_probabilities as log_probabilities
from serl_fast.agents.sac import policy
from serl_fast.agents.sac_config import check_networks
from serl_fast.core import AdamConfig, Agent, Batch, Compat, Loss, Noise, Objective, Observations
from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks.dropout import draw_dropout_mask
from serl_fast.networks.encoder import Encoder, make_encoder
from serl_fast.networks.policy import ActionDistribution, Policy, StdParameterization


@dataclasses.dataclass(frozen=True)
class BCConfig:
    """Everything about BC but the sizes of observations and actions. Defaults are HIL-SERL's launcher's.

    Attributes:
        hidden_widths: hidden layers of the policy.
        activation: a name of ``networks.mlp.activation``.
        layer_norm: LayerNorm before each activation.
        dropout: rate in the hidden layers, between a layer and its LayerNorm, in [0, 1).
        squash: a = tanh(u) instead of a = u, u Gaussian; demonstrated actions are then clipped to ±(1 - 1e-6).
        std_parameterization: "exp", "softplus", "uniform" (one learned vector) or "fixed" (``fixed_std``).
        std_min: smallest standard deviation.
        std_max: largest standard deviation.
        fixed_std: the standard deviations of "fixed".
        learning_rate: Adam's.
        warmup_steps: see ``core.AdamConfig``, like the next three.
        cosine_decay_steps: see ``core.AdamConfig``.
        weight_decay: see ``core.AdamConfig``.
        clip_gradient_norm: see ``core.AdamConfig``.
        encoder: of the cameras, see ``networks.encoder.make_encoder``; "custom" where a module was given.
        pooling: see ``networks.encoder.make_encoder``; None for the encoder's own.
        image_size: (height, width) of the trunk's input, pixels.
        frames: stacked frames T per camera.
        proprioception_dim: width of the state's Dense -> LayerNorm -> tanh branch; None passes the state through.
        encoder_dropout: dropout on the camera embeddings, in [0, 1).
        crop_padding: pixels of edge padding of the random crop; 0 for no crop.
        compat: "hil_serl": no gradient reaches the camera heads, as in the original; None: they learn.
    """

    hidden_widths: tuple[int, ...] = (512, 512, 512)
    activation: str = "tanh"
    layer_norm: bool = True
    dropout: float = 0.25
    squash: bool = False
    std_parameterization: StdParameterization = "exp"
    std_min: float = 1e-5
    std_max: float = 5.0
    fixed_std: tuple[float, ...] | None = None
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    cosine_decay_steps: int | None = None
    weight_decay: float = 0.0
    clip_gradient_norm: float | None = None
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
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")

    def adam(self) -> AdamConfig:
        """Adam for everything."""
        return AdamConfig(
            self.learning_rate,
            self.warmup_steps,
            self.cosine_decay_steps,
            self.weight_decay,
            self.clip_gradient_norm,
        )

    @classmethod
    def serl(cls, **changes: Any) -> BCConfig:
        """SERL's ``make_bc_agent``: two layers of 256, no LayerNorm, dropout or crop, a small CNN for each camera."""
        serl: dict[str, Any] = {
            "hidden_widths": (256, 256),
            "layer_norm": False,
            "dropout": 0.0,
            "encoder": "small",
            "encoder_dropout": 0.0,
            "crop_padding": 0,
        }
        return cls(**(serl | changes))


def bc(
    state_dim: int,
    action_dim: int,
    image_keys: Sequence[str] = (),
    config: BCConfig | None = None,
    *,
    trunk: nn.Module | None = None,
) -> Agent:
    """Build a behaviour-cloning agent. Its batches hold ``observations`` and ``actions`` float32 [B, A].

    Args:
        state_dim: P, width of ``observations["state"]``; 0 when there is none.
        action_dim: A, every dimension continuous.
        image_keys: cameras, in the order in which their features are concatenated.
        config: hyper-parameters.
        trunk: an image trunk of your own in place of ``config.encoder``.

    Returns:
        The agent; weights come from torch's global generator.

    Raises:
        ValueError: there is nothing to observe, or ``action_dim`` is not positive.
    """
    config = config or BCConfig()
    if trunk is not None:
        config = dataclasses.replace(config, encoder="custom")
    if action_dim < 1:
        raise ValueError(f"action_dim is {action_dim}; at least 1 is needed")
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
    actor = Policy(
        encoder.feature_size,
        action_dim,
        config.hidden_widths,
        std_parameterization=config.std_parameterization,
        std_min=config.std_min,
        std_max=config.std_max,
        fixed_std=config.fixed_std,
        squash=config.squash,
        layer_norm=config.layer_norm,
        activation=config.activation,
    )
    return Agent(
        networks=nn.ModuleDict({"encoder": encoder, "actor": actor}),
        critic_step=(objective(config),),
        draw_noise=noise_source(config, encoder),
        prepare=image_preparation(config, image_keys),
        policy=policy,
        policy_networks=("encoder", "actor"),
        action_dim=action_dim,
        policy_noise_dim=action_dim,
        # One Adam over encoder and policy, so that a limit of the gradient's norm is one for both, as in the original.
        optimizers={"bc": config.adam()},
        optimize="objectives",
        settings={
            "algorithm": "bc",
            "state_dim": state_dim,
            "action_dim": action_dim,
            "image_keys": list(image_keys),
            "config": dataclasses.asdict(config),
        },
    )


def distribution(
    config: BCConfig, networks: nn.ModuleDict, observations: Observations, noise: Noise
) -> ActionDistribution:
    """The policy's distribution in training, with the dropout of ``noise``; without dropout for empty ``noise``."""
    detach = config.compat == "hil_serl"
    features = networks["encoder"](observations, noise.get("dropout"), detach_images=detach)
    hidden = [noise[name] for name in hidden_dropout_names(config.hidden_widths) if name in noise]
    result: ActionDistribution = networks["actor"](features, hidden or None)
    return result


def objective(config: BCConfig) -> Objective:
    """-mean log pi(a|s), a the demonstrated action. Logged beside it: ``mse``, mean of |mode - a|^2.

    Source: ``serl_launcher/agents/continuous/bc.py`` of HIL-SERL.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        policy_now = distribution(config, networks, batch["observations"], noise)
        actions = batch["actions"]
        value = -log_probabilities(policy_now, actions).mean()
        mse = (policy_now.mode - actions).square().sum(-1).mean()
        return Loss(value, {"loss": value.detach(), "mse": mse.detach()})

    return Objective("bc", loss, trains=("encoder", "actor"))


@torch.no_grad()
def evaluate(networks: nn.ModuleDict, batch: Batch) -> dict[str, Tensor]:
    """How well the policy fits a batch as it is, without crop and dropout: for held-out demonstrations.

    Returns:
        ``mse`` |mode - a|^2 [B], ``log_probs`` log pi(a|s) [B], ``actions`` the modes [B, A].
    """
    fitted: ActionDistribution = networks["actor"](networks["encoder"](batch["observations"]))
    actions = batch["actions"]
    return {
        "mse": (fitted.mode - actions).square().sum(-1),
        "log_probs": log_probabilities(fitted, actions),
        "actions": fitted.mode,
    }


def hidden_dropout_names(widths: Sequence[int]) -> tuple[str, ...]:
    """Names of the hidden layers' dropout masks in the noise, float [B, width] each."""
    return tuple(f"hidden_dropout_{index}" for index in range(len(widths)))


def noise_source(config: BCConfig, encoder: Encoder) -> Callable[[torch.Generator, int, torch.device], Noise]:
    """A function that draws all random numbers of one update: ``crop`` and the masks of all dropouts."""

    def draw(generator: torch.Generator, batch_size: int, device: torch.device) -> Noise:
        def mask(rate: float, *shape: int) -> Tensor:
            return draw_dropout_mask((batch_size, *shape), rate, generator, device)

        noise: Noise = {}
        if encoder.image_keys:
            noise |= crop_noise(("crop",), config.crop_padding, generator, batch_size, device)
        if encoder.image_keys and config.encoder_dropout:
            noise["dropout"] = mask(config.encoder_dropout, *encoder.dropout_shape)
        if config.dropout:
            for name, width in zip(hidden_dropout_names(config.hidden_widths), config.hidden_widths, strict=True):
                noise[name] = mask(config.dropout, width)
        return noise

    return draw


def image_preparation(config: BCConfig, image_keys: Sequence[str]) -> Callable[[nn.ModuleDict, Batch, Noise], Batch]:
    """Crop every camera at random, the same offsets for all cameras of a sample, and run a frozen trunk once."""

    def prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        observations = dict(batch["observations"])
        if config.crop_padding:
            for key in image_keys:
                observations[key] = random_crop(observations[key], noise["crop"], config.crop_padding)
        return {**batch, "observations": encoder_of(networks).encode_trunk(observations)}

    return prepare
