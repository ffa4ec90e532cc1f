"""Conservative Q-learning (Kumar et al. 2020): SAC whose critics are pushed down where the data says nothing.

One critic step and one of the actor each update (``critic_to_actor_ratio`` 1). Normalise the states of MuJoCo tasks
(``agents.parts.normalize_states``). The loss is CQL(H), with the log-sum-exp estimated by importance sampling.

Differences from CORL's ``algorithms/offline/cql.py``:

* critics first, then the actor against the new critics (CORL: all losses at the old parameters);
* the temperature is softplus(x) with loss temperature * (H - target), as everywhere here, not exp(x) with x * (...);
* no learned scale and offset of the policy's log standard deviation (CORL starts at -1), no BC steps at the start;
* layers start Xavier-uniform with zero bias, as everywhere here (CORL: orthogonal, small last layers);
* states are divided by max(std, 1e-3), not by std + 1e-3;
* the mean over the members, not their sum, which Adam does not see;
* there may be cameras: the critics train their encoder, and the targets have an average of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from serl_fast.agents import offline
from serl_fast.agents.offline import OfflineConfig, check_not_negative, check_positive
from serl_fast.agents.parts import add_target
from serl_fast.agents.sac import policy
from serl_fast.core import AdamConfig, Agent, Batch, Loss, Noise, Objective
from serl_fast.networks.policy import ActionDistribution, Policy, Temperature

LARGEST_MULTIPLIER = 1e6


@dataclasses.dataclass(frozen=True)
class CQLConfig(OfflineConfig):
    """Everything about CQL but the sizes of observations and actions. Defaults are CORL's for MuJoCo.

    Attributes:
        hidden_widths: hidden layers of policy and critics; AntMaze has 5 in the critics.
        actor_learning_rate: Adam's, for policy and temperature.
        alpha: weight of the conservative term; AntMaze 5.
        sampled_actions: N, drawn uniformly, from the policy at s and from the policy at s', each.
        importance_sampling: subtract log densities in the log-sum-exp; else the data's action is one of its terms.
        cql_temperature: of the log-sum-exp.
        target_gap: of the Lagrange version, which multiplies ``alpha`` by a learned factor that grows while the
            conservative term is above the gap; AntMaze 0.8. None: fixed weight.
        max_target_backup: the target is the largest of N sampled next actions; AntMaze.
        largest_gap: limit of the conservative term of one transition; None: none.
        initial_temperature: SAC's alpha at the start.
        target_entropy: H; None means -A.
        backup_entropy: subtract temperature * log pi from the target value.
        std_min: smallest standard deviation of the policy before tanh.
        std_max: largest standard deviation of the policy before tanh.
    """

    hidden_widths: tuple[int, ...] = (256, 256, 256)
    actor_learning_rate: float = 3e-5
    alpha: float = 10.0
    sampled_actions: int = 10
    importance_sampling: bool = True
    cql_temperature: float = 1.0
    target_gap: float | None = None
    max_target_backup: bool = False
    largest_gap: float | None = None
    initial_temperature: float = 1.0
    target_entropy: float | None = None
    backup_entropy: bool = False
    std_min: float = math.exp(-20)
    std_max: float = math.exp(2)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "alpha")
        check_positive(self, "cql_temperature", "initial_temperature")
        if self.sampled_actions < 1:
            raise ValueError(f"sampled_actions is {self.sampled_actions}; it must be at least 1")
        for name in ("target_gap", "target_entropy", "largest_gap"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; it must be a finite number, or None")
        if not 0 < self.std_min <= self.std_max < math.inf:
            raise ValueError(f"std_min {self.std_min} and std_max {self.std_max}: 0 < std_min <= std_max is needed")

    def adam(self) -> dict[str, AdamConfig]:
        """Adam's settings by network."""
        return {
            **super().adam(),
            "temperature": AdamConfig(self.actor_learning_rate),
            "multiplier": AdamConfig(self.critic_learning_rate),
        }


class Multiplier(nn.Module):
    """The Lagrange factor of the conservative term, min(exp(raw), 1e6), a learned scalar that starts at e."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(1.0))

    def forward(self) -> Tensor:
        """The factor, a scalar tensor."""
        return self.raw.exp().clamp(max=LARGEST_MULTIPLIER)


LowerBound = Callable[[Batch], Tensor]
"""batch -> what the policy's actions are worth at least, float [B]."""


