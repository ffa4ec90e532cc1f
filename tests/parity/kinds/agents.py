"""One full update of an agent: every loss with its parts, gradients, new parameters and targets, and how it acts."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from serl_fast.agents.hybrid_sac import grasp_targets, split_action
from serl_fast.agents.sac import SACConfig, critic_targets
from serl_fast.core import Agent, Batch, Noise
from serl_fast.engine import Engine, EngineConfig, PolicyPublisher, PolicyRunner
from serl_fast.interop.flax_names import agent_leaves
from tests.parity.fixture import Fixture
from tests.parity.library import Library
from tests.parity.parameters import (
    Slack,
    compare_gradients,
    compare_new,
    gradients_of,
    values_of,
)
from tests.parity.recorded import GRIPPERS, Call, batch_of, build_agent, noise_of, observed

# What the original's update() returns -> our metric.
INFO = {
    "actor/actor_loss": "actor/loss",
    "actor/entropy": "actor/entropy",
    "actor/temperature": "actor/temperature",
    "critic/critic_loss": "critic/loss",
    "critic/predicted_qs": "critic/predicted_qs",
    "critic/rewards": "critic/rewards",
    "critic/target_qs": "critic/target_qs",
    "temperature/temperature_loss": "temperature/loss",
    "grasp_critic/grasp_critic_loss": "grasp_critic/loss",
    "grasp_critic/grasp_rewards": "grasp_critic/rewards",
    "grasp_critic/predicted_grasp_qs": "grasp_critic/predicted_qs",
    "grasp_critic/target_grasp_qs": "grasp_critic/target_qs",
    "actor_lr": "actor/learning_rate",
    "critic_lr": "critic/learning_rate",
    "grasp_critic_lr": "grasp_critic/learning_rate",
    "temperature_lr": "temperature/learning_rate",
}


def agent(fixture: Fixture, library: Library) -> None:
    """State observations, or images too (:func:`agent_pixels`)."""
    ours, config = build_agent(fixture, library, "batch")
    batch, noise = batch_of(fixture, "batch", fixture.config["discount"]), noise_of(fixture, "noise")
    compare_actions(fixture, ours, batch)
    with torch.no_grad():
        prepared = ours.prepare(ours.networks, batch, noise)
        compare_encodings(fixture, ours, prepared)
    terms = compare_losses(fixture, "", ours, config, prepared, noise)
    gradients = compare_all_gradients(fixture, ours, prepared, noise, terms)
    compare_update(fixture, ours, batch, noise, gradients, terms)


agent_pixels = agent


def compare_actions(fixture: Fixture, agent: Agent, batch: Batch) -> None:
    """Modes and samples, for a batch and for one observation without batch axis."""
    observations = batch["observations"]
    first = {key: value[0].numpy() for key, value in observations.items()}
    runner = PolicyRunner(agent)
    runner.load(PolicyPublisher().publish(agent.networks, agent.policy_networks, 0))
    assert agent.policy is not None
    with torch.no_grad():
        sampled = agent.policy(agent.networks, observations, fixture.given("sample_actions/batched/eps"))
        one = {key: value[:1] for key, value in observations.items()}
        single = agent.policy(agent.networks, one, fixture.given("sample_actions/single/eps")[None])[0]
    fixture.compare("sample_actions/batched/argmax", Engine(agent).act(observations, deterministic=True), "value")
    fixture.compare("sample_actions/batched/sampled", sampled, "value")
    fixture.compare("sample_actions/single/argmax", runner.act(first, deterministic=True), "value")
    fixture.compare("sample_actions/single/sampled", single, "value")


def compare_encodings(fixture: Fixture, agent: Agent, prepared: Batch) -> None:
    """The encoder's output on cropped images, without dropout."""
    for name in fixture.below("encoded"):
        look, _, which = name.rpartition("_")
        encoder = agent.networks["target_encoder" if which == "target" else "encoder"]
        fixture.compare(f"encoded/{name}", encoder(prepared[look]), "feature")


