"""ReBRAC: losses worked out by hand, whole updates against a plain implementation."""

import copy

import pytest
import torch
from torch import nn

from serl_fast.agents.rebrac import ReBRACConfig, actor_objective, critic_objective, rebrac
from serl_fast.engine import Engine
from tests.agents import plain
from tests.agents.test_td3bc import NOISE, toy_batch, toy_networks


def test_critic_loss_by_hand():
    # As TD3+BC's: a' = 0.05 and 1, targets' minimum 0.3 and 1.75; less 2 * 0.04 and 2 * 1 (next actions 0.25 and 0).
    loss = critic_objective(ReBRACConfig(critic_penalty=2.0)).loss(toy_networks(), toy_batch(), NOISE)
    y = 1 + 0.5 * (0.3 - 0.08), 2 + 0.9 * (1.75 - 2.0)
    expected = (2 * (0.5 - y[0]) ** 2 + (1.5 - y[1]) ** 2 + (-1.5 - y[1]) ** 2) / 4
    assert loss.value.item() == pytest.approx(expected, rel=1e-5)
    assert loss.metrics["next_penalty"].item() == pytest.approx(0.52)


def test_the_penalty_is_masked_at_the_end_of_an_episode():
    loss = critic_objective(ReBRACConfig(critic_penalty=2.0)).loss
    batch = {**toy_batch(), "discounts": torch.zeros(2)}
    other = {**batch, "next_actions": torch.full((2, 1), 5.0)}
    assert loss(toy_networks(), batch, NOISE).value == loss(toy_networks(), other, NOISE).value


@pytest.mark.parametrize(("normalize_q", "weight"), [(True, 1 / 0.75), (False, 1.0)])
def test_actor_loss_by_hand(normalize_q, weight):
    # min of (3s, 0): 0 and -1.5; squared errors 0.25 and 2.25.
    config = ReBRACConfig(actor_penalty=0.5, normalize_q=normalize_q)
    loss = actor_objective(config).loss(toy_networks(), toy_batch(), {})
    assert loss.value.item() == pytest.approx(0.5 * 1.25 + weight * 0.75)
    assert loss.metrics["q_weight"].item() == pytest.approx(weight)
    assert loss.metrics["bc_error"].item() == pytest.approx(1.25)


def test_updates_equal_a_plain_implementation():
    torch.manual_seed(0)
    config = ReBRACConfig(hidden_widths=(24, 24, 24), actor_penalty=0.3, critic_penalty=0.2)
    agent, drawn = plain.recorded_noise(rebrac(plain.STATE, plain.ACTION, (), config))
    networks = agent.networks
    actor = nn.Sequential(plain.from_mlp(networks["actor"].trunk, networks["actor"].mean), nn.Tanh())
    qs = plain.members(networks["critic"])
    assert sum(isinstance(module, nn.LayerNorm) for module in qs[0]) == 3
    old_actor, old_qs = copy.deepcopy(actor), copy.deepcopy(qs)
    actor_adam = torch.optim.Adam(actor.parameters(), lr=1e-3)
    q_adam = torch.optim.Adam(nn.ModuleList(qs).parameters(), lr=1e-3)
    engine = Engine(agent, seed=0)
    for index, batch in enumerate(plain.batches(4)):
        engine.update(batch, with_actor=index % 2 == 1)
        s, a, following = batch["observations"]["state"], batch["actions"], batch["next_observations"]["state"]
        with torch.no_grad():
            next_a = old_actor(following) + (0.2 * drawn[index]["smoothing"]).clamp(-0.5, 0.5)
            next_a = next_a.clamp(-1, 1)
            target = torch.minimum(*(plain.value_of(q, following, next_a) for q in old_qs))
            target = target - 0.2 * ((next_a - batch["next_actions"]) ** 2).sum(-1)
            y = batch["rewards"] + batch["discounts"] * target
        q_adam.zero_grad()
        (sum(plain.mse(plain.value_of(q, s, a), y) for q in qs) / 2).backward()
        q_adam.step()
        if index % 2 == 1:
            pi = actor(s)
            q = torch.minimum(*(plain.value_of(q, s, pi) for q in qs))
            actor_adam.zero_grad()
            (0.3 * ((pi - a) ** 2).sum(-1) - q / q.abs().mean().detach()).mean().backward()
            actor_adam.step()
            plain.follow([*old_qs, old_actor], [*qs, actor], 0.005)
    plain.assert_same(plain.members(networks["critic"]), qs)
    plain.assert_same(plain.members(networks["target_critic"]), old_qs)
    plain.assert_same(plain.from_mlp(networks["actor"].trunk, networks["actor"].mean), actor[0])


@pytest.mark.parametrize("name", ["actor_penalty", "critic_penalty", "policy_noise", "noise_clip", "exploration_noise"])
def test_settings_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name} is -1.0; it must be at least 0"):
        ReBRACConfig(**{name: -1.0})
