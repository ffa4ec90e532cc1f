"""The stacked ensemble against single networks, and critics against numbers recorded from the original."""

import math

import pytest
import torch

from serl_fast.networks.critic import CriticEnsemble, GraspCritic
from serl_fast.networks.mlp import MLP

TOLERANCE = 1e-5  # of the largest magnitude; both sides are float32


def member_of(ensemble, member, features, actions):
    """One member's Q values, from a single network with its weights."""
    widths = [layer.weight.shape[-1] for layer in ensemble.layers]
    single = MLP(ensemble.layers[0].weight.shape[1], widths)
    with torch.no_grad():
        for index in range(len(widths)):
            single.layers[index].weight.copy_(ensemble.layers[index].weight[member].T)
            single.layers[index].bias.copy_(ensemble.layers[index].bias[member, 0])
    head = 0 if ensemble.shared_head else member
    hidden = single(torch.cat([features, actions], -1))
    return (hidden @ ensemble.head.weight[head] + ensemble.head.bias[head]).squeeze(-1)


@pytest.mark.parametrize("shared_head", [False, True])
def test_each_ensemble_member_is_an_independent_network(shared_head):
    torch.manual_seed(0)
    ensemble = CriticEnsemble(5, 2, (7, 6), members=3, shared_head=shared_head)
    features, actions = torch.randn(4, 5), torch.randn(4, 2)
    q = ensemble(features, actions)
    assert q.shape == (3, 4)
    for member in range(3):
        torch.testing.assert_close(q[member], member_of(ensemble, member, features, actions))
    kept = torch.tensor([2, 0])
    torch.testing.assert_close(ensemble(features, actions, kept), q[kept])


@pytest.mark.parametrize("shared_head", [False, True])
def test_several_actions_in_each_state(shared_head):
    torch.manual_seed(0)
    ensemble = CriticEnsemble(5, 2, (7,), members=3, shared_head=shared_head)
    features, actions = torch.randn(4, 5), torch.randn(4, 6, 2)
    q = ensemble(features, actions)
    assert q.shape == (3, 4, 6)
    for index in range(6):
        torch.testing.assert_close(q[..., index], ensemble(features, actions[:, index]))
    kept = torch.tensor([1])
    torch.testing.assert_close(ensemble(features, actions, kept), q[kept])


def test_a_shared_head_is_one_layer():
    ensemble = CriticEnsemble(5, 2, (7, 6), members=3, shared_head=True)
    assert ensemble.head.weight.shape == (1, 6, 1)
    assert ensemble.head.bias.shape == (1, 1, 1)
    gradient = torch.autograd.grad(ensemble(torch.randn(4, 5), torch.randn(4, 2)).sum(), ensemble.head.bias)[0]
    assert gradient.item() == pytest.approx(12)  # every member and row adds one
    assert CriticEnsemble(5, 2, (7, 6), members=3).head.weight.shape == (3, 6, 1)


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


@pytest.mark.parametrize("members", [2, 10])
def test_ensemble_against_the_original(recording, error, members):
    arrays, prefix = recording("critic"), f"E{members}"
    settings = arrays.config
    critic = CriticEnsemble(
        settings["obs_dim"], settings["action_dim"], settings["hidden"], members=members, shared_head=True
    )
    arrays.mlp(critic.layers, critic.norms, f"{prefix}/params/network/VmapMLP_0")
    arrays.stacked(critic.head, f"{prefix}/params/Dense_0", "kernel")
    observations, actions = arrays[f"{prefix}/obs"], arrays[f"{prefix}/actions"].requires_grad_()
    q = critic(observations, actions)
    assert error(q, arrays[f"{prefix}/q"]) < TOLERANCE
    assert error(critic(observations, arrays[f"{prefix}/actions_many"]), arrays[f"{prefix}/q_many"]) < TOLERANCE
    (gradient,) = torch.autograd.grad(q.mean(0).sum(), actions)
    assert error(gradient, arrays[f"{prefix}/dmeanq_daction"]) < TOLERANCE


@pytest.mark.parametrize("variant", ["single3", "dual9", "class_default"])
def test_grasp_critic_against_the_original(recording, error, variant):
    arrays = recording("grasp_critic")
    settings = arrays.config["variants"][variant]
    network = GraspCritic(
        arrays.config["obs_dim"],
        settings["output_dim"],
        settings["hidden_dims"],
        layer_norm=settings.get("use_layer_norm", False),
        activation=settings.get("activations", "swish"),
    )
    arrays.mlp(network.trunk.layers, network.trunk.norms, f"{variant}/params/network")
    arrays.dense(network.head, f"{variant}/params/Dense_0")
    assert error(network(arrays[f"{variant}/obs"]), arrays[f"{variant}/q"]) < TOLERANCE
