"""The pre-trained ResNet-10 trunk: where its file is looked for."""

from __future__ import annotations

from pathlib import Path

from serl_fast.networks.encoder import Encoder
from serl_fast.networks.resnet10 import ResNet10, load_resnet10_params

FILE_NAME = "resnet10_params.pkl"


def usual_place() -> Path:
    """Where SERL and HIL-SERL keep the file."""
    return Path.home() / ".serl" / FILE_NAME


def where_to_get_it() -> str:
    """What to do where there is no file."""
    return (
        f"give --pretrained_encoder {FILE_NAME} (published with SERL on GitHub, release resnet10) or put it at "
        f"{usual_place()}"
    )


def find_pretrained(path: Path | None = None) -> Path | None:
    """``path`` where given, else the file at :func:`usual_place`, else None."""
    return path or (usual_place() if usual_place().exists() else None)


def load_pretrained(encoder: Encoder, path: Path | None = None) -> None:
    """Load the frozen trunk from :func:`find_pretrained`, and say from where; where there is none, say so.

    Raises:
        ValueError: the file is not what it should be.
    """
    found = find_pretrained(path)
    if found is None:
        print(f"no pre-trained ResNet-10: the frozen trunk is random, which learns worse; {where_to_get_it()}")
        return
    assert isinstance(encoder.trunk, ResNet10)
    load_resnet10_params(encoder.trunk, found)
    print(f"pre-trained ResNet-10 from {found}")
