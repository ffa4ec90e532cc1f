"""What a CUDA device did during some calls: kernels, idle gaps, waits of the host; and what the device can do.

Not yet run on a CUDA device, but for the arithmetic on intervals, which is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

GAP = 20e-6  # seconds; a device that waits longer for its next kernel is being kept waiting by the host
WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class Profile(NamedTuple):
    """Of one call, on average, if it does not say otherwise.

    Attributes:
        kernels: and copies that the device ran.
        busy: seconds in which at least one of them ran.
        span: seconds from the first one's start to the last one's end, over all calls, by their number.
        gaps: idle times longer than ``GAP``, over all calls.
        longest_gap: seconds.
        waits: of the host for the device, over all calls.
        slowest: kernel -> seconds, the ten that took most.
    """

    kernels: float
    busy: float
    span: float
    gaps: int
    longest_gap: float
    waits: int
    slowest: dict[str, float]


def profile(call: Callable[[], Any], calls: int = 50) -> Profile:
    """Profile ``calls`` calls of ``call``, warmed up, which are enqueued without waiting."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    intervals: list[tuple[float, float]] = []
    times: dict[str, float] = {}
    waits = 0
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            start, end = event.time_range.start * 1e-6, event.time_range.end * 1e-6
            intervals.append((start, end))
            times[event.name] = times.get(event.name, 0.0) + (end - start) / calls
        elif event.name in WAITS:
            waits += 1
    busy, idle = busy_and_idle(intervals)
    long = [gap for gap in idle if gap > GAP]
    slowest = dict(sorted(times.items(), key=lambda item: -item[1])[:10])
    last = 1  # the wait above, at the end
    return Profile(
        kernels=len(intervals) / calls,
        busy=busy / calls,
        span=(busy + sum(idle)) / calls,
        gaps=len(long),
        longest_gap=max(idle, default=0.0),
        waits=max(0, waits - last),
        slowest=slowest,
    )


def busy_and_idle(intervals: Iterable[tuple[float, float]]) -> tuple[float, list[float]]:
    """Seconds covered by at least one of the intervals (start, end), and the gaps between them."""
    busy, gaps = 0.0, []
    reached: float | None = None
    for start, end in sorted(intervals):
        if reached is None:
            busy, reached = end - start, end
        elif start > reached:
            gaps.append(start - reached)
            busy += end - start
            reached = end
        elif end > reached:
            busy += end - reached
            reached = end
    return busy, gaps


def device_limits(seconds: float = 0.5) -> dict[str, float]:
    """What this device reaches: bytes/s copied in its memory (read and written) and from the host; FLOP/s."""
    block = torch.empty(1 << 28, dtype=torch.uint8, device="cuda").random_()
    other, pinned = torch.empty_like(block), torch.empty(1 << 26, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(pinned, device="cuda")
    found = {
        "copy, bytes/s": 2 * block.numel() / _time(lambda: other.copy_(block), seconds),
        "host to device, bytes/s": pinned.numel() / _time(lambda: target.copy_(pinned, non_blocking=True), seconds),
    }
    size = 8192
    for name, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
        ("float16", torch.float16, False),
    ):
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        left, right = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
        found[f"{name}, FLOP/s"] = 2 * size**3 / _time(lambda a=left, b=right: a @ b, seconds)
        torch.backends.cuda.matmul.allow_tf32 = before
    return found


def _time(call: Callable[[], Any], seconds: float) -> float:
    """Median seconds of a call, by events of the device."""
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    once = start.elapsed_time(end) * 1e-3
    found = []
    for _ in range(max(5, min(100, int(seconds / max(once, 1e-6))))):
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) * 1e-3)
    return sorted(found)[len(found) // 2]
