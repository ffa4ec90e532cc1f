"""The choices of an engine: execution, precision, and what happens where they can not be had."""

from __future__ import annotations

import contextlib
import platform
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
TF32_DEVICES = ("cuda",)
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
            scales the losses, see ``serl_fast.engine.guard``. Whether CUDA's products of float32 may be TensorFloat-32
            is said by two flags of the whole process, ``torch.backends.cuda.matmul.allow_tf32`` and
            ``torch.backends.cudnn.allow_tf32``: an engine sets both before everything that it runs, on for "tf32" and
            off for all others, and leaves them so. Engines of several precisions in one process are each right;
            products outside of engines, a ``PolicyRunner``'s too, follow the engine that ran last.
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

    def set_products(self, device: torch.device) -> None:
        """Make products of float32 what ``precision`` says; see there."""
        if device.type in TF32_DEVICES:
            torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
            torch.backends.cudnn.allow_tf32 = self.precision == "tf32"

    def remark(self, device: torch.device) -> str | None:
        """One line on a precision that ``device`` computes slowly; None where there is nothing to say."""
        if device.type != "cpu" or self.cast_to is None or computes_in(self.cast_to) is not False:
            return None
        said = f"precision {self.precision!r}: this CPU has no instructions for its products,"
        if self.cast_to == torch.float16:
            return f"{said} which torch then takes tens of times as long for as in 'float32'; choose 'float32'"
        return f"{said} which are slower than in 'float32'; choose 'float32'"

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


def computes_in(dtype: torch.dtype) -> bool | None:
    """Whether this machine's CPU has instructions for products of a 16-bit type; None: torch does not say."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if dtype == torch.bfloat16 and x86:
        # oneDNN's own answer counts AVX-512 without them, where it converts to float32 and back.
        asked = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    else:
        name = "bf16" if dtype == torch.bfloat16 else "fp16"
        asked = [getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)]
    answers = [bool(ask()) for ask in asked if ask is not None]
    return any(answers) if answers else None


def default_execution() -> Execution:
    """The fastest execution that this machine can run: compiled where there is a C++ compiler, else eager."""
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "compiled"
    return "eager"
