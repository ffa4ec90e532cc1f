"""The choices of an engine: execution, precision, and what happens where they can not be had."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

Execution = Literal["eager", "compiled", "graphed"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]

BELOW: dict[Execution, Execution] = {"graphed": "compiled", "compiled": "eager"}
"""The rung of the ladder that is tried next."""

ACCELERATOR_CHECK_INTERVAL = 100
CAPTURING_DEVICES = ("cuda",)
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EngineConfig:
    """How the update step runs.

    Attributes:
        execution: "eager" runs operation by operation; "compiled" runs the whole step as one compiled graph;
            "graphed" replays the compiled step, noise and source included, as one CUDA graph. Both keep the Python
            state (settings, hooks) that they met when they were built.
        precision: "float32"; "tf32" (float32 with TensorFloat-32 products, CUDA); "bfloat16" and "float16" (autocast:
            products and convolutions in 16 bits; weights, Adam, targets and log-probabilities stay float32). "float16"
            scales the losses, see ``serl_fast.engine.guard``.
        strict: a step that can not be captured or compiled is an error; otherwise the next rung of the ladder graphed,
            compiled, eager runs it, which is said in one line.
        check_interval: updates between two looks at the flag that an update was not finite; None: every update on the
            CPU, else every 100. A look after every update waits for the device, a rarer one does not.
    """

    execution: Execution = "eager"
    precision: Precision = "float32"
    strict: bool = False
    check_interval: int | None = None

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("execution", self.execution, get_args(Execution)),
            ("precision", self.precision, get_args(Precision)),
        ):
            if value not in accepted:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(accepted)}")
        if self.check_interval is not None and self.check_interval < 1:
            raise ValueError(f"check_interval is {self.check_interval}; it must be at least 1")

    def check(self, device: torch.device) -> None:
        """Refuse what cannot run on ``device``.

        Raises:
            ValueError: naming the setting, and what to choose instead.
        """
        if self.execution == "graphed" and device.type not in CAPTURING_DEVICES:
            raise ValueError(
                f"execution 'graphed' captures a CUDA graph and this is {device}; choose 'compiled' or 'eager'"
            )
        if self.precision == "tf32" and device.type != "cuda":
            raise ValueError(f"precision 'tf32' needs a CUDA device, this is {device}; choose 'float32' or 'bfloat16'")

    def check_interval_on(self, device: torch.device) -> int:
        """``check_interval``, or what it is by default on ``device``."""
        if self.check_interval is not None:
            return self.check_interval
        return 1 if device.type == "cpu" else ACCELERATOR_CHECK_INTERVAL

    @property
    def cast_to(self) -> torch.dtype | None:
        """The 16-bit type of products and convolutions; None for none."""
        return _AUTOCAST.get(self.precision)

    def autocast(self, device: torch.device) -> Any:
        """The context of forward passes."""
        if self.cast_to is None:
            return contextlib.nullcontext()
        # Were a cast weight kept by an autocast around a capture, replays would read the weight of that moment.
        cached = self.execution != "graphed"
        return torch.autocast(device.type, dtype=self.cast_to, cache_enabled=cached)


def default_execution() -> Execution:
    """The fastest execution that this machine can run: compiled where there is a C++ compiler, else eager."""
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "compiled"
    return "eager"
