"""Losses, targets and gradients of SAC and hybrid SAC against one recorded update of the original HIL-SERL.

Everything is evaluated at the recorded parameters with the recorded noise, so sums and rounding are all that differs.

Not compared, because we differ on purpose (see ``serl_fast.agents.sac``):

* the actor loss's gradient in the proprioception branch: ours stops at the encoder;
* new parameters of the encoder, the actor, the temperature and the critics' last layer: the original adds the steps
  of one Adam per loss, evaluates the actor at the old critics and shares the critics' last layer. What one loss
  trains alone is compared: the critics' hidden layers and the grasp critic, online and target;
* learning rates, which are settings.

The original's temperature loss takes a sample at s' with noise of its own; ours is given both.
"""

import contextlib
from functools import partial

import pytest
import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.hybrid_sac import split_action
from serl_fast.agents.sac import SACConfig
from serl_fast.engine.step import AdamState, build_step

TOLERANCE = 1e-5  # of the largest magnitude; both sides are float32
# Entropies: means of log-densities of both signs, which are up to a hundred times larger than their mean.
ENTROPY_TOLERANCE = 5e-5
GRIPPERS = {"sac": 0, "single": 1, "dual": 2}


class Case:
    """An agent with the recorded parameters, the recorded batch, and what was recorded."""

    def __init__(self, recording, kind):
        self.arrays = arrays = recording(f"agent_small_{kind}")
        self.grippers = GRIPPERS[kind]
        settings = arrays.config
        state, actions = arrays["batch/observations/state"], arrays["batch/actions"]
        config = SACConfig(
            hidden_widths=tuple(settings["hidden_dims"]),
            activation=settings["activations"],
            critic_ensemble_size=settings["critic_ensemble_size"],
            target_entropy=settings["target_entropy"],
            target_update_rate=settings["soft_target_update_rate"],
            learning_rate=settings["learning_rate"],
            proprioception_dim=settings["proprio_latent_dim"],
        )
        state_dim = state.flatten(1).shape[1]
        self.agent = build_agent(state_dim, actions.shape[1], self.grippers, (), config)
        self.networks = self.agent.networks
        for root, prefix in (("params", ""), ("target_params", "target_")):
            arrays.fill(self.networks[f"{prefix}encoder"].proprioception, f"{root}/modules_actor/encoder")
            for name in ("critic", "grasp_critic") if self.grippers else ("critic",):
                arrays.fill(self.networks[prefix + name], f"{root}/modules_{name}")
        for name in ("actor", "temperature"):
            arrays.fill(self.networks[name], f"params/modules_{name}")
        self.batch = {
            "observations": {"state": state},
            "next_observations": {"state": arrays["batch/next_observations/state"]},
            "actions": actions,
            "rewards": arrays["batch/rewards"] + settings["reward_bias"],
            "discounts": settings["discount"] * arrays["batch/masks"],
        }
        if self.grippers:
            self.batch["grasp_penalty"] = arrays["batch/grasp_penalty"]
        self.noise = {
            "actions": arrays["noise/actor/action_eps"],
            "next_actions": arrays["noise/critic/next_action_eps"],
        }

    def loss(self, name, batch=None, noise=None):
        (objective,) = [o for o in self.agent.critic_step + self.agent.actor_step if o.name == name]
        return objective.loss(self.networks, batch or self.batch, noise or self.noise)


@pytest.fixture(params=list(GRIPPERS))
def case(request, recording):
    return Case(recording, request.param)


@pytest.fixture(params=["single", "dual"])
def hybrid(request, recording):
    return Case(recording, request.param)


def gradients(value, *modules):
    parameters = [p for module in modules for p in module.parameters()]
    return dict(zip(parameters, torch.autograd.grad(value, parameters), strict=True))


def test_critic(case, error):
    arrays, networks = case.arrays, case.networks
    value, metrics = case.loss("critic")
    assert error(value, arrays["critic/loss"]) < TOLERANCE
    assert error(metrics["target_qs"], arrays["critic/target_q"].mean()) < TOLERANCE
    assert error(metrics["predicted_qs"], arrays["critic/predicted_qs"].mean()) < TOLERANCE
    assert error(metrics["rewards"], arrays["info/critic/rewards"]) < TOLERANCE
    slopes = gradients(value, networks["critic"], networks["encoder"].proprioception)
    assert arrays.error(networks["critic"], "grads/critic/modules_critic", slopes) < TOLERANCE
    branch = networks["encoder"].proprioception
    assert arrays.error(branch, "grads/critic/modules_actor/encoder", slopes) < TOLERANCE


