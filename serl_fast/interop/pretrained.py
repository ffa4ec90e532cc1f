"""The pre-trained ResNet-10 trunk: where its file is looked for, and which encoders take it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from serl_fast.networks.encoder import Encoder
from serl_fast.networks.resnet10 import ResNet10, load_resnet10_params
from serl_fast.networks.trunks import is_frozen

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


def resnet10_trunks(encoder: nn.Module | None) -> list[ResNet10]:
    """The ResNet-10 trunks of an encoder: the one of all cameras, or that of each.

    Raises:
        ValueError: it has none, or others.
    """
    trunks: list[nn.Module] = []
    if isinstance(encoder, Encoder):
        trunks = [*encoder.trunks] if encoder.trunk is None else [encoder.trunk]
    found = [trunk for trunk in trunks if isinstance(trunk, ResNet10)]
    if found and len(found) == len(trunks):
        return found
    kinds = ", ".join(sorted({type(trunk).__name__ for trunk in trunks}))
    given = f"an image trunk {kinds}" if kinds else "no image trunk"
    what = "there is no encoder" if encoder is None else f"the {type(encoder).__name__} has {given}"
    raise ValueError(
        f"{what}; the pre-trained ResNet-10 goes into encoders 'resnet-pretrained' and 'resnet' with a camera at least"
    )


def load_pretrained(encoder: nn.Module, path: Path | None = None, *, target: nn.Module | None = None) -> None:
    """Load every ResNet-10 trunk from :func:`find_pretrained`, and say from where; where there is none, say so.

    Args:
        encoder: an :class:`Encoder` whose trunk is a ResNet-10, frozen ("resnet-pretrained") or trained, one for each
            camera ("resnet").
        path: of the file, in place of the usual one.
        target: the target copy of ``encoder``; its trunks, where it has its own, get the same weights.

    Raises:
        ValueError: the file is not what it should be, or the trunk is another; nothing is changed then.
    """
    first, *others = resnet10_trunks(encoder)
    if isinstance(target, Encoder) and (target.trunk is not None or len(target.trunks)):
        others += resnet10_trunks(target)
    found = find_pretrained(path)
    if found is None:
        frozen = "frozen " if is_frozen(first) else ""
        print(f"no pre-trained ResNet-10: the {frozen}trunk is random, which learns worse; {where_to_get_it()}")
        return
    ignored = load_resnet10_params(first, found)
    for trunk in others:
        trunk.load_state_dict(first.state_dict())
    print(f"pre-trained ResNet-10 from {found}" + (f"; ignored in it: {', '.join(ignored)}" if ignored else ""))
