"""Compiling a step as one graph, and what is said when that fails or happens again."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Sequence
from typing import Any

import torch

from serl_fast.engine.cpu_passes import CpuPasses
from serl_fast.engine.gathers import KernelsGather

RECOMPILED = "the step was compiled again at update {}; TORCH_LOGS=recompiles says why (said once)"
REBUILT = "the step was {} again at update {}: {} (said once)"


class ExecutionError(RuntimeError):
    """A step can not be captured or compiled, and ``EngineConfig.strict`` forbids running it in another way."""


def can_trace_autograd() -> bool:
    """Whether this torch can compile ``autograd.grad`` inside a function, which makes the whole step ONE graph.

    An older one compiles the losses; gradients, Adam and target averages stay outside, with the same results.
    """
    return hasattr(torch._dynamo.config, "trace_autograd_ops")


def reorders_only_plain_loops() -> bool:
    """Whether this torch fails where it could reorder the loops of foreach operations, Adam's say, on a GPU.

    2.11 asserts that there are none among those that it reorders (pytorch/pytorch#176591); 2.13 leaves them alone.
    """
    return tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)


def compile_function(function: Any, *, calls_from_cpp: bool = False) -> Any:
    """Compile a function as one graph for fixed shapes.

    Of what dynamo would check before every call, only what concerns the function's own arguments, ``training`` of
    modules and torch's global state is kept. The rest, a thousand conditions on modules that a closure holds, costs as
    much as a few matrix products of an update; ``serl_fast.engine.graphs.Watch`` notices where networks change.

    Args:
        function: what to compile.
        calls_from_cpp: C++ calls the kernels one after the other, in place of Python, and leaves the interpreter to
            other threads meanwhile. For the CPU.
    """
    function = _own_code(function)
    arguments = inspect.signature(function).parameters

    def keep(guards: Sequence[Any]) -> list[bool]:
        return [_root(guard.name) in ("", *arguments) or guard.name.endswith("training") for guard in guards]

    options: dict[str, Any] = {
        "guard_filter_fn": keep,
        "post_grad_custom_pre_pass": KernelsGather(),
        "post_grad_custom_post_pass": CpuPasses(),
        # It asserts that reductions that were split and fused have one size (2.11; a GPU and 16384 rows): they may not.
        "triton.mix_order_reduction": False,
    }
    if calls_from_cpp:
        # Kernels and what calls them are two files, which compile sooner than one.
        options |= {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
    if reorders_only_plain_loops():
        options["loop_ordering_after_fusion"] = False
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


def _own_code(function: Any) -> Any:
    """The function with a code object of its own.

    Dynamo counts recompilations per code object, and the steps of all engines share one: without a copy of its own the
    ninth engine of a process would be refused.
    """
    if not isinstance(function, types.FunctionType):
        called = function

        def function(*arguments: Any) -> Any:
            return called(*arguments)

    code, closure = function.__code__.replace(), function.__closure__
    copied = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _root(name: str) -> str:
    """The variable of which a guard speaks: ``batch`` for ``batch['actions']``, or ``L['batch']['actions']``."""
    found = re.match(r"(?:L\[['\"])?(\w*)", name)
    return found.group(1) if found else name


def graphs_compiled() -> int:
    """Graphs that this process has compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line of at most 200 characters: compilers' messages have hundreds of lines."""
    error = getattr(error, "inner_exception", error)  # torch's wrapper says only that the compiler raised
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
