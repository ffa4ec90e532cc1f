"""A stand-in for CUDA graphs: operations are recorded once and repeated on the same tensors.

As in a CUDA graph Python runs at capture and never again, every address is that of the capture, and results are written
over those of the last replay. Unlike there memory is never used for two things, and the capture runs what it records.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero")
HOST_VALUES = ("aten::lift_fresh",)  # a constant that Python makes: a copy from memory that is not page-locked


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._schema.name
        if name in HOST_READS + HOST_VALUES:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        result = function(*arguments, **(options or {}))
        self.operations.append((function, arguments, options or {}, result))
        return result


class Tape:
    """Takes the place of ``serl_fast.engine.graphs.CudaGraphs``."""

    captures = 0
    replays = 0
    operations = 0

    def __init__(self, device: torch.device, generator: torch.Generator) -> None:
        pass

    def renew_pool(self) -> None:
        """There is no pool."""

    def warm_up(self, function):
        for _ in range(3):
            function()

    def capture(self, function):
        Tape.captures += 1
        recorder = _Recorder()
        with recorder:
            result = function()
        Tape.operations = len(recorder.operations)

        @torch.no_grad()
        def replay() -> None:
            Tape.replays += 1
            for operation, arguments, options, written in recorder.operations:
                again = operation(*arguments, **options)
                for old, new in zip(tree_leaves(written), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return replay, result
