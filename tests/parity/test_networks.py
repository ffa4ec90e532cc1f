"""Policy, critics and temperature against numbers recorded from the original HIL-SERL."""

import pytest
import torch

from serl_fast.networks.critic import CriticEnsemble, GraspCritic
from serl_fast.networks.policy import Policy, Temperature

TOLERANCE = 1e-5  # of the largest magnitude; both sides are float32
NOT_BUILT = {
    "class_default_uniform": "standard deviations that do not depend on the state",
    "softplus": "softplus standard deviations",
    "fixed": "fixed standard deviations",
}


@pytest.mark.parametrize("variant", ["launcher", "exp_nosquash", *NOT_BUILT])
def test_policy(recording, error, variant):
    """Means and standard deviations; of the squashed variant also modes, samples and log-densities.

    Not compared: ``stddev_method`` (the original squashes the std itself), ``*_temperature0.5`` and ``non_squash``
    (options that no agent uses), ``edge`` (log-densities of actions at and beyond 1, which ours never takes).
    """
    if variant in NOT_BUILT:
        pytest.skip(f"policy variant {variant!r} is not built here: {NOT_BUILT[variant]}")
    arrays = recording("policy")
    settings = arrays.config["variants"][variant]
    network, head = settings["network"], settings["policy"]
    policy = Policy(
        arrays.config["obs_dim"],
        arrays.config["action_dim"],
        network["hidden_dims"],
        std_min=head["std_min"],
        std_max=head["std_max"],
        layer_norm=network["use_layer_norm"],
        activation=network["activations"],
    )
    arrays.fill(policy, f"{variant}/params")
    distribution = policy(arrays[f"{variant}/obs"])
    assert error(distribution.mean, arrays[f"{variant}/mean"]) < TOLERANCE
    assert error(distribution.std, arrays[f"{variant}/std"]) < TOLERANCE
    if not head["tanh_squash_distribution"]:
        return
    assert error(distribution.mode, arrays[f"{variant}/mode"]) < TOLERANCE
    samples, log_probs = zip(*map(distribution.sample, arrays[f"{variant}/eps"]), strict=True)
    assert error(torch.stack(samples), arrays[f"{variant}/sample"]) < TOLERANCE
    assert error(torch.stack(log_probs), arrays[f"{variant}/sample_log_prob"]) < TOLERANCE
    # The log-density of given actions, through the noise that leads to them.
    noise = (arrays[f"{variant}/actions"].atanh() - distribution.mean) / distribution.std
    assert error(distribution.sample(noise)[1], arrays[f"{variant}/log_prob_actions"]) < TOLERANCE


@pytest.mark.parametrize("members", [2, 10])
def test_critic_ensemble(recording, error, members):
    arrays, prefix = recording("critic"), f"E{members}"
    settings = arrays.config
    critic = CriticEnsemble(settings["obs_dim"], settings["action_dim"], settings["hidden"], members=members)
    arrays.fill(critic, f"{prefix}/params")
    observations, actions = arrays[f"{prefix}/obs"], arrays[f"{prefix}/actions"].requires_grad_()
    q = critic(observations, actions)
    assert error(q, arrays[f"{prefix}/q"]) < TOLERANCE
    (gradient,) = torch.autograd.grad(q.mean(0).sum(), actions)
    assert error(gradient, arrays[f"{prefix}/dmeanq_daction"]) < TOLERANCE
    # Several actions for each state are rows of their own here.
    many = arrays[f"{prefix}/actions_many"]  # [B, N, A]
    repeated = observations.repeat_interleave(many.shape[1], dim=0)
    q_many = critic(repeated, many.flatten(0, 1)).unflatten(1, many.shape[:2])
    assert error(q_many, arrays[f"{prefix}/q_many"]) < TOLERANCE


@pytest.mark.parametrize("variant", ["single3", "dual9", "class_default"])
def test_grasp_critic(recording, error, variant):
    """Q values and the greedy choice; what choices mean to the grippers is compared in ``test_losses``."""
    arrays = recording("grasp_critic")
    settings = arrays.config["variants"][variant]
    if not settings.get("use_layer_norm"):
        pytest.skip(f"grasp critic variant {variant!r} is not built here: no LayerNorm")
    network = GraspCritic(arrays.config["obs_dim"], settings["output_dim"], settings["hidden_dims"])
    arrays.fill(network, f"{variant}/params")
    q = network(arrays[f"{variant}/obs"])
    assert error(q, arrays[f"{variant}/q"]) < TOLERANCE
    assert torch.equal(q.argmax(-1), arrays[f"{variant}/argmax"])


@pytest.mark.parametrize("kind", ["sac", "single", "dual"])
def test_temperature(recording, error, kind):
    arrays, network = recording(f"agent_small_{kind}"), Temperature()
    arrays.fill(network, "params/modules_temperature")
    assert error(network(), arrays["temperature/temperature_value"]) < TOLERANCE
