"""The reward classifier as an agent: one objective, cross entropy on labelled pictures, and no policy.

Half of a batch should be successes. Two stores in a ``Mixture`` with ``sources=True`` give that, labels included:
``{"observations": batch["observations"], "labels": batch["sources"]}`` with the failures' store first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serl_fast.core import AdamConfig, Agent, Batch, Loss, Noise, Objective
from serl_fast.kernels.color_jitter import color_jitter
from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks.classifier import RewardClassifier
from serl_fast.networks.dropout import draw_dropout_mask


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Everything about the reward classifier but its cameras. Defaults are HIL-SERL's.

    Attributes:
        classes: 1 for success or failure; N > 1 for N classes.
        hidden: width of the hidden layer.
        dropout: rate in the hidden layer, between Dense and LayerNorm, in [0, 1).
        encoder: of the cameras, see ``networks.encoder.make_encoder``; "custom" where a module was given.
        pooling: see ``networks.encoder.make_encoder``; None for the encoder's own.
        image_size: (height, width) of the trunk's input, pixels.
        frames: stacked frames T per camera.
        encoder_dropout: dropout on the camera embeddings, in [0, 1).
        crop_padding: pixels of edge padding of the random crop; 0 for no crop.
        learning_rate: Adam's.
        threshold: the probability from which ``predict_success`` says success.
        color_jitter: brightness, contrast and saturation are multiplied by factors from 1 - this to 1 + this, each
            camera's own; in [0, 1), 0 for none. HIL-SERL has none.
        success_class: of several classes, the one that means success; None: ``predict_success`` is told.
    """

    classes: int = 1
    hidden: int = 256
    dropout: float = 0.1
    encoder: str = "resnet-pretrained"
    pooling: str | None = None
    image_size: tuple[int, int] = (128, 128)
    frames: int = 1
    encoder_dropout: float = 0.1
    crop_padding: int = 4
    learning_rate: float = 1e-4
    threshold: float = 0.5
    color_jitter: float = 0.0
    success_class: int | None = None

    def __post_init__(self) -> None:
        for name in ("dropout", "encoder_dropout", "color_jitter"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise ValueError(f"{name} is {rate}; it must be in [0, 1)")
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding is {self.crop_padding}; it must be at least 0")


def reward_classifier(
    image_keys: Sequence[str], config: ClassifierConfig | None = None, *, trunk: nn.Module | None = None
) -> Agent:
    """Build the agent. Its batches hold ``observations`` and ``labels`` [B] (see :func:`objective`).

    Args:
        image_keys: cameras, in the order in which their features are concatenated.
        config: hyper-parameters.
        trunk: an image trunk of your own in place of ``config.encoder``.

    Returns:
        The agent, with the :class:`RewardClassifier` as ``networks["classifier"]``.

    Raises:
        ValueError: no camera, or a setting out of range.
    """
    config = config or ClassifierConfig()
    if trunk is not None:
        config = dataclasses.replace(config, encoder="custom")
    classifier = RewardClassifier(
        image_keys,
        classes=config.classes,
        hidden=config.hidden,
        encoder=config.encoder,
        trunk=trunk,
        pooling=config.pooling,
        image_size=config.image_size,
        frames=config.frames,
        threshold=config.threshold,
        success_class=config.success_class,
    )
    return Agent(
        networks=nn.ModuleDict({"classifier": classifier}),
        critic_step=(objective(config),),
        draw_noise=noise_source(config, classifier),
        prepare=image_preparation(config, image_keys),
        optimizers={"classifier": AdamConfig(config.learning_rate)},
        settings={
            "algorithm": "reward_classifier",
            "image_keys": list(image_keys),
            "config": dataclasses.asdict(config),
        },
    )


def with_threshold(agent: Agent, threshold: float) -> Agent:
    """The agent with another threshold, in its classifier and in its settings."""
    classifier = agent.networks["classifier"]
    assert isinstance(classifier, RewardClassifier)
    classifier.threshold = threshold
    config = {**agent.settings["config"], "threshold": threshold}
    return dataclasses.replace(agent, settings={**agent.settings, "config": config})


def objective(config: ClassifierConfig) -> Objective:
    """Cross entropy with the labels.

    One logit l and labels y in {0, 1}: mean(softplus(l) - y l). Several classes: mean(-log softmax(l)_y).
    ``accuracy`` is that of the same pictures without dropout, before the step.

    Raises (when the loss is called):
        ValueError: labels of another shape than [B] or [B, 1], or class numbers that are not integers.

    Source: ``train_reward_classifier.py`` of HIL-SERL.
    """

    def loss(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Loss:
        classifier, observations = networks["classifier"], batch["observations"]
        logits = classifier(observations, noise.get("dropout"), noise.get("hidden_dropout"))
        with torch.no_grad():
            settled = classifier(observations)
        labels = _labels(batch["labels"], logits, config.classes)
        if config.classes == 1:
            value = F.binary_cross_entropy_with_logits(logits.squeeze(-1), labels.to(logits.dtype))
            predicted = settled.squeeze(-1) >= 0  # sigmoid >= 1/2
        else:
            value = F.cross_entropy(logits, labels.long())
            predicted = settled.argmax(-1)
        accuracy = (predicted == labels).float().mean()
        return Loss(value, {"loss": value.detach(), "accuracy": accuracy})

    return Objective("classifier", loss, trains=("classifier",))


def check_labels(labels: Tensor, classes: int = 1) -> None:
    """Look for values that are no label; the loss itself does not read values on the host.

    Args:
        labels: of a data set, any shape.
        classes: as in :class:`ClassifierConfig`.

    Raises:
        ValueError: there is none, or one is not among 0 .. classes - 1 (0 and 1 for ``classes`` = 1).
    """
    known = range(max(classes, 2))
    if not labels.numel():
        raise ValueError("there are no labels")
    wrong = [value for value in labels.unique().tolist() if value not in known]
    if wrong:
        raise ValueError(f"labels hold {wrong[:5]}; {'success is 1, failure 0' if classes == 1 else f'{list(known)}'}")


def noise_source(
    config: ClassifierConfig, classifier: RewardClassifier
) -> Callable[[torch.Generator, int, torch.device], Noise]:
    """A function that draws the random numbers of one update: ``crop``, ``dropout``, ``hidden_dropout``, ``jitter``."""

    def draw(generator: torch.Generator, batch_size: int, device: torch.device) -> Noise:
        def mask(rate: float, *shape: int) -> Tensor:
            return draw_dropout_mask((batch_size, *shape), rate, generator, device)

        noise: Noise = {}
        if config.crop_padding:
            choices = 2 * config.crop_padding + 1
            noise["crop"] = torch.randint(choices, (batch_size, 2), generator=generator, device=device)
        if config.encoder_dropout:
            noise["dropout"] = mask(config.encoder_dropout, *classifier.encoder.dropout_shape)
        if config.dropout:
            noise["hidden_dropout"] = mask(config.dropout, config.hidden)
        if config.color_jitter:
            shape = (batch_size, len(classifier.image_keys), 3)
            uniform = torch.rand(shape, generator=generator, device=device)
            noise["jitter"] = 1.0 + config.color_jitter * (2.0 * uniform - 1.0)
        return noise

    return draw


def image_preparation(
    config: ClassifierConfig, image_keys: Sequence[str]
) -> Callable[[nn.ModuleDict, Batch, Noise], Batch]:
    """Jitter colours, crop at random (the same offsets for all cameras of a sample), and run a frozen trunk once."""

    def prepare(networks: nn.ModuleDict, batch: Batch, noise: Noise) -> Batch:
        observations = dict(batch["observations"])
        if config.color_jitter:
            for key, factors in zip(image_keys, noise["jitter"].unbind(1), strict=True):
                observations[key] = color_jitter(observations[key], factors)
        if config.crop_padding:
            for key in image_keys:
                observations[key] = random_crop(observations[key], noise["crop"], config.crop_padding)
        classifier = networks["classifier"]
        assert isinstance(classifier, RewardClassifier)
        return {**batch, "observations": classifier.encoder.encode_trunk(observations)}

    return prepare


def _labels(labels: Tensor, logits: Tensor, classes: int) -> Tensor:
    """Labels as [B]."""
    batch_size = logits.shape[0]
    if labels.shape not in ((batch_size,), (batch_size, 1)):
        raise ValueError(f"labels have shape {tuple(labels.shape)}; {batch_size} pictures take ({batch_size},)")
    if classes > 1 and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise ValueError(f"labels are {labels.dtype}; {classes} classes take integers, 0 to {classes - 1}")
    return labels.reshape(batch_size)
