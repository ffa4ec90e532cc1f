"""Measures the variants of an instance in turns, and plays the times back to pytest-benchmark."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from benchmarks.interleaved import turns
from benchmarks.suite import Instance, Run, Timed, Work

LIMIT = "(limit)"  # the variant under which a limit that is a function is measured
FEWEST_ROUNDS = 6  # that a 95 % interval of a median needs
PATIENCE = 4.0  # times the planned seconds of a variant, after which the fewest rounds are enough
LONGEST = 60.0  # seconds of a variant, after which three rounds are enough


@dataclass
class Outcome:
    """What became of an instance; ``results.json`` keeps it.

    Attributes:
        id: of the instance, and so are the next seven.
        limit: the name of a limit of the machine, :data:`LIMIT` where the case measured its own, or None.
        passes: by variant, for every pass over the suite, seconds per call in each of its rounds.
        missing: by variant, why there are none.
        failed: whether one of these reasons is an error.
        took: seconds, building included; the next run's estimate of the time left.
        extra: see :class:`benchmarks.suite.Work`.
    """

    id: str
    suite: str
    title: str
    parameters: dict[str, Any]
    scaling: str | None
    variants: list[str]
    baseline: str | None
    unit: str = "calls"
    units: float = 1.0
    bytes: float = 0.0
    flops: float = 0.0
    limit: str | None = None
    passes: dict[str, list[list[float]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: bool = False
    took: float = 0.0
    extra: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, instance: Instance) -> Outcome:
        """Of an instance that was not measured yet."""
        plain = {key: value if _plain(value) else str(value) for key, value in instance.parameters.items()}
        return cls(
            instance.id, instance.suite, instance.title, plain, instance.scaling, list(instance.variants),
            instance.baseline,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """For ``results.json``."""
        return json.loads(json.dumps(asdict(self), default=str))


def measure(work: Work, run: Run, outcome: Outcome) -> None:
    """Measure what ``work`` built into ``outcome``; a variant that fails is missing from then on.

    A round of a variant takes ``run.seconds``, or a single call where that is longer. Variants whose calls are long get
    fewer rounds (:data:`PATIENCE`, :data:`LONGEST`), all of a work equally many.
    """
    functions = dict(work.functions)
    if callable(work.limit):
        functions[LIMIT] = work.limit
    timers = {name: timer_of(function, run.device) for name, function in functions.items()}
    counts: dict[str, int] = {}
    rounds: dict[str, list[float]] = {name: [] for name in timers}
    spent = dict.fromkeys(timers, 0.0)
    planned = run.rounds * run.seconds
    gc.collect()
    gc.disable()
    try:
        for index, name in enumerate(turns(list(functions), run.rounds)):
            if index % len(functions) == 0 and index:
                slowest, done = max(spent.values()), index // len(functions)
                if slowest > (LONGEST if done < FEWEST_ROUNDS else PATIENCE * planned) and done >= 3:
                    break
            if name not in timers:
                continue
            start = time.perf_counter()
            try:
                rounds[name].append(timers[name](run.seconds, counts, name))
            except Exception as error:
                outcome.missing[name], outcome.failed = described(error), True
                del timers[name]
            spent[name] += time.perf_counter() - start
    finally:
        gc.enable()
    for name in timers:
        outcome.passes.setdefault(name, []).append(rounds[name])


Timer = Callable[[float, dict[str, int], str], float]


def timer_of(function: Callable[[], Any] | Timed, device: str) -> Timer:
    if isinstance(function, Timed):
        return lambda seconds, counts, name: function.seconds_per_call(seconds)
    clock = clock_of(device)

    def timer(seconds: float, counts: dict[str, int], name: str) -> float:
        if name not in counts:  # how many calls fit: found once, outside the rounds that count
            counts[name] = _calls_within(function, seconds, clock)
        return clock(function, counts[name]) / counts[name]

    return timer


def _calls_within(function: Callable[[], Any], seconds: float, clock: Callable[..., float]) -> int:
    calls = 1
    while True:
        took = clock(function, calls)
        if took >= seconds / 8 or calls >= 1 << 24:
            return max(1, round(calls * seconds / max(took, 1e-9)))
        calls *= 4


def clock_of(device: str) -> Callable[[Callable[[], Any], int], float]:
    """What times so many calls of a function on ``device``, in seconds."""
    return _seconds_by_events if device.startswith("cuda") else _seconds_by_clock


def _seconds_by_clock(function: Callable[[], Any], calls: int) -> float:
    repeat = range(calls)
    start = time.perf_counter()
    for _ in repeat:
        function()
    return time.perf_counter() - start


def _seconds_by_events(function: Callable[[], Any], calls: int) -> float:
    """Between two events around the calls, on the current stream, which other streams' work has to join.

    Not yet run on a CUDA device.
    """
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def described(error: BaseException) -> str:
    """An error in a line of a table."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"failed: {type(error).__name__}: {first}"[:300]


