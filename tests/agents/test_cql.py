"""CQL and Cal-QL: losses worked out by hand, whole updates against a plain implementation, the Lagrange factor."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, TanhTransform
from torch.nn import functional as F

from serl_fast.agents.calql import CalQLConfig, calql
from serl_fast.agents.cql import CQLConfig, Multiplier, actor_objective, cql, critic_objective, noise_source
from serl_fast.engine import Engine
from serl_fast.networks.policy import ActionDistribution, Temperature
from tests.agents import plain
from tests.agents.test_iql import Call

SMALL = {"hidden_widths": (24, 24)}
SLOPE = 1 - math.tanh(0.5) ** 2  # of tanh at 0.5


def toy_networks():
    """pi(s) = tanh(N(0, 1)); one critic, Q(s, a) = s + a; the target's value is 3 s' + a'."""

    def actor(features):
        zeros = torch.zeros(len(features), 1)
        return ActionDistribution(zeros, zeros + 1)

    def q(scale):
        def values(s, a):
            return (scale * s[:, None] + a).squeeze(-1)[None] if a.dim() == 3 else (scale * s + a).squeeze(-1)[None]

        return Call(values)

    encoder = Call(lambda observations: observations["state"])
    networks = {"encoder": encoder, "target_encoder": encoder, "actor": Call(actor)}
    return networks | {"critic": q(1), "target_critic": q(3), "temperature": Temperature(0.5)}


def toy_batch():
    return {
        "observations": {"state": torch.tensor([[0.5]])},
        "next_observations": {"state": torch.tensor([[1.0]])},
        "actions": torch.tensor([[0.25]]),
        "rewards": torch.tensor([-1.0]),
        "discounts": torch.tensor([0.5]),
        "mc_returns": torch.tensor([0.75]),
    }


def toy_noise():
    """N = 1: a random action 2 * 0.75 - 1, one of the policy at s, tanh(0), and one at s', tanh(0.5)."""
    return {
        "next_actions": torch.zeros(1, 1),
        "random_samples": torch.full((1, 1, 1), 0.75),
        "current_samples": torch.zeros(1, 1, 1),
        "next_samples": torch.full((1, 1, 1), 0.5),
        "actions": torch.full((1, 1), 0.5),
    }


LOG_PI_0 = -0.5 * math.log(2 * math.pi)
LOG_PI_HALF = LOG_PI_0 - 0.125 - math.log(SLOPE)


def test_critic_loss_by_hand():
    # Q(s, a) = 0.75; y = -1 + 0.5 * 3 = 0.5. Q of the samples: 1, 0.5, 0.5 + tanh(0.5).
    loss = critic_objective(CQLConfig(alpha=2.0, sampled_actions=1)).loss(toy_networks(), toy_batch(), toy_noise())
    terms = 1 - math.log(0.5), 0.5 - LOG_PI_0, 0.5 + math.tanh(0.5) - LOG_PI_HALF
    gap = math.log(sum(map(math.exp, terms))) - 0.75
    assert loss.metrics["td_error"].item() == pytest.approx(0.0625)
    assert loss.metrics["cql_gap"].item() == pytest.approx(gap, rel=1e-6)
    assert loss.value.item() == pytest.approx(0.0625 + 2 * gap, rel=1e-6)
    assert loss.metrics["q_random"].item() == pytest.approx(1.0)
    assert loss.metrics["q_policy"].item() == pytest.approx(0.5 + math.tanh(0.5) / 2, rel=1e-6)


def test_without_importance_sampling_the_data_is_a_term():
    config = CQLConfig(alpha=2.0, sampled_actions=1, importance_sampling=False, cql_temperature=0.5)
    loss = critic_objective(config).loss(toy_networks(), toy_batch(), toy_noise())
    terms = 1.0, 0.75, 0.5, 0.5 + math.tanh(0.5)
    gap = 0.5 * math.log(sum(math.exp(2 * term) for term in terms)) - 0.75
    assert loss.metrics["cql_gap"].item() == pytest.approx(gap, rel=1e-6)


def test_calibration_lifts_the_policy_alone():
    # Return 0.75: Q(s, tanh 0) = 0.5 is lifted to it, 0.5 + tanh(0.5) is above it; the random action's is left.
    batch = {**toy_batch(), "mc_returns": torch.tensor([0.75])}
    calibrated = critic_objective(CQLConfig(sampled_actions=1), lambda batch: batch["mc_returns"])
    loss = calibrated.loss(toy_networks(), batch, toy_noise())
    terms = 1 - math.log(0.5), 0.75 - LOG_PI_0, 0.5 + math.tanh(0.5) - LOG_PI_HALF
    assert loss.metrics["cql_gap"].item() == pytest.approx(math.log(sum(map(math.exp, terms))) - 0.75, rel=1e-6)
    assert loss.metrics["bounded"].item() == 0.5
    unbounded = calibrated.loss(toy_networks(), {**batch, "mc_returns": torch.tensor([-math.inf])}, toy_noise())
    plainly = critic_objective(CQLConfig(sampled_actions=1)).loss(toy_networks(), batch, toy_noise())
    assert unbounded.value == plainly.value


