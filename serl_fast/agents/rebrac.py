"""ReBRAC (Tarasov et al. 2023): TD3+BC with a penalty of its own for the critic, more layers and LayerNorm.

One critic step each update, one of the actor in every second (``critic_to_actor_ratio`` 2); the targets move with the
actor.

``batch["next_actions"]`` float32 [B, A]: the action of the data that follows the transition. At the end of an episode
there is none: where it terminated any finite number will do (``discounts`` is 0 and masks the whole bootstrapped
term, penalty included, as in the reference); where it was cut off by time the reference leaves the transition out, and
a store may repeat the last action instead.

Differences from CORL's ``algorithms/offline/rebrac.py`` (JAX):

* LayerNorm comes before the activation, not after it;
* layers start Xavier-uniform with zero bias, as everywhere here (there: 1 / sqrt(fan in), biases 0.1, last layers
  within ±1e-3 and ±3e-3);
* target averages take the new parameters, not those before the step;
* the mean of the members' errors, not their sum, which Adam does not see;
* there may be cameras: the critics train their encoder, and the targets have an average of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from serl_fast.agents import offline, td3bc
from serl_fast.agents.offline import OfflineConfig, check_not_negative
from serl_fast.core import Agent, Batch, Loss, Noise, Objective


@dataclasses.dataclass(frozen=True)
class ReBRACConfig(OfflineConfig):
    """Everything about ReBRAC but the sizes of observations and actions. Defaults are halfcheetah-medium's.

    The two penalties belong to the data: (actor, critic) is (0.001, 0.01) for halfcheetah-medium, (0.01, 0.01)
    hopper-medium, (0.05, 0.1) walker2d-medium, (0.003, 0.002) antmaze-umaze, (0.1, 0.5) pen-human, (1, 0) OGBench
    cube-single. The published MuJoCo runs have batches of 1024.

    Attributes:
        hidden_widths: hidden layers of policy and critics.
        critic_layer_norm: LayerNorm before each activation of the critics.
        actor_learning_rate: Adam's, for the policy; AntMaze and Adroit 3e-4.
        critic_learning_rate: Adam's, for encoder and critics; AntMaze 5e-5, Adroit 3e-4.
        actor_penalty: beta_1, of the squared distance to the data's action in the policy's loss.
        critic_penalty: beta_2, of the squared distance to the data's next action in the target value.
        normalize_q: divide Q by its mean magnitude in the policy's loss.
        policy_noise: standard deviation of the noise on the target policy's action.
        noise_clip: largest magnitude of that noise.
        exploration_noise: standard deviation of the noise on actions that are sampled.
    """

    hidden_widths: tuple[int, ...] = (256, 256, 256)
    critic_layer_norm: bool = True
    actor_learning_rate: float = 1e-3
    critic_learning_rate: float = 1e-3
    actor_penalty: float = 0.001
    critic_penalty: float = 0.01
    normalize_q: bool = True
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    exploration_noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "actor_penalty", "critic_penalty", "policy_noise", "noise_clip", "exploration_noise")


def rebrac(
    state_dim: int,
    action_dim: int,
    image_keys: Sequence[str] = (),
    config: ReBRACConfig | None = None,
    *,
    trunk: nn.Module | None = None,
) -> Agent:
    """Build a ReBRAC agent; its batches hold ``next_actions`` float32 [B, A] too (see the top of this file).

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
    config = config or ReBRACConfig()
    return Agent(
        networks=td3bc.build_networks(state_dim, action_dim, image_keys, config, trunk),
        critic_step=(critic_objective(config),),
        actor_step=(actor_objective(config),),
        targets=offline.averages(config, "encoder", "critic", "actor", with_actor=True),
        draw_noise=offline.noise_source(image_keys, config, {"smoothing": (action_dim,)}),
        prepare=offline.preparation(image_keys, config, action_dim, actions=("next_actions",)),
        policy=td3bc.policy(config.exploration_noise),
        policy_networks=("encoder", "actor"),
        action_dim=action_dim,
        policy_noise_dim=action_dim,
        optimizers=config.adam(),
        settings=offline.settings_of("rebrac", state_dim, action_dim, image_keys, config, trunk is not None),
    )


def critic_objective(config: ReBRACConfig) -> Objective:
    """Mean of (Q_e(s, a) - y)^2, y = r + discount * (min_e Q_target_e(s', a') - beta_2 |a' - a_next|^2).

    a' is the target policy's with clipped noise, a_next the data's next action; the square is summed over dimensions.

    Source: ReBRAC, equation 4; ``update_critic`` of ``rebrac.py`` in CORL.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        actions, next_q = td3bc.next_actions_and_values(config.policy_noise, config.noise_clip, networks, batch, noise)
        penalty = (actions - batch["next_actions"]).square().sum(-1)  # [B]
        targets = batch["rewards"] + batch["discounts"] * (next_q - config.critic_penalty * penalty)
        q = networks["critic"](networks["encoder"](batch["observations"]), batch["actions"])  # [E, B]
        value, metrics = offline.temporal_difference(q, targets, batch)
        return Loss(value, {**metrics, "next_penalty": penalty.mean()})

    return Objective("critic", loss, trains=("encoder", "critic"))


def actor_objective(config: ReBRACConfig) -> Objective:
    """mean of beta_1 |pi(s) - a|^2 - lambda * min_e Q_e(s, pi(s)), lambda = 1 / mean |min_e Q_e| constant, or 1.

    The square is summed over dimensions.

    Source: ReBRAC, equation 3; ``update_actor`` of ``rebrac.py`` in CORL.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        with torch.no_grad():
            features = networks["encoder"](batch["observations"])
        actions = networks["actor"](features)
        q = networks["critic"](features, actions).amin(0)  # [B]
        weight = 1 / q.detach().abs().mean() if config.normalize_q else torch.ones((), device=q.device)
        penalty = (actions - batch["actions"]).square().sum(-1)
        value = (config.actor_penalty * penalty - weight * q).mean()
        metrics = {
            "loss": value.detach(),
            "q_policy": q.detach().mean(),
            "q_weight": weight,
            **offline.policy_metrics(actions, batch),
        }
        return Loss(value, metrics)

    return Objective("actor", loss, trains=("actor",))
