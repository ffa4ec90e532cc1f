"""The most memory that a call takes, with what it works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def peak_bytes(build: Callable[[], tuple[Callable[[], Any], Any]], device: str) -> int:
    """Bytes of tensors at the highest.

    On a CUDA device above what lay there before, from ``build`` until after one more call: with all that compiling and
    capturing take. On the CPU, whose allocator keeps no account, the tensors that are held, and the most that one call
    adds. Not yet run on a CUDA device.

    Args:
        build: makes a function and warms it up; returns it, and what it holds: tensors in dicts and lists.
        device: "cpu" or a CUDA device.
    """
    if device == "cpu":
        call, held = build()
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors(held)}.values()) + added_bytes(call)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    build()[0]()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def added_bytes(call: Callable[[], Any]) -> int:
    """The most bytes of tensors on the CPU that a call adds to those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    total = most = 0
    for _, change in changes:
        total += change
        most = max(most, total)
    return most


def tensors(tree: Any) -> Iterator[Tensor]:
    """Those in nested dicts, lists and tuples."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (dict, list, tuple)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(value)