class Clock:
    """The timer of every test: it stands where the recorded times have moved it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


class Measurements:
    """Instances as their tests ask for them, one at a time: the work of the last is closed before the next is built.

    Args:
        run: what this run is.
        keep: takes every outcome that is finished.
    """

    def __init__(self, run: Run, keep: Callable[[Outcome], None] = lambda outcome: None) -> None:
        self.run = run
        self._keep = keep
        self._work: Work | None = None
        self._outcome: Outcome | None = None

    def play(self, instance: Instance, variant: str, benchmark: Any) -> None:
        """The test of one variant: measured before it, and played back; once and untimed at the scale "tiny"."""
        outcome = self.outcome(instance)
        if variant in outcome.missing:
            reason = outcome.missing[variant]
            (pytest.fail if reason.startswith("failed: ") else pytest.skip)(reason)
        benchmark.group = instance.id
        if not self.run.timed:
            assert self._work is not None
            function = self._work.functions[variant]
            benchmark.pedantic((lambda: function.seconds_per_call(0)) if isinstance(function, Timed) else function)
            return
        seconds = outcome.passes[variant][-1]
        benchmark.extra_info.update(outcome.extra.get(variant, {}))
        waiting = iter(seconds)

        def again() -> None:
            CLOCK.now += next(waiting, 0.0)

        benchmark.pedantic(again, rounds=len(seconds))

    def outcome(self, instance: Instance) -> Outcome:
        """Build and measure, unless this instance was the last to be asked for."""
        if self._outcome is not None and self._outcome.id == instance.id:
            return self._outcome
        self.close()
        outcome = self._outcome = Outcome.of(instance)
        start = time.monotonic()
        try:
            if not self.run.includes(instance.scale):
                pytest.skip(f"runs from the scale {instance.scale} on")
            work = self._work = instance.build(self.run)
            outcome.unit, outcome.units, outcome.bytes, outcome.flops = work.unit, work.units, work.bytes, work.flops
            outcome.missing |= work.missing
            outcome.limit = LIMIT if callable(work.limit) else work.limit
            if self.run.timed:
                measure(work, self.run, outcome)
        except pytest.skip.Exception as why:
            outcome.missing |= dict.fromkeys(instance.variants, str(why))
        except Exception as error:
            outcome.missing |= dict.fromkeys(instance.variants, described(error))
            outcome.failed = True
        finally:
            outcome.extra = {} if self._work is None else self._work.extra
            if self.run.timed:
                self._release()
        outcome.took = time.monotonic() - start
        if self.run.timed:
            self._keep(outcome)
        return outcome

    def close(self) -> None:
        """Free what the last instance built."""
        self._release()
        self._outcome = None

    def _release(self) -> None:
        work, self._work = self._work, None
        if work is not None and work.close is not None:
            work.close()


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) or value is None
