"""Where recordings are, what kind each is, and which belongs to which."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.parity.fixture import Fixture, FixtureError

HERE = Path(__file__).parent
GOLDEN = Path(os.environ.get("SERL_FAST_GOLDEN", HERE.parents[2] / "shared" / "golden"))
"""The whole recorded set; ``tests/parity/data`` holds a selection of it."""

KINDS = (
    "agent_pixels",
    "agent",
    "utd",
    "policy",
    "grasp_critic",
    "critic",
    "resnet10",
    "encoder_heads",
    "augmentation",
    "replay_buffer",
    "reward_classifier",
    "bc",
    "vice",
    "optimizer",
)

# An ending of an array's name that only this kind has, for folders whose fixture name says nothing.
SIGNS = {
    "insert/rewards": "replay_buffer",
    "step0/batch/rewards": "utd",
    "sample_actions/batched/argmax": "agent",
    "noise/permutation": "vice",
    "logits_eval": "reward_classifier",
    "eval/pi_actions": "bc",
    "gripper_action": "grasp_critic",
    "dmeanq_daction": "critic",
    "sample_log_prob": "policy",
    "corner_offsets": "augmentation",
    "pool/spatial_softmax": "resnet10",
    "learning_rate": "optimizer",
    "SpatialLearnedEmbeddings_0/kernel": "encoder_heads",
}


def kind_of(fixture: Fixture) -> str:
    """The kind of a recording, from the name in its ``meta.json`` and the names of its arrays.

    Raises:
        FixtureError: neither says.
    """
    name = str(fixture.meta.get("fixture", ""))
    kind = next((kind for kind in KINDS if name == kind or name.startswith(f"{kind}_")), None)
    if kind is None:
        held = [sign for sign in SIGNS if any(f"/{sign}/" in f"/{array}/" for array in fixture.arrays)]
        kind = SIGNS[held[0]] if held else None
    if kind is None:
        raise FixtureError(f"the kind is not known: meta.json says fixture {name!r}; known are {', '.join(KINDS)}")
    if kind in ("agent", "agent_pixels"):
        return "agent_pixels" if fixture.config.get("cameras") else "agent"
    return kind


@dataclass(frozen=True)
class Library:
    """Finds the recording that another one needs: the trunk's or the camera heads' parameters.

    Args:
        paths: the folders given on the command line.
    """

    paths: Sequence[Path]
    found: dict[tuple[str, str | None, Path], Fixture] = field(default_factory=dict)

    def find(self, kind: str, wanted_by: Fixture) -> Fixture:
        """The recording of ``kind`` with the same ``split``: beside ``wanted_by``, then among the given paths.

        Raises:
            FixtureError: there is none.
        """
        split, folder = wanted_by.meta.get("split"), wanted_by.path.resolve().parent
        if (known := self.found.get((kind, split, folder))) is not None:
            return known
        for path in (*sorted(path for path in folder.iterdir() if path.is_dir()), *self.paths):
            if _names(path) == (kind, split):
                return self.found.setdefault((kind, split, folder), Fixture.read(path))
        raise FixtureError(
            f"it needs the recording {kind!r} of split {split!r}, which is neither among the given paths nor beside it"
        )


def _names(path: Path) -> tuple[str | None, str | None]:
    """(kind, split) of a folder whose fixture name is the kind, perhaps with a suffix."""
    try:
        meta = json.loads((path / "meta.json").read_text())
    except (OSError, ValueError):
        return None, None
    name = str(meta.get("fixture", ""))
    kind = next((kind for kind in KINDS if name == kind or name.startswith(f"{kind}_")), None)
    return kind, meta.get("split")


def folders(root: Path) -> list[Path]:
    """The recordings below ``root``."""
    return sorted(path.parent for path in root.glob("*/meta.json"))
