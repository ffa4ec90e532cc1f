"""Checkpoints: one file of tensors and plain values, written whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint can not be used; the message names the file and says why."""


def save_checkpoint(path: str | Path, content: dict[str, Any]) -> Path:
    """Write ``content`` to ``path`` through a temporary file, so that a crash or a full disk leaves the old one whole.

    Args:
        path: the file to make.
        content: tensors and plain containers.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save({"format_version": FORMAT_VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain containers are admitted, no code is run.

    Raises:
        CheckpointError: no such file, not a checkpoint, truncated, or of another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise CheckpointError(f"{path}: not a serl_fast checkpoint (no format_version)")
    if content["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {content['format_version']}; this version of serl_fast reads {FORMAT_VERSION}"
        )
    return content


def latest_checkpoint(run_dir: str | Path) -> Path:
    """The ``checkpoint_<step>.pth`` with the highest step in ``run_dir``.

    Raises:
        CheckpointError: there is none.
    """
    found = {}
    for path in Path(run_dir).glob("checkpoint_*.pth"):
        match = re.fullmatch(r"checkpoint_(\d+)\.pth", path.name)
        if match:
            found[int(match[1])] = path
    if not found:
        raise CheckpointError(f"{run_dir}: no checkpoint_<step>.pth to continue from")
    return found[max(found)]
