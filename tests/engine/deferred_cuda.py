"""A stand-in for ``torch.cuda`` on CPU tensors that is as late as a device may be.

What is enqueued on a side stream runs only when somebody waits for it, or when the test says so; what is captured in a
graph runs again, operation by operation on the same tensors, at every replay. Work of the main stream runs at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._foreach_copy_.default)


class _Record(TorchDispatchMode):
    """Write operations down; with ``run`` also run them."""

    def __init__(self, into: Any, run: bool) -> None:
        super().__init__()
        self.into, self.run = into, run

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self.run:
            assert function in _COPIES, f"{function} on a stream that is late: only copies can wait"
            self.into.append((function, args, kwargs, args[0]))
            return args[0] if function is _COPIES[0] else None
        result = function(*args, **kwargs)
        self.into.append((function, args, kwargs, result))
        return result


class Stream:
    """Operations that were not run yet."""

    def __init__(self, device: Any = None, priority: int = 0, *, at_once: bool = False) -> None:
        self.device, self.priority, self.at_once = device, priority, at_once
        self.pending: deque[Any] = deque()
        self.enqueued = self.done = 0
        self.lock = threading.RLock()

    def append(self, operation: Any) -> None:
        with self.lock:
            self.pending.append(operation)
            self.enqueued += 1

    def run(self, until: int | None = None) -> None:
        with self.lock, torch.no_grad():
            while self.pending and (until is None or self.done < until):
                function, args, kwargs, _ = self.pending.popleft()
                function(*args, **kwargs)
                self.done += 1

    def wait_stream(self, other: Stream) -> None:
        other.run()

    def wait_event(self, event: Event) -> None:
        event.synchronize()

    def synchronize(self) -> None:
        self.run()


class Event:
    """A place in a stream."""

    def record(self, stream: Stream) -> None:
        self.stream, self.place = stream, stream.enqueued

    def query(self) -> bool:
        return self.stream.done >= self.place

    def synchronize(self) -> None:
        self.stream.run(self.place)


class CUDAGraph:
    """Operations with the tensors that they wrote."""

    def __init__(self) -> None:
        self.operations: list[Any] = []
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, result in self.operations:
            fresh = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(fresh), strict=True):
                if isinstance(old, torch.Tensor) and new is not old:
                    old.copy_(new)


class DeferredCuda:
    """What ``serl_fast.engine`` uses of ``torch.cuda``.

    Args:
        deferred: whether side streams wait; otherwise everything runs at once.
    """

    CUDAGraph, Event = CUDAGraph, Event

    def __init__(self, *, deferred: bool = True) -> None:
        self.deferred = deferred
        self.main = Stream(at_once=True)
        self.streams: list[Stream] = []
        self.graphs: list[CUDAGraph] = []
        self._current = threading.local()

    def Stream(self, device: Any = None, priority: int = 0) -> Stream:
        self.streams.append(Stream(device, priority, at_once=not self.deferred))
        return self.streams[-1]

    def current_stream(self, device: Any = None) -> Stream:
        return getattr(self._current, "stream", self.main)

    @contextlib.contextmanager
    def stream(self, stream: Stream):
        before = self.current_stream()
        self._current.stream = stream
        try:
            with contextlib.nullcontext() if stream.at_once else _Record(stream, run=False):
                yield
        finally:
            self._current.stream = before

    @contextlib.contextmanager
    def graph(self, graph: CUDAGraph, stream: Stream, capture_error_mode: str):
        assert capture_error_mode == "thread_local"
        assert self.current_stream() is stream
        self.graphs.append(graph)
        with _Record(graph.operations, run=True):
            yield
