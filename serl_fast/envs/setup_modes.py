"""The four setup modes: how many arms, and whether their grippers are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

SetupModeName = Literal[
    "single-arm-fixed-gripper",
    "single-arm-learned-gripper",
    "dual-arm-fixed-gripper",
    "dual-arm-learned-gripper",
]

ARM_DIM = 6


@dataclass(frozen=True)
class SetupMode:
    """A layout of the action vector.

    Attributes:
        name: as users write it.
        arms: 1 or 2.
        learned_gripper: whether each arm's six numbers are followed by a gripper command.
    """

    name: str
    arms: int
    learned_gripper: bool

    @property
    def grippers(self) -> int:
        """Grippers that the policy commands."""
        return self.arms if self.learned_gripper else 0

    @property
    def action_dim(self) -> int:
        """Width of the full action: 6, 7, 12 or 14."""
        return (ARM_DIM + self.learned_gripper) * self.arms


SETUP_MODES: dict[str, SetupMode] = {
    name: SetupMode(name, 2 if name.startswith("dual") else 1, name.endswith("learned-gripper"))
    for name in get_args(SetupModeName)
}
