"""VICE: a reward learned from goal pictures alone, by telling them from what the policy sees.

The discriminator's positives are pictures of success, its negatives whatever the policy reaches; the reward is 1
where it takes a picture for a goal. It trains beside the policy, so that new states keep coming as negatives. Mixup,
label smoothing and a gradient penalty keep it from becoming certain.

Source: Fu et al. 2018 (VICE); Singh et al. 2019 (VICE-RAQ, from pictures); ``agents/continuous/vice.py`` of SERL, which
does not run as released. Differences from it: ``docs/algorithms/vice.md``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serl_fast.core import AdamConfig, Agent, Batch, Compat, Loss, Noise, Objective, Observations
from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks.classifier import Discriminator
from serl_fast.networks.dropout import draw_dropout_mask

NORM_EPSILON = 1e-6  # added to every squared entry of the penalised gradient, as in the original


@dataclasses.dataclass(frozen=True)
class ViceConfig:
    """Everything about VICE but its cameras. Defaults are SERL's.

    Attributes:
        label_smoothing: s in [0, 1); goals are labelled 1 - s/2, other pictures s/2.
        mixup: mix features and labels of two pictures.
        gradient_penalty: weight of the penalty.
        hidden: width of the hidden layer.
        dropout: rate in the hidden layer, between Dense and LayerNorm, in [0, 1).
        bottleneck: width of each camera's features.
        encoder: of the cameras, see ``networks.encoder.make_encoder``; "custom" where a module was given.
        pooling: see ``networks.encoder.make_encoder``; None for the encoder's own.
        image_size: (height, width) of the trunk's input, pixels.
        frames: stacked frames T per camera.
        encoder_dropout: dropout on the camera embeddings, in [0, 1).
        crop_padding: pixels of edge padding of the random crop that makes the second copy of every picture.
        learning_rate: Adam's.
        threshold: the probability from which the reward is 1.
        compat: "hil_serl": every camera is mixed with pictures and weights of its own, and the labels are those of
            the last one; one dropout mask serves all samples of the gradient penalty. None: all cameras of a sample
            are mixed alike; every sample has its own mask.
    """

    label_smoothing: float = 0.2
    mixup: bool = True
    gradient_penalty: float = 10.0
    hidden: int = 256
    dropout: float = 0.1
    bottleneck: int | None = 512
    encoder: str = "resnet-pretrained"
    pooling: str | None = None
    image_size: tuple[int, int] = (128, 128)
    frames: int = 1
    encoder_dropout: float = 0.1
    crop_padding: int = 4
    learning_rate: float = 3e-4
    threshold: float = 0.5
    compat: Compat | None = None

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "dropout", "encoder_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be in [0, 1)")
        for name in ("gradient_penalty", "crop_padding"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be at least 0")
        if self.compat is not None and self.compat not in get_args(Compat):
            raise ValueError(f"compat is {self.compat!r}; choose 'hil_serl' or None")


def vice(image_keys: Sequence[str], config: ViceConfig | None = None, *, trunk: nn.Module | None = None) -> Agent:
    """Build the agent that trains the discriminator.

    Its batches hold ``next_observations``; the SECOND half of the rows are goals, the first half what the policy saw.
    ``Mixture([online, goals])`` of two stores draws them so.

    Args:
        image_keys: cameras, in the order in which their features are concatenated.
        config: hyper-parameters.
        trunk: an image trunk of your own in place of ``config.encoder``.

    Returns:
        The agent, with the :class:`Discriminator` as ``networks["vice"]`` and no policy.

    Raises:
        ValueError: no camera, or a setting out of range.
    """
    config = config or ViceConfig()
    if trunk is not None:
        config = dataclasses.replace(config, encoder="custom")
    discriminator = Discriminator(
        image_keys,
        hidden=config.hidden,
        encoder=config.encoder,
        trunk=trunk,
        image_size=config.image_size,
        bottleneck=config.bottleneck,
        pooling=config.pooling,
        frames=config.frames,
        threshold=config.threshold,
    )
    return Agent(
        networks=nn.ModuleDict({"vice": discriminator}),
        critic_step=(objective(config),),
        draw_noise=noise_source(config, discriminator),
        prepare=image_preparation(config),
        optimizers={"vice": AdamConfig(config.learning_rate)},
        settings={"algorithm": "vice", "image_keys": list(image_keys), "config": dataclasses.asdict(config)},
    )


def objective(config: ViceConfig) -> Objective:
    """Binary cross entropy on mixed features, and a penalty that keeps the logit's slope near 1.

    x are the trunk's features of the 2B pictures [goals, cropped goals, seen, cropped seen], y their labels,
    1 - s/2 and s/2; per camera k a weight w, a permutation p and interpolation weights e:

    * mixed: x_k <- w_k x_k + (1 - w_k) x_k[p_k];
    * bce = w BCE(l, y) + (1 - w) BCE(l, y[p]), l the logits of the mixed features; w and p of the last camera
      (without ``compat`` they are those of every camera);
    * z_k = e_k x_k[:B] + (1 - e_k) x_k[B:] of the mixed features, between a goal and what was seen;
    * penalty = mean over cameras and samples of (n - 1)^2, n = sqrt(sum(g^2 + 1e-6)), g the gradient of the logit in
      z_k, over all entries of one camera's features;
    * loss = bce + ``gradient_penalty`` * penalty.

    Source: ``update_vice`` of SERL; mixup: Zhang et al. 2018; gradient penalty: Gulrajani et al. 2017.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        discriminator = _discriminator(networks)
        mixed = mix(discriminator, trunk_features(discriminator, batch["pictures"]), noise)
        logits = discriminator(mixed, noise.get("dropout"), noise.get("hidden_dropout")).squeeze(-1)  # [2B]
        bce = mixed_cross_entropy(logits, config.label_smoothing, noise)
        norms = gradient_norms(discriminator, mixed, noise)  # [K, B]
        penalty = (norms - 1).square().mean()
        value = bce + config.gradient_penalty * penalty
        metrics = {"loss": value, "bce_loss": bce, "gradient_penalty": penalty, "grad_norm": norms.mean()}
        return Loss(value, {name: metric.detach() for name, metric in metrics.items()})

    return Objective("vice", loss, trains=("vice",))