def test_max_target_backup_and_backup_entropy():
    # Next actions tanh(0), tanh(0.5): the best is the second.
    noise = toy_noise() | {"next_actions": torch.tensor([[[0.0], [0.5]]])}
    config = CQLConfig(sampled_actions=1, max_target_backup=True, backup_entropy=True)
    loss = critic_objective(config).loss(toy_networks(), toy_batch(), noise)
    expected = -1 + 0.5 * (3 + math.tanh(0.5) - 0.5 * LOG_PI_HALF)
    assert loss.metrics["q_target"].item() == pytest.approx(expected, rel=1e-6)


def test_largest_gap():
    config = CQLConfig(sampled_actions=1, largest_gap=0.5)
    loss = critic_objective(config).loss(toy_networks(), toy_batch(), toy_noise())
    assert loss.metrics["cql_gap"].item() == 0.5


@pytest.mark.parametrize(("gap", "grows"), [(-1.0, True), (100.0, False)])
def test_lagrange_factor(gap, grows):
    """It weighs the critics' term, and grows while the term is above the gap."""
    networks = toy_networks() | {"multiplier": Multiplier()}
    loss = critic_objective(CQLConfig(alpha=2.0, sampled_actions=1, target_gap=gap)).loss(
        networks, toy_batch(), toy_noise()
    )
    excess = loss.metrics["cql_gap"].item() - gap
    (gradient,) = torch.autograd.grad(loss.value, [networks["multiplier"].raw])
    assert gradient.item() == pytest.approx(-2 * math.e * excess, rel=1e-5)
    assert (gradient.item() < 0) == grows
    assert loss.metrics["multiplier"].item() == pytest.approx(math.e)


def test_actor_loss_by_hand():
    # a = tanh(0.5); temperature 0.5; Q = 0.5 + a; the entropy's target is -A = -1.
    networks = toy_networks()
    loss = actor_objective(CQLConfig(), 1).loss(networks, toy_batch(), toy_noise())
    policy_loss = 0.5 * LOG_PI_HALF - 0.5 - math.tanh(0.5)
    assert loss.metrics["loss"].item() == pytest.approx(policy_loss, rel=1e-6)
    assert loss.value.item() == pytest.approx(policy_loss + 0.5 * (-LOG_PI_HALF + 1), rel=1e-6)
    assert loss.metrics["q_policy"].item() == pytest.approx(0.5 + math.tanh(0.5))
    assert loss.metrics["bc_error"].item() == pytest.approx(0.0625)


def plain_policy(networks):
    """Mean and log standard deviation as two plain networks with one trunk; returns them and their distribution."""
    mean = plain.from_mlp(networks["actor"].trunk, networks["actor"].mean)
    head = plain.from_mlp(networks["actor"].trunk, networks["actor"].log_std)[-1]

    def distribution(states):
        std = head(mean[:-1](states)).clamp(-20, 2).exp()
        return Normal(mean(states), std)

    return mean, head, distribution


def draw(distribution, states, noise):
    """Samples and their log-probabilities, for the noise [B, A] or [B, N, A] that was drawn."""
    if noise.dim() == 3:
        states = states.unsqueeze(1).expand(-1, noise.shape[1], -1)
    normal = distribution(states)
    u = normal.mean + normal.stddev * noise
    slopes = TanhTransform().log_abs_det_jacobian(u, torch.tanh(u))
    return torch.tanh(u), (normal.log_prob(u) - slopes).sum(-1)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("gap", [None, 0.8])
