"""Triton kernels without a CUDA device: interpreted, compiled to machine code, and traced for one that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from serl_fast.kernels.choice import HAS_TRITON

# What every interpreted script needs. The interpreter cuts float32 to bfloat16 where a device rounds: one unit apart.
PREAMBLE = """
import torch
from torch import Tensor

generator = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=generator)


def integers(high, *shape, dtype=torch.int64):
    return torch.randint(0, high, shape, dtype=dtype, generator=generator)


def assert_close(actual: Tensor, expected: Tensor, case, atol=0.0):
    assert actual.shape == expected.shape, case
    unit = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}[actual.dtype]
    error = (actual.double() - expected.double()).abs() - unit * expected.double().abs()
    assert float(error.max()) <= atol, (case, float(error.max()))
"""


@pytest.fixture
def interpret() -> Callable[[str], None]:
    """Runs a script in Triton's interpreter, which is chosen when a kernel is defined: in a process of its own."""
    if not HAS_TRITON:
        pytest.skip("Triton is not installed")

    def run(script: str) -> None:
        env = os.environ | {"TRITON_INTERPRET": "1"}
        code = f"{PREAMBLE}\n{script}\nprint('done')"
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["done"]

    return run


@pytest.fixture
def compile_for_hopper() -> Callable[..., str]:
    """(kernel, types of its run-time arguments, constants) -> PTX; compiled to machine code of capability 9.0."""
    if not HAS_TRITON or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton is not installed, or interprets")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def build(kernel: Any, arguments: dict[str, str], constants: dict[str, Any], warps: int = 4) -> str:
        types = arguments | dict.fromkeys(constants, "constexpr")
        signature = {name: types[name] for name in kernel.arg_names}
        # As at a launch: PyTorch's memory starts at multiples of 16 bytes.
        pointers = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
        aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
        source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        assert compiled.asm["cubin"]
        ptx: str = compiled.asm["ptx"]
        return ptx

    return build


class FakeCuda:
    """Tensors that claim to be on a CUDA device and hold nothing; what is traced on them is what CUDA would run."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        with self.mode:
            return torch.empty(*shape, dtype=dtype, device="cuda")

    def trace(self, function: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
        """The code of the one graph that ``function`` is compiled to, and what it returns."""
        graphs: list[Any] = []

        def backend(graph: Any, _: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        with self.mode:
            output = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*arguments)
        assert len(graphs) == 1
        code: str = graphs[0].code
        return code, output


@pytest.fixture
def fake_cuda() -> FakeCuda:
    if not HAS_TRITON:
        pytest.skip("Triton is not installed")
    return FakeCuda()
