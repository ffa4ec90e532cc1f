"""TD3+BC (Fujimoto & Gu 2021): TD3 whose actor is also pulled towards the actions of the data.

One critic step each update, one of the actor in every second (``critic_to_actor_ratio`` 2); the targets move with the
actor. Normalise the states (``agents.parts.normalize_states``): the published results do.

Differences from CORL's ``algorithms/offline/td3_bc.py``:

* the mean of the members' errors, not their sum, which Adam does not see;
* layers start Xavier-uniform with zero bias, as everywhere here, not with PyTorch's default;
* states are divided by max(std, 1e-3), not by std + 1e-3;
* there may be cameras: the critics train their encoder, and the targets have an average of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from serl_fast.agents import offline
from serl_fast.agents.offline import OfflineConfig, check_not_negative, check_positive
from serl_fast.agents.parts import add_target
from serl_fast.core import Agent, Batch, Loss, Noise, Objective, Observations, Policy


@dataclasses.dataclass(frozen=True)
class TD3BCConfig(OfflineConfig):
    """Everything about TD3+BC but the sizes of observations and actions. Defaults are the paper's.

    Attributes:
        alpha: weight of Q beside the squared error to the data; from demonstrations of experts alone 0.1 to 0.25.
        policy_noise: standard deviation of the noise on the target policy's action.
        noise_clip: largest magnitude of that noise.
        exploration_noise: standard deviation of the noise on actions that are sampled.
    """

    alpha: float = 2.5
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    exploration_noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "alpha")
        check_not_negative(self, "policy_noise", "noise_clip", "exploration_noise")


def td3bc(
    state_dim: int,
    action_dim: int,
    image_keys: Sequence[str] = (),
    config: TD3BCConfig | None = None,
    *,
    trunk: nn.Module | None = None,
) -> Agent:
    """Build a TD3+BC agent.

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
    config = config or TD3BCConfig()
    return Agent(
        networks=build_networks(state_dim, action_dim, image_keys, config, trunk),
        critic_step=(critic_objective(config),),
        actor_step=(actor_objective(config),),
        targets=offline.averages(config, "encoder", "critic", "actor", with_actor=True),
        draw_noise=offline.noise_source(image_keys, config, {"smoothing": (action_dim,)}),
        prepare=offline.preparation(image_keys, config, action_dim),
        policy=policy(config.exploration_noise),
        policy_networks=("encoder", "actor"),
        action_dim=action_dim,
        policy_noise_dim=action_dim,
        optimizers=config.adam(),
        settings=offline.settings_of("td3bc", state_dim, action_dim, image_keys, config, trunk is not None),
    )


def build_networks(
    state_dim: int, action_dim: int, image_keys: Sequence[str], config: OfflineConfig, trunk: nn.Module | None
) -> nn.ModuleDict:
    """Encoder, deterministic policy and critics, each with a target copy."""
    encoder = offline.build_encoder(state_dim, action_dim, image_keys, config, trunk)
    networks = nn.ModuleDict(
        {
            "encoder": encoder,
            "actor": offline.DeterministicPolicy(encoder.feature_size, action_dim, config),
            "critic": offline.build_critic(encoder, action_dim, config),
            "target_encoder": encoder.target_copy(),
        }
    )
    for name in ("critic", "actor"):
        add_target(networks, name)
    return networks


@torch.no_grad()
def next_actions_and_values(
    policy_noise: float, noise_clip: float, networks: nn.ModuleDict, batch: Batch, noise: Noise
) -> tuple[Tensor, Tensor]:
    """a' = clip(pi_target(s') + clip(policy_noise * n, ±noise_clip), ±1) [B, A] and min_e Q_target_e(s', a') [B].

    Source: TD3 (Fujimoto et al. 2018), equations 14 and 15.
    """
    features = networks["target_encoder"](batch["next_observations"])
    smoothing = (policy_noise * noise["smoothing"]).clamp(-noise_clip, noise_clip)
    actions = (networks["target_actor"](features) + smoothing).clamp(-1, 1)
    return actions, networks["target_critic"](features, actions).amin(0)


def critic_objective(config: TD3BCConfig) -> Objective:
    """Mean of (Q_e(s, a) - y)^2, y = r + discount * min_e Q_target_e(s', a'), a' of the target policy with noise.

    Source: TD3, algorithm 1.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        _, next_q = next_actions_and_values(config.policy_noise, config.noise_clip, networks, batch, noise)
        targets = batch["rewards"] + batch["discounts"] * next_q
        q = networks["critic"](networks["encoder"](batch["observations"]), batch["actions"])  # [E, B]
        return Loss(*offline.temporal_difference(q, targets, batch))

    return Objective("critic", loss, trains=("encoder", "critic"))


def actor_objective(config: TD3BCConfig) -> Objective:
    """mean of -lambda * Q_0(s, pi(s)) + |pi(s) - a|^2 / A, lambda = alpha / mean |Q_0(s, pi(s))|, lambda constant.

    Source: TD3+BC, equations 4 and 5; ``td3_bc.py`` of CORL, whose squared error is a mean over the A dimensions too.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            features = networks["encoder"](batch["observations"])
        actions = networks["actor"](features)
        q = networks["critic"](features, actions)[0]  # [B]
        weight = config.alpha / q.detach().abs().mean()
        value = (actions - batch["actions"]).square().mean() - weight * q.mean()
        metrics = {
            "loss": value.detach(),
            "q_policy": q.detach().mean(),
            "q_weight": weight,
            **offline.policy_metrics(actions, batch),
        }
        return Loss(value, metrics)

    return Objective("actor", loss, trains=("actor",))


def policy(exploration_noise: float) -> Policy:
    """Actions [B, A] in [-1, 1]: pi(s), or clip(pi(s) + exploration_noise * n, ±1) for standard normal ``n`` [B, A]."""

    def act(networks: nn.ModuleDict, observations: Observations, noise: Tensor | None) -> Tensor:
        actions: Tensor = networks["actor"](networks["encoder"](observations))
        return actions if noise is None else (actions + exploration_noise * noise).clamp(-1, 1)

    return act
