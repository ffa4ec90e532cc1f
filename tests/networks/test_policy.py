"""The tanh-Gaussian against torch.distributions, and the stacked ensemble against single networks."""

import math

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from serl_fast.networks.critic import CriticEnsemble, GraspCritic
from serl_fast.networks.mlp import MLP, activation
from serl_fast.networks.policy import Policy, TanhGaussian, Temperature


def test_log_probability_is_that_of_a_transformed_normal():
    torch.manual_seed(0)
    mean, std, noise = torch.randn(5, 3), torch.rand(5, 3) + 0.1, torch.randn(5, 3)
    actions, log_probs = TanhGaussian(mean, std).sample(noise)
    reference = TransformedDistribution(Normal(mean.double(), std.double()), TanhTransform(cache_size=1))
    pre_tanh = (mean + std * noise).double()
    expected = Normal(mean.double(), std.double()).log_prob(pre_tanh) - reference.transforms[0].log_abs_det_jacobian(
        pre_tanh, pre_tanh.tanh()
    )
    torch.testing.assert_close(log_probs.double(), expected.sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actions, torch.tanh(mean + std * noise))


def test_log_probability_stays_finite_far_out():
    _, log_probs = TanhGaussian(torch.full((1, 1), 40.0), torch.ones(1, 1)).sample(torch.zeros(1, 1))
    # Far out the Jacobian is 4 exp(-2u): log pi = -log(2 pi)/2 - log 4 + 2u.
    assert log_probs.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - math.log(4) + 80.0, rel=1e-6)


def test_std_is_clipped_after_the_exponential():
    policy = Policy(4, 2, (8,), std_min=0.5, std_max=0.6)
    distribution = policy(torch.randn(16, 4) * 10)
    assert distribution.std.min() >= 0.5
    assert distribution.std.max() <= 0.6


def test_each_ensemble_member_is_an_independent_network():
    torch.manual_seed(0)
    ensemble = CriticEnsemble(5, 2, (7, 6), members=3)
    features, actions = torch.randn(4, 5), torch.randn(4, 2)
    q = ensemble(features, actions)
    assert q.shape == (3, 4)
    for member in range(3):
        single = MLP(7, (7, 6))
        with torch.no_grad():
            for index in range(2):
                single.layers[index].weight.copy_(ensemble.layers[index].weight[member].T)
                single.layers[index].bias.copy_(ensemble.layers[index].bias[member, 0])
        expected = (
            single(torch.cat([features, actions], -1)) @ ensemble.head.weight[member] + ensemble.head.bias[member]
        )
        torch.testing.assert_close(q[member], expected.squeeze(-1))
    kept = torch.tensor([2, 0])
    torch.testing.assert_close(ensemble(features, actions, kept), q[kept])


def test_initialisation_is_xavier_uniform_with_zero_bias():
    torch.manual_seed(0)
    layer = CriticEnsemble(200, 56, (256,), members=2).layers[0]
    bound = math.sqrt(6 / (256 + 256))
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not layer.bias.any()


def test_grasp_critic_ends_in_a_linear_layer_without_norm():
    network = GraspCritic(4, 9, (8, 8))
    assert network(torch.randn(3, 4)).shape == (3, 9)
    assert len(network.trunk.norms) == 1
    assert len(network.trunk.layers) == 2


def test_temperature_starts_where_asked():
    assert Temperature(0.01)().item() == pytest.approx(0.01, rel=1e-5)
    assert Temperature(0.01).raw.item() == pytest.approx(-4.60016, rel=1e-5)
    with pytest.raises(ValueError, match="must be positive"):
        Temperature(0.0)


def test_unknown_activation_names_the_choices():
    with pytest.raises(ValueError, match=r"'gelu'.*relu.*tanh"):
        activation("gelu", torch.zeros(1))