def cql(
    state_dim: int,
    action_dim: int,
    image_keys: Sequence[str] = (),
    config: CQLConfig | None = None,
    *,
    trunk: nn.Module | None = None,
) -> Agent:
    """Build a CQL agent.

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
    config = config or CQLConfig()
    return Agent(
        networks=build_networks(state_dim, action_dim, image_keys, config, trunk),
        critic_step=(critic_objective(config),),
        actor_step=(actor_objective(config, action_dim),),
        targets=offline.averages(config, "encoder", "critic"),
        draw_noise=noise_source(image_keys, config, action_dim),
        prepare=offline.preparation(image_keys, config, action_dim),
        policy=policy,
        policy_networks=("encoder", "actor"),
        action_dim=action_dim,
        policy_noise_dim=action_dim,
        optimizers=config.adam(),
        settings=offline.settings_of("cql", state_dim, action_dim, image_keys, config, trunk is not None),
    )


def build_networks(
    state_dim: int, action_dim: int, image_keys: Sequence[str], config: CQLConfig, trunk: nn.Module | None
) -> nn.ModuleDict:
    """SAC's networks and, with a ``target_gap``, the Lagrange factor."""
    encoder = offline.build_encoder(state_dim, action_dim, image_keys, config, trunk)
    actor = Policy(
        encoder.feature_size,
        action_dim,
        config.hidden_widths,
        std_min=config.std_min,
        std_max=config.std_max,
        layer_norm=config.actor_layer_norm,
        activation=config.activation,
    )
    networks = nn.ModuleDict(
        {
            "encoder": encoder,
            "actor": actor,
            "critic": offline.build_critic(encoder, action_dim, config),
            "temperature": Temperature(config.initial_temperature),
            "target_encoder": encoder.target_copy(),
        }
    )
    if config.target_gap is not None:
        networks["multiplier"] = Multiplier()
    add_target(networks, "critic")
    return networks


def noise_source(
    image_keys: Sequence[str], config: CQLConfig, action_dim: int
) -> Callable[[torch.Generator, int, torch.device], Noise]:
    """A function that draws all random numbers of one update."""
    one, several = (action_dim,), (config.sampled_actions, action_dim)
    normal = {
        "actions": one,
        "next_actions": several if config.max_target_backup else one,
        "current_samples": several,
        "next_samples": several,
    }
    return offline.noise_source(image_keys, config, normal, {"random_samples": several})


def sample(distribution: ActionDistribution, noise: Tensor) -> tuple[Tensor, Tensor]:
    """N actions in each state, [B, N, A], and their log-probabilities [B, N], for noise [B, N, A]."""
    actions, log_probs = distribution.sample(noise.transpose(0, 1))
    return actions.transpose(0, 1), log_probs.transpose(0, 1)


def critic_targets(config: CQLConfig) -> Callable[[nn.ModuleDict, Batch, Noise, ActionDistribution], Tensor]:
    """y = r + discount * min_e Q_target_e(s', a'), a' ~ pi(.|s'), as a function that has pi(.|s') given, float [B].

    With ``max_target_backup`` the minimum over members is that of the best of N actions a'. With ``backup_entropy`` it
    is lowered by temperature * log pi(a'|s').

    Source: SAC, equation 5; CQL, appendix F, for the best of N.
    """

    @torch.no_grad()
    def targets(networks: nn.ModuleDict, batch: Batch, noise: Noise, following: ActionDistribution) -> Tensor:
        features = networks["target_encoder"](batch["next_observations"])
        if config.max_target_backup:
            actions, log_probs = sample(following, noise["next_actions"])
            value, best = networks["target_critic"](features, actions).amin(0).max(-1)  # [B]
            log_probs = log_probs.gather(-1, best.unsqueeze(-1)).squeeze(-1)
        else:
            actions, log_probs = following.sample(noise["next_actions"])
            value = networks["target_critic"](features, actions).amin(0)  # [B]
        if config.backup_entropy:
            value = value - networks["temperature"]() * log_probs
        return batch["rewards"] + batch["discounts"] * value

    return targets


