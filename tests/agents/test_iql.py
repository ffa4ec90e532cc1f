"""IQL: losses worked out by hand, whole updates against a plain implementation, what trains what."""

import copy
import math

import pytest
import torch
from torch import nn

from serl_fast.agents.iql import (
    IQLConfig,
    actor_objective,
    critic_objective,
    distribution,
    iql,
    noise_source,
    value_objective,
)
from serl_fast.engine import Engine
from serl_fast.networks.policy import ActionDistribution
from tests.agents import plain

SMALL = {"hidden_widths": (24, 24)}
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Call(nn.Module):
    """A network given by a function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def toy_networks():
    """Q(s, a) of two members: a and 2a; the targets' 3a and a; V(s) = s; the policy N(tanh(0), 2)."""

    def actor(features, dropout=None):
        zeros = torch.zeros(len(features), 1)
        return ActionDistribution(zeros, zeros + 2, squash=False)

    encoder = Call(lambda observations: observations["state"])
    return {
        "encoder": encoder,
        "target_encoder": encoder,
        "critic": Call(lambda s, a: torch.stack([a[:, 0], 2 * a[:, 0]])),
        "target_critic": Call(lambda s, a: torch.stack([3 * a[:, 0], a[:, 0]])),
        "value": Call(lambda s: s[:, 0]),
        "actor": Call(actor),
    }


def toy_batch():
    return {
        "observations": {"state": torch.tensor([[0.25], [1.0]])},
        "next_observations": {"state": torch.tensor([[2.0], [4.0]])},
        "actions": torch.tensor([[0.5], [-0.5]]),
        "rewards": torch.tensor([1.0, -1.0]),
        "discounts": torch.tensor([0.5, 0.0]),
    }


def test_value_loss_by_hand():
    # min of (1.5, 0.5) = 0.5 and of (-1.5, -0.5) = -1.5; u = 0.25 and -2.5; weights 0.7 and 0.3.
    loss = value_objective(IQLConfig()).loss(toy_networks(), toy_batch(), {})
    assert loss.value.item() == pytest.approx((0.7 * 0.0625 + 0.3 * 6.25) / 2, rel=1e-6)
    assert loss.metrics["v"].item() == pytest.approx(0.625)
    assert loss.metrics["advantage"].item() == pytest.approx(-1.125)


def test_critic_loss_by_hand():
    # y = 1 + 0.5 * 2 = 2 and -1; members 0.5, 1 and -0.5, -1.
    loss = critic_objective().loss(toy_networks(), toy_batch(), {})
    assert loss.value.item() == pytest.approx((1.5**2 + 1.0**2 + 0.5**2 + 0.0) / 4, rel=1e-6)
    assert loss.metrics["q_data"].item() == pytest.approx(0.0)
    assert loss.metrics["q_target"].item() == pytest.approx(0.5)


def test_actor_loss_by_hand():
    # Advantages 0.25 and -2.5; log N(±0.5; 0, 2) = -1/32 - log 2 - log(2 pi) / 2.
    loss = actor_objective(IQLConfig(beta=2.0)).loss(toy_networks(), toy_batch(), {})
    log_prob = -1 / 32 - math.log(2) - HALF_LOG_TWO_PI
    weights = math.exp(0.5), math.exp(-5.0)
    assert loss.value.item() == pytest.approx(-sum(weights) / 2 * log_prob, rel=1e-6)
    assert loss.metrics["weight"].item() == pytest.approx(sum(weights) / 2, rel=1e-6)
    assert loss.metrics["bc_error"].item() == pytest.approx(0.25)
    assert loss.metrics["q_policy"].item() == 0.0


def test_weights_have_a_limit():
    loss = actor_objective(IQLConfig(beta=1e4, largest_weight=7.0)).loss(toy_networks(), toy_batch(), {})
    assert loss.metrics["weight"].item() == pytest.approx(3.5)
    assert loss.metrics["weight_clipped"].item() == 0.5