def trunk_features(discriminator: Discriminator, pictures: Observations) -> Observations:
    """Trunk features of every camera, [2B, (T,) h, w, C]; a trained trunk runs here, with gradient."""
    encoder = discriminator.encoder
    if encoder.frozen_trunk:
        return encoder.encode_trunk(pictures)  # nothing is left to do after `image_preparation`
    return {key: trunk(pictures[key]) for key, trunk in zip(encoder.image_keys, encoder.trunks, strict=True)}


def mix(discriminator: Discriminator, features: Observations, noise: Noise) -> Observations:
    """Mixup of every camera's features with those of other pictures: w x + (1 - w) x[p]."""
    if "mixup" not in noise:
        return features
    mixed = {}
    for k, key in enumerate(discriminator.image_keys):
        weight, x = noise["mixup"][k], features[key]
        mixed[key] = weight * x + (1 - weight) * x[noise["permutation"][k]]
    return mixed


def mixed_cross_entropy(logits: Tensor, label_smoothing: float, noise: Noise) -> Tensor:
    """Cross entropy of 2B logits, the first B of goals, with the labels of both pictures that were mixed."""
    count = logits.shape[0] // 2
    goal, other = 1 - label_smoothing / 2, label_smoothing / 2
    labels = torch.cat([logits.new_full((count,), goal), logits.new_full((count,), other)])
    own = F.binary_cross_entropy_with_logits(logits, labels)
    if "mixup" not in noise:
        return own
    weight, permutation = noise["mixup"][-1], noise["permutation"][-1]
    return weight * own + (1 - weight) * F.binary_cross_entropy_with_logits(logits, labels[permutation])


def gradient_norms(discriminator: Discriminator, mixed: Observations, noise: Noise) -> Tensor:
    """Norms of the logit's gradient in each camera's features between goals and seen pictures, float [K, B]."""
    between = {}
    for k, key in enumerate(discriminator.image_keys):
        goals, seen = mixed[key].chunk(2)
        weight = noise["interpolation"][k].reshape(-1, *[1] * (goals.dim() - 1))  # [B, 1, 1, 1]
        between[key] = weight * goals + (1 - weight) * seen
    count = noise["interpolation"].shape[1]
    # One mask for all samples (compat) has a first axis of 1.
    masks = [
        noise[name].expand(count, *noise[name].shape[1:]) if name in noise else None
        for name in ("penalty_dropout", "penalty_hidden_dropout")
    ]

    def total(features: Observations) -> Tensor:
        logits: Tensor = discriminator(features, *masks)
        return logits.sum()  # samples do not see each other: the gradient of the sum holds each one's own

    # `torch.func` and not `autograd.grad`: it compiles in a loss of its own as well as in the whole step.
    gradients = torch.func.grad(total)(between)
    squares = [gradient.float().flatten(1).square() + NORM_EPSILON for gradient in gradients.values()]
    return torch.stack([square.sum(1).sqrt() for square in squares])