def test_parts_of_the_critic_target(case, error):
    arrays, networks = case.arrays, case.networks
    following = case.batch["next_observations"]
    distribution = networks["actor"](networks["encoder"](following))
    actions, log_probs = distribution.sample(case.noise["next_actions"])
    q = networks["target_critic"](networks["target_encoder"](following), actions)
    parts = {
        "next_mean": distribution.mean,
        "next_std": distribution.std,
        "next_actions": actions,
        "next_log_probs": log_probs,
        "target_next_qs": q,
        "target_q": case.batch["rewards"] + case.batch["discounts"] * q.amin(0),
    }
    for name, part in parts.items():
        assert error(part, arrays[f"critic/{name}"]) < TOLERANCE, name


def test_grasp_critic(hybrid, error):
    arrays, networks = hybrid.arrays, hybrid.networks
    value, metrics = hybrid.loss("grasp_critic")
    choice = split_action(hybrid.batch["actions"], hybrid.grippers)[1]
    assert torch.equal(choice, arrays["grasp_critic/taken_action_index"].long())
    observations, following = hybrid.batch["observations"], hybrid.batch["next_observations"]
    online = networks["grasp_critic"](networks["encoder"](following))
    assert torch.equal(online.argmax(-1), arrays["grasp_critic/best_next_action"].long())
    parts = {
        "loss": value,
        "next_qs_online": online,
        "target_next_qs": networks["target_grasp_critic"](networks["target_encoder"](following)),
        "predicted_qs": networks["grasp_critic"](networks["encoder"](observations)),
    }
    for name, part in parts.items():
        assert error(part, arrays[f"grasp_critic/{name}"]) < TOLERANCE, name
    for ours, theirs in {
        "target_qs": "target_grasp_qs",
        "predicted_qs": "predicted_grasp_qs",
        "rewards": "grasp_rewards",
    }.items():
        assert error(metrics[ours], arrays[f"info/grasp_critic/{theirs}"]) < TOLERANCE, ours
    branch = networks["encoder"].proprioception
    slopes = gradients(value, networks["grasp_critic"], branch)
    prefix = "grads/grasp_critic"
    assert arrays.error(networks["grasp_critic"], f"{prefix}/modules_grasp_critic", slopes) < TOLERANCE
    assert arrays.error(branch, f"{prefix}/modules_actor/encoder", slopes) < TOLERANCE


def test_actor(case, error):
    arrays, networks = case.arrays, case.networks
    value, metrics = case.loss("actor")
    for name, tolerance in {"loss": TOLERANCE, "temperature": TOLERANCE, "entropy": ENTROPY_TOLERANCE}.items():
        assert error(metrics[name], arrays[f"actor/{name}"]) < tolerance, name
    slopes = gradients(value, networks["actor"])
    assert arrays.error(networks["actor"], "grads/actor/modules_actor", slopes) < TOLERANCE


def test_temperature(case, error):
    """At next observations and with the recorded second sample, our loss and its gradient are the original's."""
    arrays, networks = case.arrays, case.networks
    batch = {**case.batch, "observations": case.batch["next_observations"]}
    value, metrics = case.loss("actor", batch, {"actions": arrays["noise/temperature/next_action_eps"]})
    assert error(metrics["temperature_loss"], arrays["temperature/loss"]) < ENTROPY_TOLERANCE
    assert error(metrics["entropy"], arrays["temperature/entropy"]) < ENTROPY_TOLERANCE
    slopes = gradients(value, networks["temperature"])
    prefix = "grads/temperature/modules_temperature"
    assert arrays.error(networks["temperature"], prefix, slopes) < ENTROPY_TOLERANCE


def test_sampled_actions(case, error):
    arrays = case.arrays
    act = partial(case.agent.policy, case.networks)
    observations = case.batch["observations"]
    first = {"state": observations["state"][:1]}
    with torch.no_grad():
        assert error(act(observations, None), arrays["sample_actions/batched/argmax"]) < TOLERANCE
        sampled = act(observations, arrays["sample_actions/batched/eps"])
        assert error(sampled, arrays["sample_actions/batched/sampled"]) < TOLERANCE
        assert error(act(first, None)[0], arrays["sample_actions/single/argmax"]) < TOLERANCE
        sampled = act(first, arrays["sample_actions/single/eps"][None])
        assert error(sampled[0], arrays["sample_actions/single/sampled"]) < TOLERANCE


def test_critics_after_one_update(case):
    """Adam and the target average, where only one loss reaches: the critics' hidden layers and the grasp critic."""
    networks = case.networks
    adam = {name: AdamState(list(networks[name].parameters())) for name in case.agent.trained_networks}
    step = build_step(case.agent, adam, contextlib.nullcontext(), with_actor=False)
    step(case.batch, case.noise)
    for root, prefix in (("new_params", ""), ("new_target_params", "target_")):
        error = case.arrays.error(networks[f"{prefix}critic"], f"{root}/modules_critic", within="network/")
        assert error < TOLERANCE
        if case.grippers:
            error = case.arrays.error(networks[f"{prefix}grasp_critic"], f"{root}/modules_grasp_critic")
            assert error < TOLERANCE
