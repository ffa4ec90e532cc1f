"""The two choices of an engine: execution and precision."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Execution = Literal["eager", "compiled", "graphed"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]


@dataclass(frozen=True)
class EngineConfig:
    """How the update step runs.

    Attributes:
        execution: "eager" runs operation by operation; "compiled" runs the whole step as one compiled graph;
            "graphed" replays the compiled step as one CUDA graph (not available yet, see ``check``).
        precision: "float32"; "tf32" (float32 with TensorFloat-32 products, CUDA); "bfloat16" (autocast: weights, Adam
            and targets stay float32); "float16" (needs loss scaling; not available yet).
    """

    execution: Execution = "eager"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("execution", self.execution, get_args(Execution)),
            ("precision", self.precision, get_args(Precision)),
        ):
            if value not in accepted:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(accepted)}")

    def check(self, device: torch.device) -> None:
        """Refuse what cannot run on ``device``.

        Raises:
            ValueError: naming the setting, and what to choose instead.
        """
        if self.execution == "graphed":
            raise ValueError(
                "execution 'graphed' (CUDA graph capture) is not available yet; choose 'compiled' or 'eager'"
            )
        if self.precision == "float16":
            raise ValueError(
                "precision 'float16' needs loss scaling, which is not available in this version; "
                "choose 'bfloat16', 'tf32' or 'float32'"
            )
        if self.precision == "tf32" and device.type != "cuda":
            raise ValueError(f"precision 'tf32' needs a CUDA device, this is {device}; choose 'float32' or 'bfloat16'")


def default_execution() -> Execution:
    """The fastest execution that this machine can run: compiled where there is a C++ compiler, else eager."""
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "compiled"
    return "eager"
