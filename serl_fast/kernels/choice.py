"""Which implementation of a kernel runs: Triton's on CUDA, plain PyTorch elsewhere, or what was asked for."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "torch"]

try:
    import triton  # noqa: F401

    HAS_TRITON = True
except ImportError:  # Triton exists for Linux only
    HAS_TRITON = False

_backend: Backend = "auto"


def use_backend(backend: Backend, device: torch.device | str = "cuda") -> None:
    """Choose for this process how the functions of ``serl_fast.kernels`` run.

    Args:
        backend: "auto" runs Triton kernels on CUDA tensors and plain PyTorch on all others; "triton" is the same, but
            must be possible; "torch" runs plain PyTorch everywhere, which compiles and differentiates as any PyTorch.
        device: where they are going to run.

    Raises:
        ValueError: the backend is not known, or it is "triton" and ``device`` or the installation cannot run it.
    """
    global _backend
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(get_args(Backend))}")
    if backend == "triton" and torch.device(device).type != "cuda":
        raise ValueError(f"backend 'triton' needs a CUDA device, this is {device}; choose 'auto' or 'torch'")
    if backend == "triton" and not HAS_TRITON:
        raise ValueError("backend 'triton' needs the package triton, which is not installed; choose 'auto' or 'torch'")
    _backend = backend


def uses_triton(tensor: Tensor) -> bool:
    """Whether kernels run as Triton kernels on ``tensor``; a constant for a compiler, nothing is read from it."""
    return HAS_TRITON and _backend != "torch" and tensor.is_cuda
