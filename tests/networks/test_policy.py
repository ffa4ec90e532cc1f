"""The Gaussian policy against torch.distributions, by hand, and against numbers recorded from the original."""

import math

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.nn import functional as F

from serl_fast.networks.policy import ActionDistribution, Policy, Temperature

TOLERANCE = 1e-5  # of the largest magnitude; both sides are float32


def test_log_probability_is_that_of_a_transformed_normal():
    torch.manual_seed(0)
    mean, std, noise = torch.randn(5, 3), torch.rand(5, 3) + 0.1, torch.randn(5, 3)
    actions, log_probs = ActionDistribution(mean, std).sample(noise)
    reference = TransformedDistribution(Normal(mean.double(), std.double()), TanhTransform(cache_size=1))
    pre_tanh = (mean + std * noise).double()
    expected = Normal(mean.double(), std.double()).log_prob(pre_tanh) - reference.transforms[0].log_abs_det_jacobian(
        pre_tanh, pre_tanh.tanh()
    )
    torch.testing.assert_close(log_probs.double(), expected.sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actions, torch.tanh(mean + std * noise))


def test_log_probability_without_squashing_is_that_of_a_normal():
    torch.manual_seed(0)
    mean, std, noise = torch.randn(5, 3), torch.rand(5, 3) + 0.1, torch.randn(5, 3)
    distribution = ActionDistribution(mean, std, squash=False)
    actions, log_probs = distribution.sample(noise)
    torch.testing.assert_close(actions, mean + std * noise)
    torch.testing.assert_close(log_probs, Normal(mean, std).log_prob(actions).sum(-1))
    assert torch.equal(distribution.mode, mean)
    assert torch.equal(distribution.stddev(), std)


@pytest.mark.parametrize("squash", [True, False])
def test_a_sample_and_its_action_have_the_same_log_probability(squash):
    torch.manual_seed(0)
    distribution = ActionDistribution(torch.randn(5, 3) / 2, torch.rand(5, 3) + 0.1, squash)
    noise = torch.randn(4, 5, 3)
    actions, log_probs = distribution.sample(noise)
    assert actions.shape == (4, 5, 3)
    assert log_probs.shape == (4, 5)
    torch.testing.assert_close(distribution.log_prob(actions), log_probs, rtol=1e-4, atol=1e-4)
    one, one_log_prob = distribution.sample(noise[2])
    assert torch.equal(actions[2], one)
    assert torch.equal(log_probs[2], one_log_prob)


def test_log_probability_stays_finite_far_out():
    _, log_probs = ActionDistribution(torch.full((1, 1), 40.0), torch.ones(1, 1)).sample(torch.zeros(1, 1))
    # Far out the Jacobian is 4 exp(-2u): log pi = -log(2 pi)/2 - log 4 + 2u.
    assert log_probs.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - math.log(4) + 80.0, rel=1e-6)


def test_nothing_is_clipped_on_the_boundary():
    distribution = ActionDistribution(torch.zeros(3, 1), torch.ones(3, 1))
    log_probs = distribution.log_prob(torch.tensor([[1.0], [1.0000001], [0.9999999]]))
    assert log_probs.isfinite().tolist() == [False, False, True]


def test_std_is_clipped_after_the_exponential():
    policy = Policy(4, 2, (8,), std_min=0.5, std_max=0.6)
    distribution = policy(torch.randn(16, 4) * 10)
    assert distribution.std.min() >= 0.5
    assert distribution.std.max() <= 0.6
    # Outside the bounds the std takes no gradient.
    with torch.no_grad():
        policy.log_std.weight.zero_()
        policy.log_std.bias.copy_(torch.tensor([-5.0, math.log(0.55)]))
    (gradient,) = torch.autograd.grad(policy(torch.randn(1, 4)).std.sum(), policy.log_std.bias)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.55]))


@pytest.mark.parametrize("parameterization", ["exp", "softplus", "uniform", "fixed"])
def test_parameterizations_of_the_std(parameterization):
    torch.manual_seed(0)
    fixed = [0.3, 7.0] if parameterization == "fixed" else None
    policy = Policy(4, 2, (8,), std_parameterization=parameterization, fixed_std=fixed)
    features = torch.randn(5, 4)
    std = policy(features).std
    assert std.shape == (5, 2)
    hidden = policy.trunk(features)
    if parameterization == "exp":
        torch.testing.assert_close(std, policy.log_std(hidden).exp())
    elif parameterization == "softplus":
        torch.testing.assert_close(std, F.softplus(policy.log_std(hidden)))
    elif parameterization == "uniform":
        assert policy.log_std is None
        assert torch.equal(std, torch.ones(5, 2))  # log_stds start at zero
        torch.autograd.grad(std.sum(), policy.log_stds)
    else:
        assert torch.equal(std, torch.tensor([[0.3, 5.0]]).expand(5, 2))  # the clip holds here too
        assert not [name for name, _ in policy.named_parameters() if "std" in name]
    # The temperature scales the variance, after the clip.
    torch.testing.assert_close(policy(features, temperature=0.25).std, std / 2)
    assert torch.equal(policy(features, temperature=0.25).mean, policy(features).mean)


