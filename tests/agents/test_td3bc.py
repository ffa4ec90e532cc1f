"""TD3+BC: losses worked out by hand, whole updates against a plain implementation, the delay of its targets."""

import copy

import pytest
import torch
from torch import nn

from serl_fast.agents.td3bc import TD3BCConfig, actor_objective, critic_objective, td3bc
from serl_fast.engine import Engine
from tests.agents import plain
from tests.agents.test_iql import Call

SMALL = {"hidden_widths": (24, 24)}


def toy_networks():
    """pi(s) = s, of the target s too; Q of two members: s + 2a and s - a; of the targets s + a and 4."""
    encoder = Call(lambda observations: observations["state"])
    return {
        "encoder": encoder,
        "target_encoder": encoder,
        "actor": Call(lambda s: s),
        "target_actor": Call(lambda s: s),
        "critic": Call(lambda s, a: torch.stack([(s + 2 * a)[:, 0], (s - a)[:, 0]])),
        "target_critic": Call(lambda s, a: torch.stack([(s + a)[:, 0], torch.full((len(s),), 4.0)])),
    }


def toy_batch():
    return {
        "observations": {"state": torch.tensor([[0.5], [-0.5]])},
        "next_observations": {"state": torch.tensor([[0.25], [0.75]])},
        "actions": torch.tensor([[0.0], [1.0]]),
        "next_actions": torch.tensor([[0.25], [0.0]]),
        "rewards": torch.tensor([1.0, 2.0]),
        "discounts": torch.tensor([0.5, 0.9]),
    }


NOISE = {"smoothing": torch.tensor([[-1.0], [9.0]])}


def test_critic_loss_by_hand():
    # Noise 0.2 * (-1, 9) = -0.2 and 1.8, cut to 0.5; a' = 0.05, and 1.25 cut to 1. Targets' minimum: 0.3 and 1.75.
    # y = 1.15 and 3.575; members of (s, a): 0.5, 0.5 and 1.5, -1.5.
    loss = critic_objective(TD3BCConfig()).loss(toy_networks(), toy_batch(), NOISE)
    expected = (2 * 0.65**2 + 2.075**2 + 5.075**2) / 4
    assert loss.value.item() == pytest.approx(expected, rel=1e-6)
    assert loss.metrics["q_target"].item() == pytest.approx((1.15 + 3.575) / 2)
    assert loss.metrics["q_data"].item() == pytest.approx(0.25)


def test_actor_loss_by_hand():
    # Q_0(s, pi(s)) = 3s = 1.5 and -1.5: mean 0, mean magnitude 1.5. Errors 0.25 and 2.25.
    loss = actor_objective(TD3BCConfig(alpha=3.0)).loss(toy_networks(), toy_batch(), {})
    assert loss.value.item() == pytest.approx(1.25)
    assert loss.metrics["q_weight"].item() == pytest.approx(2.0)
    assert loss.metrics["bc_error"].item() == pytest.approx(1.25)
    batch = toy_batch()
    batch["observations"]["state"] = torch.tensor([[0.5], [0.25]])  # Q_0 = 1.5, 0.75; errors 0.25, 0.5625
    loss = actor_objective(TD3BCConfig(alpha=3.0)).loss(toy_networks(), batch, {})
    assert loss.value.item() == pytest.approx((0.25 + 0.5625) / 2 - 3.0)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_updates_equal_a_plain_implementation(layer_norm):
    torch.manual_seed(0)
    config = TD3BCConfig(
        **SMALL, critic_layer_norm=layer_norm, actor_learning_rate=1e-3, critic_learning_rate=2e-3, reward_scale=2.0,
        reward_bias=-0.5,
    )  # fmt: skip
    agent, drawn = plain.recorded_noise(td3bc(plain.STATE, plain.ACTION, (), config))
    networks = agent.networks
    actor = nn.Sequential(plain.from_mlp(networks["actor"].trunk, networks["actor"].mean), nn.Tanh())
    qs = plain.members(networks["critic"])
    old_actor, old_qs = copy.deepcopy(actor), copy.deepcopy(qs)
    actor_adam = torch.optim.Adam(actor.parameters(), lr=1e-3)
    q_adam = torch.optim.Adam(nn.ModuleList(qs).parameters(), lr=2e-3)
    engine = Engine(agent, seed=0)
    for index, batch in enumerate(plain.batches(6)):
        engine.update(batch, with_actor=index % 2 == 1)
        s, a, following = batch["observations"]["state"], batch["actions"], batch["next_observations"]["state"]
        with torch.no_grad():
            noise = (0.2 * drawn[index]["smoothing"]).clamp(-0.5, 0.5)
            next_a = (old_actor(following) + noise).clamp(-1, 1)
            target = torch.minimum(*(plain.value_of(q, following, next_a) for q in old_qs))
            y = 2 * batch["rewards"] - 0.5 + batch["discounts"] * target
        q_adam.zero_grad()
        (sum(plain.mse(plain.value_of(q, s, a), y) for q in qs) / 2).backward()
        q_adam.step()
        if index % 2 == 1:
            pi = actor(s)
            q = plain.value_of(qs[0], s, pi)
            actor_adam.zero_grad()
            (-2.5 / q.abs().mean().detach() * q.mean() + plain.mse(pi, a)).backward()
            actor_adam.step()
            plain.follow([*old_qs, old_actor], [*qs, actor], 0.005)
    plain.assert_same(plain.members(networks["critic"]), qs)
    plain.assert_same(plain.members(networks["target_critic"]), old_qs)
    plain.assert_same(plain.from_mlp(networks["actor"].trunk, networks["actor"].mean), actor[0])
    plain.assert_same(plain.from_mlp(networks["target_actor"].trunk, networks["target_actor"].mean), old_actor[0])


def test_targets_wait_for_the_actor():
    agent = td3bc(plain.STATE, plain.ACTION, (), TD3BCConfig(**SMALL))
    engine = Engine(agent, seed=0)
    target = copy.deepcopy(agent.networks["target_critic"].state_dict())
    first, second = plain.batches(2)
    engine.update(first, with_actor=False)
    assert all(torch.equal(p, target[name]) for name, p in agent.networks["target_critic"].state_dict().items())
    engine.update(second)
    assert not torch.equal(agent.networks["target_critic"].head.weight, target["head.weight"])


def test_exploration():
    agent = td3bc(plain.STATE, plain.ACTION, (), TD3BCConfig(**SMALL, exploration_noise=0.5))
    states, noise = {"state": torch.randn(64, plain.STATE)}, torch.randn(64, plain.ACTION)
    mode, sampled = (agent.policy(agent.networks, states, each) for each in (None, noise))
    assert torch.equal(sampled, (mode + 0.5 * noise).clamp(-1, 1))
    assert sampled.abs().max() == 1 > mode.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0; it must be positive"),
        ({"policy_noise": -0.1}, "policy_noise is -0.1; it must be at least 0"),
        ({"noise_clip": float("nan")}, "noise_clip is nan"),
        ({"exploration_noise": -1.0}, "exploration_noise is -1.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TD3BCConfig(**settings)