def test_updates_equal_a_plain_implementation():
    """Kostrikov's order: V and Q against the old networks, the policy against the new V and the old target."""
    torch.manual_seed(0)
    config = IQLConfig(**SMALL, expectile=0.8, beta=2.0, actor_learning_rate=1e-3, actor_cosine_decay_steps=10)
    agent = iql(plain.STATE, plain.ACTION, (), config)
    networks = agent.networks
    v = plain.from_mlp(networks["value"].trunk, networks["value"].head)
    mean, log_std = plain.from_mlp(networks["actor"].trunk, networks["actor"].mean), nn.Parameter(torch.zeros(3))
    qs = plain.members(networks["critic"])
    old_qs = copy.deepcopy(qs)
    v_adam = torch.optim.Adam(v.parameters(), lr=3e-4)
    q_adam = torch.optim.Adam(nn.ModuleList(qs).parameters(), lr=3e-4)
    actor_adam = torch.optim.Adam([*mean.parameters(), log_std], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(actor_adam, 10)
    engine = Engine(agent, seed=0)
    for batch in plain.batches(6):
        engine.update(batch)
        s, a, following = batch["observations"]["state"], batch["actions"], batch["next_observations"]["state"]
        with torch.no_grad():
            target = torch.minimum(*(plain.value_of(q, s, a) for q in old_qs))
            y = batch["rewards"] + batch["discounts"] * v(following).squeeze(-1)
        u = target - v(s).squeeze(-1)
        v_loss = ((0.8 - (u < 0).float()).abs() * u**2).mean()
        q_loss = sum(plain.mse(plain.value_of(q, s, a), y) for q in qs) / 2
        for adam, loss in ((v_adam, v_loss), (q_adam, q_loss)):
            adam.zero_grad()
            loss.backward()
            adam.step()
        weights = (2.0 * (target - v(s).squeeze(-1))).exp().clamp(max=100).detach()
        normal = torch.distributions.Normal(mean(s).tanh(), log_std.exp())
        actor_adam.zero_grad()
        (-weights * normal.log_prob(a).sum(-1)).mean().backward()
        actor_adam.step()
        schedule.step()
        plain.follow(old_qs, qs, 0.005)
    plain.assert_same(plain.from_mlp(networks["value"].trunk, networks["value"].head), v)
    plain.assert_same(plain.members(networks["critic"]), qs)
    plain.assert_same(plain.members(networks["target_critic"]), old_qs)
    plain.assert_same(plain.from_mlp(networks["actor"].trunk, networks["actor"].mean), mean)
    torch.testing.assert_close(networks["actor"].log_stds, log_std, rtol=0, atol=2e-5)


def test_policy_is_around_a_tanh_and_cut_at_the_limits():
    agent = iql(plain.STATE, plain.ACTION, (), IQLConfig(**SMALL))
    states = {"state": 100 * torch.randn(64, plain.STATE)}
    mode = agent.policy(agent.networks, states, None)
    fitted = distribution(agent.networks, agent.networks["encoder"](states))
    assert torch.equal(mode, fitted.mean)
    assert mode.abs().max() <= 1
    noise = torch.randn(64, plain.ACTION)
    sampled = agent.policy(agent.networks, states, noise)
    assert torch.equal(sampled, (mode + fitted.std * noise).clamp(-1, 1))
    assert sampled.abs().max() == 1


def test_dropout_acts_on_the_policy_in_training():
    config = IQLConfig(**SMALL, dropout=0.5)
    agent = iql(plain.STATE, plain.ACTION, (), config)
    noise = noise_source((), config)(torch.Generator().manual_seed(0), 4096, torch.device("cpu"))
    assert {name: tuple(mask.shape) for name, mask in noise.items()} == {
        "hidden_dropout_0": (4096, 24),
        "hidden_dropout_1": (4096, 24),
    }
    assert noise["hidden_dropout_0"].unique().tolist() == [0, 2]
    batch = next(plain.batches(1))
    masks = {name: mask[: plain.ROWS] for name, mask in noise.items()}
    loss = actor_objective(config).loss
    plainly = loss(agent.networks, batch, {}).value
    for name in masks:
        assert not torch.equal(
            loss(agent.networks, batch, {**{n: torch.ones_like(m) for n, m in masks.items()}, name: masks[name]}).value,
            plainly,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expectile": 1.0}, "expectile is 1.0; it must be in \\(0, 1\\)"),
        ({"beta": -1.0}, "beta is -1.0; it must be at least 0"),
        ({"largest_weight": 0.0}, "largest_weight is 0.0; it must be positive"),
        ({"std_parameterization": "fixed"}, "std_parameterization is 'fixed'; choose"),
        ({"std_min": 3.0, "std_max": 2.0}, "std_min 3.0 and std_max 2.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"actor_cosine_decay_steps": 0}, "cosine_decay_steps is 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        IQLConfig(**settings)
