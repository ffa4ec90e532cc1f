"""Agents that read features of crops made in advance (``serl_fast.data.feature_cache``) in place of images."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from serl_fast.agents.parts import encoder_of
from serl_fast.core import Agent, Batch, Noise
from serl_fast.networks.encoder import Encoder

CHOICES = {"observations": "crop_choice", "next_observations": "next_crop_choice"}


def frozen_encoder(agent: Agent) -> Encoder:
    """The agent's encoder, whose trunk must be frozen: features of a trunk that learns go out of date.

    Raises:
        ValueError: there is no camera, or the trunk is trained.
    """
    encoder = dict(agent.networks.items()).get("encoder")
    if not isinstance(encoder, Encoder) or not encoder.image_keys:
        raise ValueError("a feature cache holds features of images, but this agent has no cameras; give --image_keys")
    if not encoder.frozen_trunk:
        raise ValueError(
            "a feature cache needs a frozen trunk, but this agent's encoder trains its own: choose --encoder "
            "resnet-pretrained, resnet18 or mobilenet, or leave --feature_cache out"
        )
    return encoder


def with_cached_features(agent: Agent, crops: int) -> Agent:
    """The same agent for batches that hold features of ``crops`` crops of every frame in place of images.

    One crop of each sample is drawn, the same for all of its cameras; those of observations and of next observations
    are independent. From there on nothing differs.

    Args:
        agent: with a frozen trunk.
        crops: K; for each camera a batch holds float32 features [B, K, ...] or float16 ones as bytes, uint8 with a
            last axis twice as long.

    Raises:
        ValueError: the agent has no cameras or trains their trunk.
    """
    image_keys = frozen_encoder(agent).image_keys

    def draw_noise(generator: torch.Generator, batch_size: int, device: torch.device) -> Noise:
        noise = agent.draw_noise(generator, batch_size, device)
        for name in CHOICES.values():
            noise[name] = torch.randint(crops, (batch_size,), generator=generator, device=device)
        return noise

    def prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        batch = dict(batch)
        for part, choice in CHOICES.items():
            chosen = {key: pick(batch[part][key], noise[choice]) for key in image_keys}
            batch[part] = {**batch[part], **chosen}
        return agent.prepare(networks, batch, noise)

    return dataclasses.replace(agent, draw_noise=draw_noise, prepare=prepare)


def pick(stored: Tensor, choice: Tensor) -> Tensor:
    """The crop ``choice`` [B] of each row of ``stored`` [B, K, ...], float32 [B, ...]."""
    rows = torch.arange(stored.shape[0], device=stored.device)
    features = stored[rows, choice]
    return features.view(torch.float16).float() if features.dtype == torch.uint8 else features


def encode_images(networks: nn.ModuleDict, images: dict[str, Tensor]) -> dict[str, Tensor]:
    """The frozen trunk's features of every camera's images, uint8 [N, H, W, 3] -> float32 [N, h, w, C]."""
    with torch.inference_mode():
        return encoder_of(networks).encode_trunk(images)
