"""Compiling a step as one graph, and what is said when that fails or happens again."""

from __future__ import annotations

import types
from typing import Any

import torch

RECOMPILED = "the step was compiled again at update {}; TORCH_LOGS=recompiles says why (said once)"


class ExecutionError(RuntimeError):
    """A step did not compile and ``EngineConfig.strict`` forbids running it eagerly."""


def can_trace_autograd() -> bool:
    """Whether this torch can compile ``autograd.grad`` inside a function, which makes the whole step ONE graph.

    An older one compiles the losses; gradients, Adam and target averages stay outside, with the same results.
    """
    return hasattr(torch._dynamo.config, "trace_autograd_ops")


def compile_function(function: Any) -> Any:
    """Compile a function as one graph for fixed shapes.

    Dynamo counts recompilations per code object, and the steps of all engines share one: without a copy of its own the
    ninth engine of a process would be refused.
    """
    if isinstance(function, types.FunctionType):
        code, closure = function.__code__.replace(), function.__closure__
        copied = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        copied.__kwdefaults__ = function.__kwdefaults__
        function = copied
    return torch.compile(function, fullgraph=True, dynamic=False)


def graphs_compiled() -> int:
    """Graphs that this process has compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line of at most 200 characters: compilers' messages have hundreds of lines."""
    error = getattr(error, "inner_exception", error)  # torch's wrapper says only that the compiler raised
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