def noise_source(
    config: ViceConfig, discriminator: Discriminator
) -> Callable[[torch.Generator, int, torch.device], Noise]:
    """A function that draws all random numbers of one update on a batch of B rows, goals included.

    ``crop`` int64 [B, 2]; ``mixup`` w ~ Beta(1, 1) = U(0, 1) [K] and ``permutation`` int64 [K, 2B]; ``interpolation``
    e ~ U(0, 1) [K, B]; ``dropout`` [2B, K * T, width], ``hidden_dropout`` [2B, hidden] and ``penalty_dropout``,
    ``penalty_hidden_dropout`` with B in place of 2B (1 under ``compat``).
    """
    cameras = len(discriminator.image_keys)
    independent = cameras if config.compat else 1

    def draw(generator: torch.Generator, batch_size: int, device: torch.device) -> Noise:
        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        noise: Noise = {"interpolation": uniform(independent, batch_size).expand(cameras, -1)}
        choices = 2 * config.crop_padding + 1
        noise["crop"] = torch.randint(choices, (batch_size, 2), generator=generator, device=device)
        if config.mixup:
            noise["mixup"] = uniform(independent).expand(cameras)
            noise["permutation"] = uniform(independent, 2 * batch_size).argsort(-1).expand(cameras, -1)
        for prefix, rows in (("", 2 * batch_size), ("penalty_", 1 if config.compat else batch_size)):
            if config.encoder_dropout:
                shape = discriminator.encoder.dropout_shape
                noise[f"{prefix}dropout"] = draw_dropout_mask((rows, *shape), config.encoder_dropout, generator, device)
            if config.dropout:
                shape = (rows, config.hidden)
                noise[f"{prefix}hidden_dropout"] = draw_dropout_mask(shape, config.dropout, generator, device)
        return noise

    return draw


def image_preparation(config: ViceConfig) -> Callable[[nn.ModuleDict, Batch, Noise], Batch]:
    """Line up ``pictures`` [goals, cropped goals, seen, cropped seen], 2B of them, as features of a frozen trunk.

    Raises (when it is called):
        ValueError: there are no ``next_observations``, a camera is missing, or B is odd.
    """

    def prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        if "next_observations" not in batch:
            raise ValueError(f"the batch has {sorted(batch)}; VICE reads 'next_observations', goals in the second half")
        observations, encoder = batch["next_observations"], _discriminator(networks).encoder
        pictures = {}
        for key in encoder.image_keys:
            if key not in observations:
                raise ValueError(f"camera {key!r} is missing; the next observations hold {sorted(observations)}")
            images = observations[key]
            if len(images) % 2:
                raise ValueError(f"the batch has {len(images)} rows; VICE takes an even number, half of them goals")
            cropped = random_crop(images, noise["crop"], config.crop_padding)
            (seen, goals), (cropped_seen, cropped_goals) = images.chunk(2), cropped.chunk(2)
            pictures[key] = torch.cat([goals, cropped_goals, seen, cropped_seen])
        return {**batch, "pictures": encoder.encode_trunk(pictures)}

    return prepare


@torch.no_grad()
def rewards(networks: nn.ModuleDict, observations: Observations) -> Tensor:
    """1 where the discriminator takes a picture for a goal, else 0, float [B].

    Args:
        networks: of :func:`vice`.
        observations: for each camera uint8 images [B, (T,) H, W, 3], as they come: not cropped.
    """
    discriminator = _discriminator(networks)
    return (torch.sigmoid(discriminator(observations)).squeeze(-1) >= discriminator.threshold).float()


def rewarded_by(agent: Agent, vice_networks: nn.ModuleDict, *, ends_episode: bool = False) -> Agent:
    """An agent that learns from VICE's rewards in place of the batch's: SERL's VICE agent is this, of DrQ.

    Every batch gets the rewards of the discriminator as it is then, so that old transitions follow it while it learns.
    The discriminator is shared with the agent of :func:`vice`, and is saved and moved to a device with that.

    Args:
        agent: any agent whose batches have ``rewards`` and ``next_observations`` with the discriminator's cameras.
        vice_networks: of :func:`vice`.
        ends_episode: nothing follows a reward of 1: the discount of such a transition becomes 0, and a value is a
            probability. Without it, as in SERL, a policy is paid for every step that it stays at the goal.
    """

    def prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        learned = rewards(vice_networks, batch["next_observations"])
        batch = {**batch, "rewards": learned}
        if ends_episode:
            batch["discounts"] = batch["discounts"] * (1 - learned)
        return agent.prepare(networks, batch, noise)

    return dataclasses.replace(agent, prepare=prepare)


def relabel(networks: nn.ModuleDict, store: Any, batch_size: int = 256) -> float:
    """Write VICE's rewards into a replay store, for all transitions that it holds now.

    Args:
        networks: of :func:`vice`.
        store: a ``serl_fast.replay.ReplayStore``.
        batch_size: pictures that pass the network at a time.

    Returns:
        The share of transitions with reward 1.
    """
    discriminator = _discriminator(networks)
    names = [f"next_observations/{key}" for key in discriminator.image_keys]
    total, held = 0.0, len(store)
    for start in range(0, held, batch_size):
        part = store[start : min(start + batch_size, held)]
        pictures = part.batch(fields=names)["next_observations"]
        found = (discriminator.probabilities(pictures) >= discriminator.threshold).cpu().numpy().astype(np.float32)
        store.relabel("rewards", part.ids, found)
        total += float(found.sum())
    return total / max(held, 1)


def _discriminator(networks: nn.ModuleDict) -> Discriminator:
    discriminator = networks["vice"]
    assert isinstance(discriminator, Discriminator)
    return discriminator