def test_names_of_the_parameters():
    """What checkpoints hold."""
    names = set(Policy(4, 2, (8,)).state_dict())
    layers = {
        f"{layer}.{leaf}"
        for layer in ("trunk.layers.0", "trunk.norms.0", "mean", "log_std")
        for leaf in ("weight", "bias")
    }
    assert names == layers
    assert "log_stds" in Policy(4, 2, (8,), std_parameterization="uniform").state_dict()
    assert "fixed_std" in Policy(4, 2, (8,), std_parameterization="fixed", fixed_std=(1.0, 1.0)).state_dict()


def test_dropout_reaches_the_hidden_layers():
    torch.manual_seed(0)
    policy, features = Policy(4, 2, (8, 6)), torch.randn(3, 4)
    masks = [torch.zeros(3, 8), torch.zeros(3, 6)]
    torch.testing.assert_close(policy(features, masks).mean, torch.zeros(3, 2))  # every bias is zero at first
    assert not torch.equal(policy(features).mean, torch.zeros(3, 2))


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"'tanh'; choose 'exp', 'softplus', 'uniform' or 'fixed'"):
        Policy(4, 2, (8,), std_parameterization="tanh")
    with pytest.raises(ValueError, match="None values; std_parameterization 'fixed' takes 2"):
        Policy(4, 2, (8,), std_parameterization="fixed")
    with pytest.raises(ValueError, match="3 values; std_parameterization 'fixed' takes 2"):
        Policy(4, 2, (8,), std_parameterization="fixed", fixed_std=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="2 values; std_parameterization 'exp' takes None"):
        Policy(4, 2, (8,), fixed_std=(1.0, 1.0))


def test_temperature_starts_where_asked():
    assert Temperature(0.01)().item() == pytest.approx(0.01, rel=1e-5)
    assert Temperature(0.01).raw.item() == pytest.approx(-4.60016, rel=1e-5)
    with pytest.raises(ValueError, match="must be positive"):
        Temperature(0.0)


# --- against recordings --------------------------------------------------------------------------------

VARIANTS = ("launcher", "exp_nosquash", "class_default_uniform", "softplus", "fixed")


@pytest.fixture(params=VARIANTS)
def recorded_policy(request, recording):
    """(the policy with recorded parameters, the function that gives this variant's arrays)."""
    arrays, variant = recording("policy"), request.param
    network, head = (arrays.config["variants"][variant][part] for part in ("network", "policy"))
    policy = Policy(
        arrays.config["obs_dim"],
        arrays.config["action_dim"],
        network["hidden_dims"],
        std_parameterization=head["std_parameterization"],
        fixed_std=head.get("fixed_std"),
        squash=head["tanh_squash_distribution"],
        activate_final=network.get("activate_final", False),
        layer_norm=network.get("use_layer_norm", False),
        activation=network.get("activations", "swish"),
        **{bound: head[bound] for bound in ("std_min", "std_max") if bound in head},
    )
    prefix = f"{variant}/params"
    arrays.mlp(policy.trunk.layers, policy.trunk.norms, f"{prefix}/network")
    arrays.dense(policy.mean, f"{prefix}/Dense_0")
    if policy.log_std is not None:
        arrays.dense(policy.log_std, f"{prefix}/Dense_1")
    if policy.log_stds is not None:
        policy.log_stds.data.copy_(arrays[f"{prefix}/log_stds"])
    return policy, lambda name: arrays.get(f"{variant}/{name}")


def test_distribution_against_the_original(recorded_policy, error):
    policy, recorded = recorded_policy
    distribution, actions = policy(recorded("obs")), recorded("actions")
    assert error(distribution.mean, recorded("mean")) < TOLERANCE
    assert error(distribution.std, recorded("std")) < TOLERANCE
    assert error(distribution.mode, recorded("mode")) < TOLERANCE
    assert error(distribution.stddev(), recorded("stddev_method")) < TOLERANCE
    assert error(distribution.log_prob(actions), recorded("log_prob_actions")) < TOLERANCE
    samples, log_probs = distribution.sample(recorded("eps"))
    assert error(samples, recorded("sample")) < TOLERANCE
    assert error(log_probs, recorded("sample_log_prob")) < TOLERANCE
    cooler = policy(recorded("obs"), temperature=0.5)
    assert error(cooler.mean, recorded("mean_temperature0.5")) < TOLERANCE
    assert error(cooler.std, recorded("std_temperature0.5")) < TOLERANCE
    assert error(cooler.mode, recorded("mode_temperature0.5")) < TOLERANCE
    assert error(cooler.log_prob(actions), recorded("log_prob_actions_temperature0.5")) < TOLERANCE
    if recorded("non_squash/mode") is not None:
        plain = distribution._replace(squash=False)
        assert error(plain.mode, recorded("non_squash/mode")) < TOLERANCE
        assert error(plain.log_prob(actions), recorded("non_squash/log_prob_actions")) < TOLERANCE


def test_boundary_against_the_original(recorded_policy):
    """At 0.9999999 both sides are within float32's rounding of the atanh; on and beyond 1 both are no numbers."""
    policy, recorded = recorded_policy
    if recorded("edge/actions") is None:
        pytest.skip("nothing is recorded on the boundary for a policy without squashing")
    actions = recorded("edge/actions")
    log_probs = policy(recorded("obs")[: len(actions)]).log_prob(actions)
    torch.testing.assert_close(log_probs.detach(), recorded("edge/log_prob"), rtol=1e-4, atol=0, equal_nan=True)
