"""The matrix products of a function: their FLOPs, and a loop that runs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class MatrixProducts(TorchDispatchMode):
    """Records every matrix product and convolution that runs while the mode is on, gradients included.

    Attributes:
        flops: their floating point operations, a multiply-add counted as two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
            self._calls.append(lambda: func(*args, **kwargs))
        return result

    def __call__(self) -> None:
        """Run the recorded products again, on the tensors they ran on."""
        with torch.no_grad():
            for call in self._calls:
                call()
