"""Learned rewards: the reward classifier and VICE's discriminator."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serl_fast.core import Agent, Batch, Noise
from serl_fast.engine import Engine, EngineConfig
from serl_fast.interop.flax_names import Leaf, fill, module_leaves
from serl_fast.networks.classifier import RewardClassifier
from serl_fast.rewards.classifier import ClassifierConfig
from serl_fast.rewards.classifier import reward_classifier as build_classifier
from serl_fast.rewards.vice import ViceConfig
from serl_fast.rewards.vice import vice as build_vice
from tests.parity.fixture import Fixture
from tests.parity.kinds.vision import scaled_mask, trunk_for
from tests.parity.library import Library
from tests.parity.parameters import (
    Slack,
    compare_gradients,
    compare_new,
    gradients_of,
    values_of,
)
from tests.parity.recorded import ADAM, fill_leaves


def reward_classifier(fixture: Fixture, library: Library) -> None:
    """Logits without and with dropout, one training step, logits after it; the variant with several classes."""
    settings = fixture.config
    cameras = list(settings["cameras"])
    images = {key: fixture.given(f"images/{key}") for key in cameras}
    common = {
        "hidden": settings["hidden_dim"],
        "image_size": trunk_for(fixture, library).image_size,
        "frames": images[cameras[0]].shape[1],
    }
    classes = fixture.recorded("params/Dense_1/bias").shape[0]
    config = ClassifierConfig(
        **common, classes=classes, dropout=settings["dropout"], learning_rate=settings["learning_rate"], crop_padding=0
    )
    agent = build_classifier(cameras, config)
    classifier = agent.networks["classifier"]
    assert isinstance(classifier, RewardClassifier)
    leaves = module_leaves(classifier)
    tree = fill_leaves(fixture, library, leaves)
    masks = [fixture.given(f"noise/dropout/encoder_{camera}") for camera in cameras]
    noise = {
        "dropout": torch.stack([scaled_mask(mask) for mask in masks], dim=1),  # [B, K, W]
        "hidden_dropout": scaled_mask(fixture.given("noise/dropout/hidden"), settings["dropout"]),
    }
    with torch.no_grad():
        logits = classifier(images)
        fixture.compare("logits_eval", logits, "value")
        # One logit alone may be near zero by chance: it is as large as those of the batch that it is one of.
        largest = float(np.abs(fixture.recorded("logits_eval")).max())
        single = classifier({key: image[:1, 0] for key, image in images.items()})[0]
        fixture.compare("logits_eval_single", single, "value", scale=(largest, "of logits_eval"))
        fixture.compare("prob_eval", classifier.probabilities(images).reshape(logits.shape), "value")
        fixture.compare("logits_train", classifier(images, noise["dropout"], noise["hidden_dropout"]), "value")
    if "nway/params/Dense_1/bias" in fixture:
        compare_classes(fixture, tree, images, common)
    batch = {"observations": images, "labels": fixture.given("labels")}
    compare_step(fixture, agent, batch, noise, leaves, names={"loss": "loss", "accuracy": "accuracy"})
    with torch.no_grad():
        after = classifier(images)
    # 1 - 0.999^t at t = 1 has lost half of its digits in the original's float32: its first step is 6.4e-6 smaller than
    # Adam's, and so is the change of a logit. The scale is the sum of the two terms, the logit and its change.
    recorded = fixture.recorded("logits_after_step")
    scale = float(np.abs(recorded).max() + np.abs(recorded - fixture.recorded("logits_eval")).max())
    fixture.compare("logits_after_step", after, "value", scale=(scale, "of logit + change"))


def compare_classes(
    fixture: Fixture, tree: dict[str, Tensor], images: dict[str, Tensor], settings: dict[str, Any]
) -> None:
    """A classifier of several classes: the binary one's parameters but for the last layer."""
    last = {path: fixture.given(f"nway/params/{path}") for path in fixture.below("nway/params")}
    classes = last["Dense_1/bias"].shape[0]
    classifier = RewardClassifier(list(images), classes=classes, **settings)
    fill(module_leaves(classifier), {**tree, **last})
    with torch.no_grad():
        fixture.compare("nway/logits_eval", classifier(images), "value")


