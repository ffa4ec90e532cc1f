"""A program as one CUDA graph: captured once, then replayed by one call of the host.

A replay does what the capture did, at the same addresses. So a captured program reads its batch from memory of its
own, into which batches are copied (there is nothing to copy where a source draws them inside), draws its noise from a
generator that is registered with the graph, and writes parameters, moments, counts, targets and metrics where they
are. What it returns lies in the graph's memory: it is valid until the next replay of ANY program of the engine, since
programs share one pool of memory.

Not yet run on a CUDA device: the tests drive it with a stand-in that records operations and repeats them on the same
tensors.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from serl_fast.core import Batch, leaves

WARM_UP_CALLS = 3  # compilers, autotuning and libraries' workspaces are done by then
Result = TypeVar("Result")


class CudaGraphs:
    """The calls of CUDA that capturing needs; tests put a stand-in here.

    Args:
        device: a CUDA device.
        generator: of the noise that programs draw.
    """

    def __init__(self, device: torch.device, generator: torch.Generator) -> None:
        self._device, self._generator = device, generator
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = torch.cuda.graph_pool_handle()

    def renew_pool(self) -> None:
        """Share another pool from now on: one whose graphs are all gone can not be captured into again.

        That is so while a tensor of it is alive, such as metrics that a caller still holds.
        """
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Any]) -> None:
        """Run ``function`` as often as it takes, on a stream of its own."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_CALLS):
                    function()
            torch.cuda.current_stream().wait_stream(self._stream)
            torch.cuda.synchronize()  # errors of the device belong to what was just run

    def capture(self, function: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Record ``function`` without running it.

        Only this thread is forbidden what a capture can not take ("thread_local"): an actor may go on beside it.

        Returns:
            What replays it on the current stream, and its result, whose values every replay writes.
        """
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings(), contextlib.suppress(AttributeError):
            warnings.simplefilter("ignore")  # newer versions register generators by themselves and say so
            graph.register_generator_state(self._generator)
        with torch.cuda.device(self._device):
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    result = function()
            except Exception as error:
                self._pool = torch.cuda.graph_pool_handle()  # what a broken capture took from the old one is lost
                raise (error.__context__ or error) from None  # why, not that the capture could not be ended
            return graph.replay, result


class CapturedProgram:
    """A captured program.

    Args:
        graphs: how to capture.
        function: batch -> the metrics of every update; draws its noise itself.
        memory: from which it reads its batches, in :func:`own_memory`; programs on batches of one size share it.
    """

    def __init__(self, graphs: CudaGraphs, function: Callable[[Batch], list[dict[str, Tensor]]], memory: Batch) -> None:
        self._inputs = dict(leaves(memory))
        graphs.warm_up(lambda: function(memory))
        self._replay, self.metrics = graphs.capture(lambda: function(memory))

    def __call__(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Copy ``batch`` into place and replay; waits for nothing. The metrics are valid until the next replay."""
        if self._inputs:
            given = dict(leaves(batch))  # by name: another batch may have its fields in another order
            wanted = [given[name] for name in self._inputs]
            torch._foreach_copy_(list(self._inputs.values()), wanted, non_blocking=True)
        self._replay()
        return self.metrics


def own_memory(tree: Any) -> Any:
    """A batch like ``tree`` in memory that nobody else writes to."""
    if isinstance(tree, dict):
        return {key: own_memory(value) for key, value in tree.items()}
    return tree.clone(memory_format=torch.contiguous_format)


class Watch:
    """Notices what a compiled or captured program can not see: tensors and modes of networks that became others.

    Args:
        networks: their parameters, buffers and modules are watched.
    """

    def __init__(self, networks: nn.ModuleDict) -> None:
        self._modules = list(networks.modules())
        self._slots: list[tuple[dict[str, Any], str, Any]] = [
            (slots, name, held)
            for module in self._modules
            for slots in (module._parameters, module._buffers, module._modules)
            for name, held in slots.items()
        ]
        self._parameters = list(networks.parameters())
        self._tensors = [*self._parameters, *networks.buffers()]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        self._dtypes = [tensor.dtype for tensor in self._tensors]

    def replaced(self) -> bool:
        """Whether a parameter, buffer or network is another one, as after ``load_state_dict(assign=True)``.

        Or is of another dtype, as after ``.half()``.
        """
        if any(slots.get(name) is not held for slots, name, held in self._slots):
            return True
        return any(tensor.dtype != dtype for tensor, dtype in zip(self._tensors, self._dtypes, strict=True))

    def moved(self) -> bool:
        """Whether a tensor is at another address."""
        return [tensor.data_ptr() for tensor in self._tensors] != self._addresses

    def modes(self, *, training: bool) -> list[bool]:
        """``requires_grad`` of every parameter, and ``training`` of every module if that is asked for."""
        modes = [parameter.requires_grad for parameter in self._parameters]
        return modes + [module.training for module in self._modules] if training else modes