def compare_losses(
    fixture: Fixture, at: str, agent: Agent, config: SACConfig, batch: Batch, noise: Noise
) -> dict[str, Tensor]:
    """Losses and their parts, as far as they are recorded below ``at``.

    Returns:
        By our metrics' names: the terms of every scalar that is a mean of terms of both signs.
    """
    terms: dict[str, Tensor] = {"critic/rewards": batch["rewards"]}
    for objective in agent.critic_step + agent.actor_step:
        name = objective.name
        if f"{at}{name}/loss" not in fixture:
            continue
        with observed(agent.networks) as calls, torch.no_grad():
            value, metrics = objective.loss(agent.networks, batch, noise)
        if name == "critic":
            parts = critic_parts(agent, config, batch, noise, calls)
            terms |= {"critic/predicted_qs": parts["predicted_qs"], "critic/target_qs": parts["target_q"]}
            terms["critic/errors"] = parts["predicted_qs"] - parts["target_q"]
        elif name == "grasp_critic":
            parts = grasp_parts(agent, fixture.config["kind"], batch)
            terms |= {f"{name}/predicted_qs": parts["predicted_qs"], f"{name}/target_qs": parts["target_q"]}
            terms[f"{name}/rewards"] = torch.stack([batch["rewards"], batch["grasp_penalty"]])
        else:
            parts = policy_parts(agent, name, noise, calls) | {"entropy": metrics["entropy"]}
            terms |= policy_terms(name, parts)
        for part, ours in {"loss": value, **parts}.items():
            if (array := f"{at}{name}/{part}") in fixture:
                kind = "log_prob" if "log_prob" in part else "loss" if part == "loss" else "value"
                kind = "exact" if part in ("best_next_action", "taken_action_index") else kind
                fixture.compare(array, ours, kind, terms=terms.get(f"{name}/{part}") if ours.dim() == 0 else None)
    return terms


