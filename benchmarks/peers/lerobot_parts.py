"""LeRobot's replay buffer and SAC without the packages that its data sets, robots and uploads need.

Both files import modules that they use for type annotations, saving and exporting alone; those are stood in for, so
that the measured code is LeRobot's own, unchanged.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

STAND_INS = (
    "lerobot.configs.train",
    "lerobot.datasets",
    "lerobot.datasets.lerobot_dataset",
    "lerobot.datasets.utils",
    "lerobot.processor",
    "lerobot.utils.io_utils",
)


class StandIn(types.ModuleType):
    """A module whose every attribute is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def lerobot_module(name: str) -> Any:
    """A module of LeRobot's.

    Raises:
        ImportError: it is not installed, or needs more than the stand-ins.
    """
    package = importlib.import_module("lerobot")
    for stand_in in STAND_INS:
        sys.modules.setdefault(stand_in, StandIn(stand_in))
    if "lerobot.policies" not in sys.modules:
        # Its own __init__ imports every policy's configuration, and they their frameworks.
        policies = types.ModuleType("lerobot.policies")
        policies.__path__ = [f"{folder}/policies" for folder in package.__path__]
        sys.modules[policies.__name__] = policies
    return importlib.import_module(name)
