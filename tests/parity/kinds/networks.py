"""Policy, critic ensemble and grasp critic by themselves, in every variant that was recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serl_fast.agents.hybrid_sac import join_action
from serl_fast.networks.critic import CriticEnsemble, GraspCritic
from serl_fast.networks.mlp import MLP
from serl_fast.networks.policy import ActionDistribution, Policy
from tests.parity.fixture import Fixture
from tests.parity.library import Library
from tests.parity.parameters import fill_module

# What the original's classes do where a variant says nothing.
MLP_DEFAULTS = {"activations": "swish", "use_layer_norm": False, "activate_final": False}
POLICY_DEFAULTS = {
    "std_parameterization": "exp",
    "std_min": 1e-5,
    "std_max": 10.0,
    "tanh_squash_distribution": False,
    "fixed_std": None,
}


def policy(fixture: Fixture, library: Library) -> None:
    """Distribution, samples and log-densities, also at another temperature, without tanh, and at the boundary."""
    for variant, settings in fixture.config["variants"].items():
        at = f"{variant}/"
        observations, actions = fixture.given(at + "obs"), fixture.given(at + "actions")
        network = build_policy(observations.shape[-1], actions.shape[-1], settings)
        fill_module(fixture, network, at + "params")
        with torch.no_grad():
            distribution = network(observations)
            compare_distribution(fixture, at, "", distribution, actions)
            fixture.compare(at + "stddev_method", distribution.stddev(), "value")
            samples, log_probs = distribution.sample(fixture.given(at + "eps"))
            fixture.compare(at + "sample", samples, "value")
            fixture.compare(at + "sample_log_prob", log_probs, "log_prob")
            if (name := at + "log_prob_of_sample_recomputed") in fixture:
                recorded = torch.from_numpy(fixture.recorded(at + "sample"))
                fixture.compare(name, distribution.log_prob(recorded), "log_prob")
            for name in fixture.below(variant):
                if name.startswith("mean_temperature"):
                    temperature = name.removeprefix("mean_temperature")
                    other = network(observations, temperature=float(temperature))
                    compare_distribution(fixture, at, f"_temperature{temperature}", other, actions)
            if at + "non_squash/mode" in fixture:
                plain = distribution._replace(squash=False)
                fixture.compare(at + "non_squash/mode", plain.mode, "value")
                fixture.compare(at + "non_squash/log_prob_actions", plain.log_prob(actions), "log_prob")
            if at + "edge/actions" in fixture:
                compare_edge(fixture, at, distribution)


def build_policy(features: int, action_dim: int, settings: dict[str, Any]) -> Policy:
    """Our policy with a variant's settings."""
    layers, head = MLP_DEFAULTS | settings["network"], POLICY_DEFAULTS | settings["policy"]
    return Policy(
        features,
        action_dim,
        layers["hidden_dims"],
        std_parameterization=head["std_parameterization"],
        std_min=head["std_min"],
        std_max=head["std_max"],
        fixed_std=head["fixed_std"],
        squash=head["tanh_squash_distribution"],
        activate_final=layers["activate_final"],
        layer_norm=layers["use_layer_norm"],
        activation=layers["activations"],
    )


def compare_distribution(
    fixture: Fixture, at: str, suffix: str, distribution: ActionDistribution, actions: Tensor
) -> None:
    """Mean, std, mode and the log-density of given actions."""
    fixture.compare(f"{at}mean{suffix}", distribution.mean, "value")
    fixture.compare(f"{at}std{suffix}", distribution.std, "value")
    fixture.compare(f"{at}mode{suffix}", distribution.mode, "value")
    fixture.compare(f"{at}log_prob_actions{suffix}", distribution.log_prob(actions), "log_prob")


def compare_edge(fixture: Fixture, at: str, distribution: ActionDistribution) -> None:
    """Log-densities on and beyond the boundary, each with the observation of its row."""
    actions = fixture.given(at + "edge/actions")
    rows = len(actions)
    at_rows = ActionDistribution(distribution.mean[:rows], distribution.std[:rows], distribution.squash)
    fixture.compare(at + "edge/log_prob", at_rows.log_prob(actions), "log_prob")


def critic(fixture: Fixture, library: Library) -> None:
    """Q values for one and for several actions, and their gradient in the action."""
    settings = MLP_DEFAULTS | fixture.config
    for variant in sorted({name.split("/")[0] for name in fixture.arrays}):
        at = f"{variant}/"
        observations, actions = fixture.given(at + "obs"), fixture.given(at + "actions").requires_grad_()
        members = fixture.recorded(at + "params/network/VmapMLP_0/Dense_0/bias").shape[0]
        network = CriticEnsemble(
            observations.shape[-1],
            actions.shape[-1],
            settings["hidden"],
            members=members,
            layer_norm=settings["use_layer_norm"],
            activation=settings["activations"],
            shared_head=True,
        )
        fill_module(fixture, network, at + "params")
        q = network(observations, actions)
        fixture.compare(at + "q", q, "value")
        (slope,) = torch.autograd.grad(q.mean(0).sum(), actions)
        fixture.compare(at + "dmeanq_daction", slope, "gradient")
        fixture.compare(at + "q_many", network(observations, fixture.given(at + "actions_many")), "value")


def grasp_critic(fixture: Fixture, library: Library) -> None:
    """Q values of the gripper's choices, the greedy one, and what it means to the grippers."""
    for variant, settings in fixture.config["variants"].items():
        at, layers = f"{variant}/", MLP_DEFAULTS | settings
        observations = fixture.given(at + "obs")
        inputs, widths = observations.shape[-1], layers["hidden_dims"]
        hidden = {"layer_norm": layers["use_layer_norm"], "activation": layers["activations"]}
        network = GraspCritic(inputs, layers["output_dim"], widths, **hidden)
        if layers["activate_final"]:  # no agent builds it so, here or there
            network.trunk = MLP(inputs, widths, **hidden)
        fill_module(fixture, network, at + "params")
        with torch.no_grad():
            q = network(observations)
        fixture.compare(at + "q", q, "value")
        fixture.compare(at + "argmax", q.argmax(-1), "exact")
        fixture.compare(at + "gripper_action", gripper_commands(q.argmax(-1), layers["output_dim"]), "exact")


def gripper_commands(choice: Tensor, choices: int) -> Tensor:
    """The command in {-1, 0, 1} of each gripper [B, grippers], taken from the full action that ours makes."""
    grippers = {3: 1, 9: 2}[choices]
    arms = torch.zeros(len(choice), 6 * grippers)
    return join_action(arms, choice, grippers).unflatten(-1, (grippers, 7))[..., -1].long()