def test_updates_equal_a_plain_implementation(calibrated, gap):
    torch.manual_seed(0)
    settings = {**SMALL, "alpha": 5.0, "sampled_actions": 4, "target_gap": gap, "actor_learning_rate": 1e-3}
    agent = calql(plain.STATE, plain.ACTION, (), CalQLConfig(**settings)) if calibrated else None
    agent = agent or cql(plain.STATE, plain.ACTION, (), CQLConfig(**settings))
    agent, drawn = plain.recorded_noise(agent)
    networks = agent.networks
    mean, head, pi = plain_policy(networks)
    qs = plain.members(networks["critic"])
    old_qs = copy.deepcopy(qs)
    raw, log_factor = nn.Parameter(torch.tensor(math.log(math.e - 1))), nn.Parameter(torch.tensor(1.0))
    q_adam = torch.optim.Adam(nn.ModuleList(qs).parameters(), lr=3e-4)
    factor_adam = torch.optim.Adam([log_factor], lr=3e-4)
    actor_adam = torch.optim.Adam([*mean.parameters(), *head.parameters()], lr=1e-3)
    raw_adam = torch.optim.Adam([raw], lr=1e-3)
    engine = Engine(agent, seed=0)
    for index, batch in enumerate(plain.batches(4)):
        engine.update(batch)
        noise, s, a = drawn[index], batch["observations"]["state"], batch["actions"]
        following = batch["next_observations"]["state"]
        with torch.no_grad():
            next_a, _ = draw(pi, following, noise["next_actions"])
            y = batch["rewards"] + batch["discounts"] * torch.minimum(
                *(plain.value_of(q, following, next_a) for q in old_qs)
            )
            random = noise["random_samples"] * 2 - 1
            current, current_log_pi = draw(pi, s, noise["current_samples"])
            after, after_log_pi = draw(pi, following, noise["next_samples"])
        q_loss, factor_loss = 0, 0
        for q in qs:
            of_data, of_current = plain.value_of(q, s, a), plain.value_of(q, s, current)
            of_after = plain.value_of(q, s, after)
            if calibrated:
                bound = batch["mc_returns"].reshape(-1, 1).repeat(1, 4)
                of_current, of_after = torch.maximum(of_current, bound), torch.maximum(of_after, bound)
            cat = torch.cat(
                [
                    plain.value_of(q, s, random) - math.log(0.5**plain.ACTION),
                    of_after - after_log_pi,
                    of_current - current_log_pi,
                ],
                dim=1,
            )
            difference = (torch.logsumexp(cat, dim=1) - of_data).mean()
            if gap is not None:
                factor_loss = factor_loss - log_factor.exp() * 5.0 * (difference.detach() - gap) / 2
                difference = log_factor.exp().detach() * (difference - gap)
            q_loss = q_loss + plain.mse(of_data, y) / 2 + 5.0 * difference / 2
        q_adam.zero_grad()
        q_loss.backward()
        q_adam.step()
        if gap is not None:
            factor_adam.zero_grad()
            factor_loss.backward()
            factor_adam.step()
        new, log_pi = draw(pi, s, noise["actions"])
        q = torch.minimum(*(plain.value_of(q, s, new) for q in qs))
        actor_adam.zero_grad()
        (F.softplus(raw).detach() * log_pi - q).mean().backward()
        actor_adam.step()
        raw_adam.zero_grad()
        (-F.softplus(raw) * (log_pi - plain.ACTION).detach().mean()).backward()
        raw_adam.step()
        plain.follow(old_qs, qs, 0.005)
    plain.assert_same(plain.members(networks["critic"]), qs)
    plain.assert_same(plain.members(networks["target_critic"]), old_qs)
    plain.assert_same(plain.from_mlp(networks["actor"].trunk, networks["actor"].mean), mean)
    assert networks["temperature"].raw.item() == pytest.approx(raw.item(), abs=2e-5)
    if gap is not None:
        assert networks["multiplier"].raw.item() == pytest.approx(log_factor.item(), abs=2e-5)
        assert log_factor.item() > 1


def test_noise():
    noise = noise_source((), CQLConfig(), 3)(torch.Generator().manual_seed(0), 500, torch.device("cpu"))
    shapes = {name: tuple(value.shape[1:]) for name, value in noise.items()}
    assert shapes == {
        "actions": (3,),
        "next_actions": (3,),
        "current_samples": (10, 3),
        "next_samples": (10, 3),
        "random_samples": (10, 3),
    }
    assert noise["random_samples"].min() >= 0
    assert noise["random_samples"].max() <= 1
    assert noise["current_samples"].std().item() == pytest.approx(1, abs=0.05)
    several = noise_source((), CQLConfig(max_target_backup=True), 3)(torch.Generator(), 5, torch.device("cpu"))
    assert several["next_actions"].shape == (5, 10, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0; it must be at least 0"),
        ({"sampled_actions": 0}, "sampled_actions is 0; it must be at least 1"),
        ({"cql_temperature": 0.0}, "cql_temperature is 0.0; it must be positive"),
        ({"initial_temperature": 0.0}, "initial_temperature is 0.0; it must be positive"),
        ({"target_gap": math.inf}, "target_gap is inf; it must be a finite number"),
        ({"target_entropy": math.nan}, "target_entropy is nan; it must be a finite number"),
        ({"std_min": 0.0}, "std_min 0.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    for config in (CQLConfig, CalQLConfig):
        with pytest.raises(ValueError, match=message):
            config(**settings)
