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
        self._through_onednn: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
            self._calls.append(lambda: func(*args, **kwargs))
            self._through_onednn.append(_through_onednn(func, args, kwargs) or self._calls[-1])
        return result

    def __call__(self) -> None:
        """Run the recorded products again, on the tensors they ran on."""
        with torch.no_grad():
            for call in self._calls:
                call()

    def through_onednn(self) -> None:
        """The same products by oneDNN, as far as it offers them; the results are equal up to rounding.

        torch sends float32 products to MKL, which leaves AMD's AVX-512 units unused: there oneDNN takes half the time.
        """
        with torch.no_grad():
            for call in self._through_onednn:
                call()

    def captured(self) -> Callable[[], None]:
        """The recorded products as one CUDA graph: the device's time without that of launching.

        Not yet run on a CUDA device.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        return graph.replay


def _through_onednn(func: Any, args: Any, kwargs: Any) -> Callable[[], Any] | None:
    """A recorded product as calls of oneDNN, one for each matrix; None where it is left to torch."""
    batched = {
        torch.ops.aten.mm: False,
        torch.ops.aten.addmm: False,
        torch.ops.aten.bmm: True,
        torch.ops.aten.baddbmm: True,
    }
    if (
        func._overloadpacket not in batched
        or kwargs
        or args[-1].device.type != "cpu"
        or args[-1].dtype != torch.float32
    ):
        return None
    *bias, left, right = args
    few = not batched[func._overloadpacket] or len(left) <= 16  # a call for each of hundreds would take longer
    width = right.shape[-1]
    if not few or width == 1 or (bias and bias[0].numel() not in (width, len(right) * width)):
        return None
    if not batched[func._overloadpacket]:
        parts = [(left, right, bias[0] if bias else None)]
    else:
        biases = bias[0].flatten(1).expand(len(left), -1) if bias else [None] * len(left)
        parts = list(zip(left, right, biases, strict=True))

    def products() -> list[torch.Tensor]:
        linear = torch.ops.mkldnn._linear_pointwise
        return [linear(x, weight.mT, b, "none", [], "") for x, weight, b in parts]

    return products