def compare_step(
    fixture: Fixture, agent: Agent, batch: Batch, noise: Noise, leaves: list[Leaf], names: dict[str, str]
) -> None:
    """One training step: what it reports (recorded name -> ours), gradients, new parameters."""
    ((name, config),) = agent.optimizers.items()
    adam = {ours: fixture.config["adam"][key] for key, ours in ADAM.items() if key in fixture.config.get("adam", {})}
    config = dataclasses.replace(config, **adam)
    agent = dataclasses.replace(agent, optimizers={name: config}, draw_noise=lambda *_: noise)
    with torch.no_grad():
        prepared = agent.prepare(agent.networks, batch, noise)
    (objective,) = agent.critic_step
    value = objective.loss(agent.networks, prepared, noise).value
    gradients = gradients_of(value, leaves, agent.networks.parameters())
    compare_gradients(fixture, gradients, zeros=fixture.config.get("zero_gradient_leaves"))
    metrics = Engine(agent, EngineConfig("eager")).update(batch)
    for recorded, ours in names.items():
        fixture.compare(recorded, metrics[f"{name}/{ours}"], "loss")
    compare_new(fixture, "new_params", values_of(leaves), Slack({name: config}).step({name: gradients}))


def vice(fixture: Fixture, library: Library) -> None:
    """One training step of the discriminator (mixup, label smoothing, gradient penalty), and its reward."""
    settings = fixture.config
    cameras = list(settings["cameras"])
    images = {key: fixture.given(f"images/{key}") for key in cameras}
    root = "params/modules_vice"
    config = ViceConfig(
        label_smoothing=settings["label_smoothing"],
        gradient_penalty=settings["gp_weight"],
        hidden=fixture.recorded(f"{root}/network/Dense_0/bias").shape[0],
        dropout=settings["dropout"],
        bottleneck=fixture.recorded(f"{root}/encoder/encoder_{cameras[0]}/Dense_0/bias").shape[0],
        image_size=trunk_for(fixture, library).image_size,
        frames=images[cameras[0]].shape[1],
        learning_rate=settings["learning_rate"],
        compat="hil_serl",
    )
    agent = build_vice(cameras, config)
    leaves = module_leaves(agent.networks["vice"], "modules_vice")
    fill_leaves(fixture, library, leaves)
    noise = vice_noise(fixture, cameras, config.dropout)
    batch = {"next_observations": images}
    with torch.no_grad():
        prepared = agent.prepare(agent.networks, batch, noise)
        for camera in cameras:
            features = prepared["pictures"][camera].squeeze(1)  # without the axis of one frame
            fixture.compare(f"encoded/{camera}", features, "feature")
        logits = agent.networks["vice"](images)
        fixture.compare("eval/logits", logits.squeeze(-1), "value")
        fixture.compare("eval/vice_reward", agent.networks["vice"].probabilities(images), "value")
    names = {"info/bce_loss": "bce_loss", "info/grad_norm": "grad_norm"}
    compare_step(fixture, agent, batch, noise, leaves, names)


def vice_noise(fixture: Fixture, cameras: list[str], rate: float) -> Noise:
    """The recorded noise by our names; the penalty's masks are one for all samples."""

    def each(name: str) -> Tensor:
        return torch.stack([fixture.given(f"noise/{name}/{camera}") for camera in cameras])

    noise = {
        "crop": fixture.given("noise/crop_offsets").long(),
        "mixup": each("lam"),
        "permutation": each("permutation").long(),
        "interpolation": each("epsilon"),
    }
    for prefix, name in (("", "dropout_bce"), ("penalty_", "dropout_gp")):
        masks = [scaled_mask(fixture.given(f"noise/{name}/encoder_{camera}"), rate) for camera in cameras]
        hidden = scaled_mask(fixture.given(f"noise/{name}/hidden"), rate)
        noise[f"{prefix}dropout"] = torch.stack([mask.reshape(-1, mask.shape[-1]) for mask in masks], dim=1)
        noise[f"{prefix}hidden_dropout"] = hidden.reshape(-1, hidden.shape[-1])
    return noise
