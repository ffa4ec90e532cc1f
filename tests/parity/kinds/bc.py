"""Behaviour cloning: one update with dropout and crop, evaluation without, and how it acts."""

from __future__ import annotations

import dataclasses

import torch

from serl_fast.agents.bc import BCConfig, distribution, evaluate, hidden_dropout_names, log_probabilities
from serl_fast.agents.bc import bc as build_bc
from serl_fast.core import Agent, Batch, Noise
from serl_fast.engine import Engine, EngineConfig
from serl_fast.interop.flax_names import agent_leaves
from tests.parity.fixture import Fixture
from tests.parity.kinds.vision import scaled_mask, trunk_for
from tests.parity.library import Library
from tests.parity.parameters import Slack, compare_gradients, compare_new, gradients_of, values_of
from tests.parity.recorded import fill_leaves, state_width

# The original's name of a setting -> ours.
SETTINGS = {
    "activations": "activation",
    "use_layer_norm": "layer_norm",
    "dropout_rate": "dropout",
    "tanh_squash_distribution": "squash",
    "std_parameterization": "std_parameterization",
    "std_min": "std_min",
    "std_max": "std_max",
    "fixed_std": "fixed_std",
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup_steps",
    "cosine_decay_steps": "cosine_decay_steps",
    "weight_decay": "weight_decay",
    "clip_grad_norm": "clip_gradient_norm",
}


def bc(fixture: Fixture, library: Library) -> None:
    """Everything recorded of one agent, squashed or not, with any cameras."""
    agent, config = build(fixture, library)
    networks = agent.networks
    looks = {key: fixture.given(f"batch/observations/{key}") for key in fixture.below("batch/observations")}
    batch: Batch = {"observations": looks, "actions": fixture.given("batch/actions")}
    noise = noise_of(fixture, config)
    compare_evaluation(fixture, agent, batch)
    with torch.no_grad():
        prepared = agent.prepare(networks, batch, noise)
        training = distribution(config, networks, prepared["observations"], noise)
        log_probs = log_probabilities(training, batch["actions"])
    for name in ("mean", "std", "mode"):
        fixture.compare(f"train/{name}", getattr(training, name), "value")
    fixture.compare("train/log_probs", log_probs, "log_prob")
    (objective,) = agent.critic_step
    loss = objective.loss(networks, prepared, noise)
    fixture.compare("loss", loss.value, "loss", terms=log_probs)
    fixture.compare("mse", loss.metrics["mse"], "loss")
    leaves = agent_leaves(networks)
    gradients = gradients_of(loss.value, leaves, networks.parameters())
    compare_gradients(fixture, gradients, zeros=fixture.config.get("zero_gradient_leaves"))
    slack = Slack({"bc": config.adam()}).step({"bc": gradients})
    Engine(dataclasses.replace(agent, draw_noise=lambda *_: noise), EngineConfig("eager")).update(batch)
    compare_new(fixture, "new_params", values_of(leaves), slack)


def build(fixture: Fixture, library: Library) -> tuple[Agent, BCConfig]:
    """Our agent with the recorded settings and parameters."""
    settings = fixture.config
    values = {ours: settings[theirs] for theirs, ours in SETTINGS.items() if theirs in settings}
    values["hidden_widths"] = tuple(settings["hidden_dims"])
    values["crop_padding"] = 4 if settings.get("augmentation") else 0
    branch = "params/modules_actor/encoder/Dense_0/bias"
    values["proprioception_dim"] = len(fixture.recorded(branch)) if branch in fixture else None
    cameras = list(settings.get("cameras", ()))
    if cameras:
        values["image_size"] = trunk_for(fixture, library).image_size
        values["frames"] = fixture.recorded(f"batch/observations/{cameras[0]}").shape[1]
    config = BCConfig(**values, compat="hil_serl")
    width, action_dim = state_width(fixture, "batch/observations"), fixture.recorded("batch/actions").shape[-1]
    agent = build_bc(width, action_dim, cameras, config)
    fill_leaves(fixture, library, agent_leaves(agent.networks))
    return agent, config


def noise_of(fixture: Fixture, config: BCConfig) -> Noise:
    """The recorded noise by our names."""
    noise: Noise = {}
    if config.crop_padding:
        noise["crop"] = fixture.given("noise/crop_offsets/observations").long()
    masks = [f"noise/dropout/encoder_{camera}" for camera in fixture.config.get("cameras", ())]
    if masks and masks[0] in fixture:
        noise["dropout"] = torch.stack([scaled_mask(fixture.given(name)) for name in masks], dim=1)  # [B, K, W]
    for index, name in enumerate(hidden_dropout_names(config.hidden_widths)):
        if (recorded := f"noise/dropout/mlp_{index}") in fixture:
            noise[name] = scaled_mask(fixture.given(recorded), config.dropout)
    return noise


def compare_evaluation(fixture: Fixture, agent: Agent, batch: Batch) -> None:
    """Without crop and dropout: the fit to the batch, the distribution, and actions."""
    networks = agent.networks
    assert agent.policy is not None
    with torch.no_grad():
        fit = evaluate(networks, batch)
        settled = networks["actor"](networks["encoder"](batch["observations"]))
        sampled = agent.policy(networks, batch["observations"], fixture.given("sample_actions/eps"))
    fixture.compare("eval/log_probs", fit["log_probs"], "log_prob")
    fixture.compare("eval/mse", fit["mse"], "loss")
    fixture.compare("eval/pi_actions", fit["actions"], "value")
    fixture.compare("eval/mean", settled.mean, "value")
    fixture.compare("eval/std", settled.std, "value")
    fixture.compare("sample_actions/argmax", Engine(agent).act(batch["observations"], deterministic=True), "value")
    fixture.compare("sample_actions/sampled", sampled, "value")
