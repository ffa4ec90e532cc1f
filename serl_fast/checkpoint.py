"""Checkpoints: one file of tensors and plain values, written whole or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from serl_fast.files import written_whole

FORMAT_VERSION = 1


class Storable(Protocol):
    """What is needed of a replay store here."""

    def snapshot(self, path: Path) -> None:
        """Make the folder ``path`` hold everything, whole or not at all."""


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
    try:
        with written_whole(path) as temporary, temporary.open("wb") as file:
            torch.save({"format_version": FORMAT_VERSION, **content}, file)
    except (OSError, RuntimeError) as error:
        # Of a disk that is full torch only says that its own count of bytes is wrong.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise OSError(reason.errno, reason.strerror, str(path)) from error
    return path


def save_stores(directory: Path, step: int, stores: Mapping[str, Storable]) -> Path:
    """Write replay stores to ``directory/replay_<step>/<name>``; returns the folder."""
    folder = directory / f"replay_{step}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, store in stores.items():
        store.snapshot(folder / name)
    return folder


def save_run(directory: Path, step: int, content: dict[str, Any], stores: Mapping[str, Storable]) -> Path:
    """Write stores, then the checkpoint that belongs to them, and only then remove the stores these replace.

    Args:
        directory: the run's folder.
        step: gradient steps so far; names the files.
        content: see :func:`save_checkpoint`.
        stores: replay stores by name; none for a checkpoint alone, which removes nothing.

    Returns:
        ``checkpoint_<step>.pth``.
    """
    kept = save_stores(directory, step, stores) if stores else None
    path = save_checkpoint(directory / f"checkpoint_{step}.pth", content)
    if kept is not None:
        for older in directory.glob("replay_*"):
            if older != kept:
                shutil.rmtree(older)
    return path


def newest_stores(directory: Path, names: Iterable[str]) -> Path | None:
    """The ``replay_<step>`` folder with the highest step that holds every store, or None.

    After a failure it may be newer than the last good checkpoint, or older than one whose stores did not fit on the
    disk: data are never left behind for want of a matching checkpoint.
    """
    found = {}
    for path in directory.glob("replay_*"):
        match = re.fullmatch(r"replay_(\d+)", path.name)
        if match and all((path / name / "header").is_file() for name in names):
            found[int(match[1])] = path
    return found[max(found)] if found else None


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