def values_and_gaps(
    config: CQLConfig,
    lower_bound: LowerBound | None,
    networks: nn.ModuleDict,
    batch: Batch,
    noise: Noise,
    features: Tensor,
    following: ActionDistribution,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Q_e(s, a) [E, B] of the data, the conservative term log-sum-exp_e(s) - Q_e(s, a) [E, B], and metrics.

    log-sum-exp_e(s) = T log sum_i exp((Q_e(s, a_i) - log density(a_i)) / T) over N actions a_i drawn uniformly
    (density 0.5^A), N from pi(.|s) and N from pi(.|s'), all valued in s. Without ``importance_sampling`` there are no
    densities and a is one of the a_i.

    Args:
        config: hyper-parameters.
        lower_bound: of the values of the policy's actions (Cal-QL).
        networks: the agent's.
        batch: the data.
        noise: of the samples.
        features: of s, [B, D].
        following: pi(.|s').

    Source: CQL, appendix F; ``_q_loss`` of ``cql.py`` in CORL. Cal-QL, equation 5.1, for the lower bound.
    """
    with torch.no_grad():
        random = 2 * noise["random_samples"] - 1  # [B, N, A]
        current, current_log_probs = sample(networks["actor"](features), noise["current_samples"])
        following_actions, following_log_probs = sample(following, noise["next_samples"])
    count, width = random.shape[1:]
    everything = torch.cat([batch["actions"].unsqueeze(1), random, following_actions, current], dim=1)
    q_all = networks["critic"](features, everything)  # [E, B, 1 + 3N]
    q, q_random, q_policy = q_all[..., 0], q_all[..., 1 : count + 1], q_all[..., count + 1 :]
    metrics = {"q_random": q_random.detach().mean(), "q_policy": q_policy.detach().mean()}
    if lower_bound is not None:
        bound = lower_bound(batch)[:, None]  # [B, 1]
        metrics["bounded"] = (q_policy.detach() < bound).float().mean()
        q_policy = torch.maximum(q_policy, bound)
    if config.importance_sampling:
        densities = torch.cat([following_log_probs, current_log_probs], dim=1)
        terms = torch.cat([q_random - width * math.log(0.5), q_policy - densities], dim=-1)
    else:
        terms = torch.cat([q_random, q.unsqueeze(-1), q_policy], dim=-1)
    scale = config.cql_temperature
    gaps = torch.logsumexp(terms / scale, dim=-1) * scale - q
    return q, gaps if config.largest_gap is None else gaps.clamp(max=config.largest_gap), metrics


def critic_objective(config: CQLConfig, lower_bound: LowerBound | None = None) -> Objective:
    """Mean over members and batch of (Q_e(s, a) - y)^2 + alpha * (log-sum-exp_e(s) - Q_e(s, a)).

    Lagrange version, m the learned factor: alpha * m * (mean of the second term - gap), which m maximises.

    Args:
        config: hyper-parameters.
        lower_bound: see :func:`values_and_gaps`.

    Source: CQL, equation 4 and, for the Lagrange version, appendix F.
    """
    targets_of = critic_targets(config)

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            following: ActionDistribution = networks["actor"](networks["encoder"](batch["next_observations"]))
        targets = targets_of(networks, batch, noise, following)
        features = networks["encoder"](batch["observations"])
        q, gaps, metrics = values_and_gaps(config, lower_bound, networks, batch, noise, features, following)
        gap = gaps.mean()
        error, found = offline.temporal_difference(q, targets, batch)
        value = error + config.alpha * gap
        metrics |= {"loss": value.detach(), "td_error": error.detach(), "cql_gap": gap.detach()}
        if config.target_gap is not None:
            multiplier, excess = networks["multiplier"](), gap - config.target_gap
            # One sum with both gradients: the critics lower the excess, the factor grows with it.
            value = error + config.alpha * (multiplier.detach() * excess - multiplier * excess.detach())
            metrics["multiplier"] = multiplier.detach()
        return Loss(value, {**found, **metrics})

    trained = ("encoder", "critic") if config.target_gap is None else ("encoder", "critic", "multiplier")
    return Objective("critic", loss, trains=trained)


def actor_objective(config: CQLConfig, action_dim: int) -> Objective:
    """The policy's and the temperature's losses, from one sample a ~ pi(.|s).

    Policy: mean(temperature * log pi(a|s) - min_e Q_e(s, a)), critics and temperature constant.
    Temperature: temperature * (H - target entropy), H = -mean log pi(a|s), policy constant.
    The two touch different parameters, so their sum has both gradients.

    Source: SAC, equations 7 and 18, with the minimum of the members as in ``cql.py`` of CORL.
    """
    target_entropy = -action_dim if config.target_entropy is None else config.target_entropy

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            features = networks["encoder"](batch["observations"])
        fitted: ActionDistribution = networks["actor"](features)
        actions, log_probs = fitted.sample(noise["actions"])
        q = networks["critic"](features, actions).amin(0)  # [B]
        temperature = networks["temperature"]()
        entropy = -log_probs.mean()
        policy_loss = (temperature.detach() * log_probs - q).mean()
        temperature_loss = temperature * (entropy.detach() - target_entropy)
        metrics = {
            "loss": policy_loss.detach(),
            "q_policy": q.detach().mean(),
            "entropy": entropy.detach(),
            "temperature": temperature.detach(),
            **offline.policy_metrics(fitted.mode, batch),
        }
        return Loss(policy_loss + temperature_loss, metrics)

    return Objective("actor", loss, trains=("actor", "temperature"))