def policy_terms(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms that the actor's or the temperature's loss and entropy are means of."""
    if name == "temperature":
        log_probs = parts["next_log_probs"]
        return {"temperature/entropy": log_probs, "temperature/loss": parts["temperature_value"] * log_probs}
    log_probs = parts["log_probs"]
    return {"actor/entropy": log_probs, "actor/loss": parts["temperature"] * log_probs - parts["qs"].mean(0)}


def critic_parts(
    agent: Agent, config: SACConfig, batch: Batch, noise: Noise, calls: Mapping[str, list[Call]]
) -> dict[str, Tensor]:
    """Policy at s', target critics at (s', a'), critics at (s, a), and the regression target."""
    networks = agent.networks
    (distribution,) = (call.output for call in calls["actor"])
    ((features, actions, *_),) = (call.inputs for call in calls["target_critic"])
    with torch.no_grad():
        every_member = networks["target_critic"](features, actions)
    return {
        "next_mean": distribution.mean,
        "next_std": distribution.std,
        "next_actions": actions,
        "next_log_probs": distribution.sample(noise["next_actions"])[1],
        "target_next_qs": every_member,
        "predicted_qs": calls["critic"][0].output,
        "target_q": critic_targets(config)(networks, batch, noise),
    }


@torch.no_grad()
def grasp_parts(agent: Agent, kind: str, batch: Batch) -> dict[str, Tensor]:
    """Online and target grasp critics, greedy and taken choice, and the regression target."""
    networks, following = agent.networks, batch["next_observations"]
    targets, best = grasp_targets(networks, batch)
    return {
        "target_next_qs": networks["target_grasp_critic"](networks["target_encoder"](following)),
        "next_qs_online": networks["grasp_critic"](networks["encoder"](following)),
        "predicted_qs": networks["grasp_critic"](networks["encoder"](batch["observations"])),
        "best_next_action": best,
        "target_q": targets,
        "taken_action_index": split_action(batch["actions"], GRIPPERS[kind])[1],
    }


def policy_parts(agent: Agent, name: str, noise: Noise, calls: Mapping[str, list[Call]]) -> dict[str, Tensor]:
    """The policy's distribution and sample in the actor's or the temperature's loss, and what the critics say."""
    (distribution,) = (call.output for call in calls["actor"])
    temperature = agent.networks["temperature"]().detach()
    if name == "temperature":
        actions, log_probs = distribution.sample(noise["temperature_actions"])
        parts = {"mean": distribution.mean, "std": distribution.std, "actions": actions, "log_probs": log_probs}
        return {**{f"next_{part}": value for part, value in parts.items()}, "temperature_value": temperature}
    (critic,) = calls["critic"]
    return {
        "mean": distribution.mean,
        "std": distribution.std,
        "actions": critic.inputs[1],
        "log_probs": distribution.sample(noise["actions"])[1],
        "qs": critic.output,
        "temperature": temperature,
    }


def compare_all_gradients(
    fixture: Fixture, agent: Agent, batch: Batch, noise: Noise, terms: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Every loss's gradient in every leaf of every online network; returns them by the loss's name."""
    zeros = fixture.config.get("zero_gradient_leaves", {})
    found = all_gradients(agent, batch, noise)
    for name, gradients in found.items():
        compare_gradients(fixture, gradients, name, zeros=zeros.get(name), terms=gradient_terms(agent, name, terms))
    return found


def gradient_terms(agent: Agent, name: str, terms: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest term of the gradients that are means of terms of both signs: of the leaves with one entry.

    d critic loss / d last bias = mean 2 (Q - y); d temperature loss / d raw = sigmoid(raw) (H - target entropy).
    """
    if name == "critic":
        return {"modules_critic/Dense_0/bias": 2 * float(terms["critic/errors"].abs().max())}
    if name == "temperature":
        slope = float(torch.sigmoid(agent.networks["temperature"].get_parameter("raw").detach()))
        return {"modules_temperature/lagrange": slope * float(terms["temperature/entropy"].abs().max())}
    return {}


def all_gradients(
    agent: Agent, batch: Batch, noise: Noise, names: Collection[str] | None = None
) -> dict[str, dict[str, Tensor]]:
    """The gradient of every loss, or of those called ``names``, in every leaf of every online network."""
    leaves = agent_leaves(agent.networks)
    found = {}
    for objective in agent.critic_step + agent.actor_step:
        if names is None or objective.name in names:
            trained = [p for name in objective.trains for p in agent.networks[name].parameters()]
            value = objective.loss(agent.networks, batch, noise).value
            found[objective.name] = gradients_of(value, leaves, trained)
    return found


def compare_update(
    fixture: Fixture,
    agent: Agent,
    batch: Batch,
    noise: Noise,
    gradients: dict[str, dict[str, Tensor]],
    terms: Mapping[str, Tensor],
) -> None:
    """One step of the engine: what it reports, new parameters, new targets."""
    agent = dataclasses.replace(agent, draw_noise=lambda *_: noise)
    metrics = Engine(agent, EngineConfig("eager")).update(batch, with_actor=True)
    compare_info(fixture, "info", metrics, terms)
    slack = Slack({name: agent.optimizers[name] for name in gradients}).step(gradients)
    target_slack = {path: fixture.config["soft_target_update_rate"] * values for path, values in slack.items()}
    for name, target, allowed in (("new_params", False, slack), ("new_target_params", True, target_slack)):
        compare_new(fixture, name, values_of(agent_leaves(agent.networks, target=target)), allowed)


def compare_info(fixture: Fixture, at: str, metrics: Mapping[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    """The scalars that the original's update returns."""
    for name in fixture.below(at):
        if name in INFO and INFO[name] in metrics:
            ours = INFO[name]
            fixture.compare(f"{at}/{name}", metrics[ours], "loss", terms=terms.get(ours))
