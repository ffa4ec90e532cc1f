"""A trained classifier as a folder: ``classifier.safetensors`` (weights, settings) and ``config.json`` (threshold)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from serl_fast.checkpoint import CheckpointError
from serl_fast.core import Agent
from serl_fast.interop.policies import load_policy, save_policy
from serl_fast.logging import write_config
from serl_fast.networks.classifier import RewardClassifier

WEIGHTS, CONFIG = "classifier.safetensors", "config.json"


def save_classifier(folder: str | Path, agent: Agent, facts: Mapping[str, Any] | None = None) -> Path:
    """Write a trained classifier; :func:`load_classifier` restores it.

    Each file appears whole or not at all, ``config.json`` last.

    Args:
        folder: where it goes; made where it is not there.
        agent: of ``serl_fast.rewards.classifier.reward_classifier``.
        facts: further plain values for ``config.json``: names of the classes, flags of the training and so on.

    Returns:
        ``folder/classifier.safetensors``.
    """
    folder, classifier = Path(folder), agent.networks["classifier"]
    assert isinstance(classifier, RewardClassifier)
    (folder / CONFIG).unlink(missing_ok=True)  # that of an older classifier must not stand beside new weights
    path = save_policy(folder / WEIGHTS, agent)
    settings = classifier.settings
    known = {key: settings[key] for key in ("image_keys", "image_size", "classes", "success_class", "threshold")}
    write_config(folder, {**known, **(facts or {})})
    return path


def load_classifier(path: str | Path, device: torch.device | str = "cpu") -> RewardClassifier:
    """The classifier of a folder of :func:`save_classifier`, in evaluation mode.

    Its threshold is the one in ``config.json``, where it may be changed by hand. Only tensors and plain values are
    read.

    Args:
        path: the folder; or a file of weights alone, such as ``serl_fast.convert`` makes of a classifier of HIL-SERL.
        device: where it goes.

    Returns:
        The classifier, with ``threshold``, ``image_keys`` and ``settings``.

    Raises:
        CheckpointError: there is none, it is damaged, or it is something else.
    """
    path = Path(path)
    weights, config = (path / WEIGHTS, path / CONFIG) if path.is_dir() else (path, None)
    if not weights.is_file():
        raise CheckpointError(
            f"{weights}: no such classifier; give the output_dir of serl_fast.train_classifier, or a .safetensors file"
        )
    agent, _ = load_policy(weights)
    classifier = dict(agent.networks.items()).get("classifier")
    if not isinstance(classifier, RewardClassifier):
        raise CheckpointError(f"{weights}: it holds {agent.settings.get('algorithm')!r}, not a reward classifier")
    if config is not None and config.is_file():
        classifier.threshold = _threshold(config)
    return classifier.to(device).eval()


def _threshold(config: Path) -> float:
    try:
        value = json.loads(config.read_text(encoding="utf-8"))["threshold"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{config}: no settings of a classifier ({type(error).__name__}: {error})") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise CheckpointError(f"{config}: threshold is {value!r}; it must be a number between 0 and 1")
    return float(value)
