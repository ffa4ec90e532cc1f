"""Implicit Q-learning (Kostrikov et al. 2022): values from the data's actions alone, then weighted imitation.

No loss ever asks for the value of an action that is not in the data. One critic step and one of the actor each update
(``critic_to_actor_ratio`` 1). On MuJoCo tasks the authors scale the rewards to returns that span 1000, and CORL
normalises the states instead (``agents.parts.normalize_states``).

Differences from CORL's ``algorithms/offline/iql.py``:

* the actor's advantage is that of the new V, as in the authors' own code (CORL: of the V before its step);
* the policy's standard deviation is at least exp(-5), as in the authors' own code (CORL: exp(-20));
* ``dropout`` acts on the policy's hidden layers, as in the authors' own code (CORL's Gaussian policy ignores it);
* layers start Xavier-uniform with zero bias, as everywhere here, not with PyTorch's default;
* states are divided by max(std, 1e-3), not by std + 1e-3;
* there may be cameras: the critics train their encoder, V and the policy read its features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from serl_fast.agents import offline
from serl_fast.agents.bc import hidden_dropout_names
from serl_fast.agents.offline import OfflineConfig, check_not_negative, check_positive
from serl_fast.agents.parts import add_target
from serl_fast.core import AdamConfig, Agent, Batch, Loss, Noise, Objective, Observations
from serl_fast.networks.dropout import dropout_mask
from serl_fast.networks.mlp import MLP, at_least_float32, linear
from serl_fast.networks.policy import ActionDistribution, Policy, StdParameterization


@dataclasses.dataclass(frozen=True)
class IQLConfig(OfflineConfig):
    """Everything about IQL but the sizes of observations and actions. Defaults are the paper's for MuJoCo.

    Attributes:
        expectile: of V, in (0, 1): 0.5 is the mean of the data's actions, near 1 the best of them. AntMaze 0.9.
        beta: inverse temperature of the policy's weights; 0 is behaviour cloning. AntMaze 10.
        largest_weight: of a transition in the policy's loss.
        std_parameterization: "uniform" (one learned vector), or "exp" or "softplus" of the state.
        std_min: smallest standard deviation of the policy.
        std_max: largest standard deviation of the policy.
        dropout: rate in the policy's hidden layers, in [0, 1); Adroit 0.1.
        actor_cosine_decay_steps: the step of the actor at which a cosine has brought its learning rate to 0, the
            length of the run in the published results; None: constant.
    """

    expectile: float = 0.7
    beta: float = 3.0
    largest_weight: float = 100.0
    std_parameterization: StdParameterization = "uniform"
    std_min: float = math.exp(-5)
    std_max: float = math.exp(2)
    dropout: float = 0.0
    actor_cosine_decay_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile is {self.expectile}; it must be in (0, 1)")
        check_not_negative(self, "beta")
        check_positive(self, "largest_weight")
        if self.std_parameterization not in ("uniform", "exp", "softplus"):
            raise ValueError(
                f"std_parameterization is {self.std_parameterization!r}; choose 'uniform', 'exp' or 'softplus'"
            )
        if not 0 < self.std_min <= self.std_max < math.inf:
            raise ValueError(f"std_min {self.std_min} and std_max {self.std_max}: 0 < std_min <= std_max is needed")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        self.adam()  # its own checks

    def adam(self) -> dict[str, AdamConfig]:
        """Adam's settings by network."""
        actor = AdamConfig(self.actor_learning_rate, cosine_decay_steps=self.actor_cosine_decay_steps)
        return {**super().adam(), "value": AdamConfig(self.critic_learning_rate), "actor": actor}


class ValueFunction(nn.Module):
    """V(s) of a feature vector.

    Args:
        features: width D.
        config: hidden layers.
    """

    def __init__(self, features: int, config: OfflineConfig) -> None:
        super().__init__()
        self.trunk = MLP(
            features, config.hidden_widths, layer_norm=config.critic_layer_norm, activation=config.activation
        )
        self.head = linear(config.hidden_widths[-1], 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, D] to [B]."""
        return at_least_float32(self.head(self.trunk(features))).squeeze(-1)


def iql(
    state_dim: int,
    action_dim: int,
    image_keys: Sequence[str] = (),
    config: IQLConfig | None = None,
    *,
    trunk: nn.Module | None = None,
) -> Agent:
    """Build an IQL agent.

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
    config = config or IQLConfig()
    encoder = offline.build_encoder(state_dim, action_dim, image_keys, config, trunk)
    actor = Policy(
        encoder.feature_size,
        action_dim,
        config.hidden_widths,
        std_parameterization=config.std_parameterization,
        std_min=config.std_min,
        std_max=config.std_max,
        squash=False,
        layer_norm=config.actor_layer_norm,
        activation=config.activation,
    )
    networks = nn.ModuleDict(
        {
            "encoder": encoder,
            "actor": actor,
            "critic": offline.build_critic(encoder, action_dim, config),
            "value": ValueFunction(encoder.feature_size, config),
            "target_encoder": encoder.target_copy(),
        }
    )
    add_target(networks, "critic")
    return Agent(
        networks=networks,
        critic_step=(value_objective(config), critic_objective()),
        actor_step=(actor_objective(config),),
        targets=offline.averages(config, "encoder", "critic"),
        draw_noise=noise_source(image_keys, config),
        prepare=offline.preparation(image_keys, config, action_dim),
        policy=policy,
        policy_networks=("encoder", "actor"),
        action_dim=action_dim,
        policy_noise_dim=action_dim,
        optimizers=config.adam(),
        settings=offline.settings_of("iql", state_dim, action_dim, image_keys, config, trunk is not None),
    )


