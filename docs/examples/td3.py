"""TD3 (Fujimoto et al. 2018) as an agent of serl_fast, in one file outside the package.

python -m serl_fast.train_hybrid --algorithm td3:td3 --env serl_robots/Reach-v0 ...
"""

import copy

import torch
from torch import nn

from serl_fast.core import Agent, Loss, Objective, TargetUpdate
from serl_fast.networks.critic import CriticEnsemble
from serl_fast.networks.encoder import make_encoder
from serl_fast.networks.mlp import MLP

EXPLORATION, SMOOTHING, CLIP, RATE = 0.1, 0.2, 0.5, 0.005


def critic_loss(networks, batch, noise):
    """(Q_e(s, a) - y)^2, y = r + discount * min_e Q_target_e(s', clip(actor_target(s') + clipped noise, -1, 1))."""
    with torch.no_grad():
        following = networks["target_encoder"](batch["next_observations"])
        smoothing = (SMOOTHING * noise["smoothing"]).clamp(-CLIP, CLIP)
        next_actions = (networks["target_actor"](following).tanh() + smoothing).clamp(-1, 1)
        next_q = networks["target_critic"](following, next_actions).amin(0)  # [B]
        targets = batch["rewards"] + batch["discounts"] * next_q
    q = networks["critic"](networks["encoder"](batch["observations"]), batch["actions"])  # [E, B]
    value = (q - targets).square().mean()
    return Loss(value, {"loss": value.detach(), "predicted_qs": q.detach().mean()})


def actor_loss(networks, batch, noise):
    """-Q_0(s, actor(s))."""
    features = networks["encoder"](batch["observations"]).detach()
    value = -networks["critic"](features, networks["actor"](features).tanh())[0].mean()
    return Loss(value, {"loss": value.detach()})


def prepare(networks, batch, noise):
    """Encode the cameras by their frozen trunk, once for all losses; the target encoder has no trunk of its own."""
    encode = networks["encoder"].encode_trunk
    return {**batch, **{key: encode(batch[key]) for key in ("observations", "next_observations")}}


def policy(networks, observations, noise):
    """The actor's action, with Gaussian exploration noise where there is some."""
    action = networks["actor"](networks["encoder"](observations)).tanh()
    return action if noise is None else (action + EXPLORATION * noise).clamp(-1, 1)


def td3(state_dim, action_dim, image_keys=()):
    """Build the agent."""
    encoder = make_encoder(image_keys, state_dim, latent=None)
    networks = nn.ModuleDict(
        {
            "encoder": encoder,
            "actor": nn.Sequential(MLP(encoder.feature_size, (256, 256)), nn.Linear(256, action_dim)),
            "critic": CriticEnsemble(encoder.feature_size, action_dim, members=2),
            "target_encoder": encoder.target_copy(),
        }
    )
    for name in ("actor", "critic"):
        networks[f"target_{name}"] = copy.deepcopy(networks[name]).requires_grad_(False)
    return Agent(
        networks=networks,
        critic_step=(Objective("critic", critic_loss, trains=("encoder", "critic")),),
        actor_step=(Objective("actor", actor_loss, trains=("actor",)),),
        targets=tuple(TargetUpdate(name, f"target_{name}", RATE) for name in ("encoder", "actor", "critic")),
        draw_noise=lambda generator, size, device: {
            "smoothing": torch.randn(size, action_dim, generator=generator, device=device)
        },
        prepare=prepare,
        policy=policy,
        policy_networks=("encoder", "actor"),
        action_dim=action_dim,
        policy_noise_dim=action_dim,
        settings={"algorithm": "td3", "state_dim": state_dim, "action_dim": action_dim, "image_keys": list(image_keys)},
    )
