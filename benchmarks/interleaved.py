"""Rates of several functions measured in turns, so that a slow spell of the machine hits all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

Name = TypeVar("Name")


class Rate(NamedTuple):
    """Calls per second: the median of the rounds, and their quartiles."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.lower:.3g} to {self.upper:.3g})"


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int = 9,
    seconds: float = 1.0,
    finish: Callable[[], Any] = lambda: None,
) -> dict[str, Rate]:
    """Measure ``functions`` in alternating rounds of ``seconds`` each.

    Args:
        functions: warmed up and compiled, by name.
        rounds: of every function, at least 2; odd rounds run in the opposite order.
        seconds: at least so long a round; a call that has begun is finished and counted.
        finish: waits until the calls are done, once at the end of a round; nothing where they are synchronous.
    """
    rates: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    gc.disable()
    try:
        for name in turns(list(functions), rounds):
            rates[name].append(calls_per_second(functions[name], seconds, finish))
    finally:
        gc.enable()
    return {name: summary(values) for name, values in rates.items()}


def turns(names: Sequence[Name], rounds: int) -> Iterator[Name]:
    """Every name in every round; odd rounds run in the opposite order, so that drift favours nobody."""
    for index in range(rounds):
        yield from names[:: -1 if index % 2 else 1]


def calls_per_second(function: Callable[[], Any], seconds: float, finish: Callable[[], Any] = lambda: None) -> float:
    finish()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        function()
        calls += 1
    finish()
    return calls / (time.perf_counter() - start)


def summary(values: list[float]) -> Rate:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Rate(median, lower, upper)