def noise_source(image_keys: Sequence[str], config: IQLConfig) -> Callable[[torch.Generator, int, torch.device], Noise]:
    """A function that draws all random numbers of one update: crops, and the masks of the policy's dropout."""
    widths = (
        dict(zip(hidden_dropout_names(config.hidden_widths), config.hidden_widths, strict=True))
        if config.dropout
        else {}
    )
    draw_uniform = offline.noise_source(image_keys, config, {}, {name: (width,) for name, width in widths.items()})

    def draw(generator: torch.Generator, batch_size: int, device: torch.device) -> Noise:
        noise = draw_uniform(generator, batch_size, device)
        return {**noise, **{name: dropout_mask(noise[name], config.dropout) for name in widths}}

    return draw


@torch.no_grad()
def data_values(networks: nn.ModuleDict, batch: Batch) -> Tensor:
    """min_e Q_target_e(s, a) of the data's actions, float [B]."""
    q: Tensor = networks["target_critic"](networks["target_encoder"](batch["observations"]), batch["actions"]).amin(0)
    return q


def value_objective(config: IQLConfig) -> Objective:
    """Expectile regression: mean of |expectile - 1[u < 0]| u^2, u = min_e Q_target_e(s, a) - V(s).

    Source: IQL, equation 5.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            features = networks["encoder"](batch["observations"])
        v = networks["value"](features)  # [B]
        above = data_values(networks, batch) - v
        weights = torch.where(above < 0, 1 - config.expectile, config.expectile)
        value = (weights * above.square()).mean()
        return Loss(value, {"loss": value.detach(), "v": v.detach().mean(), "advantage": above.detach().mean()})

    return Objective("value", loss, trains=("value",))


def critic_objective() -> Objective:
    """Mean of (Q_e(s, a) - y)^2, y = r + discount * V(s').

    Source: IQL, equation 6.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            next_value = networks["value"](networks["encoder"](batch["next_observations"]))
            targets = batch["rewards"] + batch["discounts"] * next_value
        q = networks["critic"](networks["encoder"](batch["observations"]), batch["actions"])  # [E, B]
        return Loss(*offline.temporal_difference(q, targets, batch))

    return Objective("critic", loss, trains=("encoder", "critic"))


def actor_objective(config: IQLConfig) -> Objective:
    """Advantage-weighted regression: mean of -w log pi(a|s), w = min(exp(beta * (Q_target(s, a) - V(s))), largest).

    pi(.|s) is normal around tanh(mean(s)), as in the authors' code: its support is not bounded, so that actions at the
    limits have a likelihood.

    Source: IQL, equation 7; ``iql.py`` of CORL for the limit of the weights.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            features = networks["encoder"](batch["observations"])
            advantages = data_values(networks, batch) - networks["value"](features)
            weights = (config.beta * advantages).exp().clamp(max=config.largest_weight)  # [B]
            q_policy = networks["critic"](features, distribution(networks, features).mean).mean()
        masks = [noise[name] for name in hidden_dropout_names(config.hidden_widths) if name in noise]
        fitted = distribution(networks, features, masks)
        log_probs = fitted.log_prob(batch["actions"])
        value = -(weights * log_probs).mean()
        metrics = {
            "loss": value.detach(),
            "q_policy": q_policy,
            "log_prob": log_probs.detach().mean(),
            "weight": weights.mean(),
            "weight_clipped": (weights >= config.largest_weight).float().mean(),
            "std": fitted.std.detach().mean(),
            **offline.policy_metrics(fitted.mean, batch),
        }
        return Loss(value, metrics)

    return Objective("actor", loss, trains=("actor",))


def distribution(
    networks: nn.ModuleDict, features: Tensor, dropout: Sequence[Tensor] | None = None
) -> ActionDistribution:
    """The policy's normal distribution around tanh(mean)."""
    raw: ActionDistribution = networks["actor"](features, dropout or None)
    return raw._replace(mean=torch.tanh(raw.mean))


def policy(networks: nn.ModuleDict, observations: Observations, noise: Tensor | None) -> Tensor:
    """Actions [B, A] in [-1, 1]: a sample for standard normal ``noise`` [B, A], cut at ±1, or the mean for None."""
    fitted = distribution(networks, networks["encoder"](observations))
    return fitted.mean if noise is None else (fitted.mean + fitted.std * noise).clamp(-1, 1)
