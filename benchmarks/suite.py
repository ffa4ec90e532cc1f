"""Cases of the benchmark suite: what is measured, in which variants, and from which scale on.

A case is a function that builds its work::

    @case("replay", variants=("serl_fast", "numpy"), baseline="numpy", title="sample {batch} of {data}")
    @pytest.mark.parametrize("data", ["states", pytest.param("cameras", marks=normal)])
    @pytest.mark.parametrize("batch", [256, pytest.param(4096, marks=normal)])
    def sample(run: Run, data: str, batch: int) -> Work: ...

The decorator makes a pytest-benchmark test of it, one for every variant and every combination of parameters, and enters
each combination into :data:`REGISTRY` as an :class:`Instance`, ``"replay/sample[256-states]"``. The variants of an
instance are measured in turns by whichever of their tests comes first (benchmarks/measure.py).
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import pytest

SCALES = ("tiny", "quick", "normal", "full")
LIMITS = ("copy", "row_gather", "products")
"""Limits of the machine that a case can name; see benchmarks/limits.py."""

normal = pytest.mark.scale("normal")
"""Mark of a parameter or case that runs from the scale "normal" on; without a mark it runs at every scale."""
full = pytest.mark.scale("full")
"""Mark of a parameter or case that runs at the scale "full" alone."""


@dataclass(frozen=True)
class Run:
    """What this run of the suite is.

    Attributes:
        device: "cpu" or "cuda".
        scale: "tiny" (``make test``: each case once, untimed, as small as it gets), "quick", "normal" or "full".
        rounds: of each variant.
        seconds: of one round.
        peers_python: interpreter with the other packages; None measures without peers.
    """

    device: str = "cpu"
    scale: str = "tiny"
    rounds: int = 7
    seconds: float = 0.1
    peers_python: str | None = None

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale!r}; accepted: {', '.join(SCALES)}")

    @property
    def timed(self) -> bool:
        """Whether anything is measured."""
        return self.scale != "tiny"

    def includes(self, scale: str) -> bool:
        """Whether what is marked with ``scale`` runs."""
        return SCALES.index(scale) <= max(SCALES.index(self.scale), SCALES.index("quick"))


@runtime_checkable
class Timed(Protocol):
    """Work that is no plain call in this process: a child process, a whole training run."""

    def seconds_per_call(self, seconds: float) -> float:
        """Seconds of one call, measured for about ``seconds``; 0 asks for a single call."""


@dataclass
class Work:
    """What a case builds: its variants, warmed up and compiled, and what one call of each does.

    Attributes:
        functions: one call of the work by variant; all do the same.
        units: of ``unit`` that one call does; rates are units per second.
        unit: "transitions", "updates", "steps", "calls".
        bytes: that one call has to move (read and written), 0: not counted.
        flops: that one call has to compute, a multiply-add counted as two, 0: not counted.
        limit: of :data:`LIMITS`, for ``bytes`` ("copy", "row_gather") or ``flops`` ("products"); or a function that is
            measured in the same turns and whose call is the floor for the same units.
        missing: variants that can not be measured, and why.
        extra: by variant, further figures of the table: "compile_s", "capture_s", "peak_bytes", "note", others.
            Filled in by the time the work is closed.
        close: called at the end.
    """

    functions: dict[str, Callable[[], Any] | Timed]
    units: float = 1.0
    unit: str = "calls"
    bytes: float = 0.0
    flops: float = 0.0
    limit: str | Callable[[], Any] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    extra: dict[str, dict[str, float | str]] = field(default_factory=dict)
    close: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.limit, str) and self.limit not in LIMITS:
            raise ValueError(f"limit is {self.limit!r}; accepted: {', '.join(LIMITS)}, or a function")


Builder = Callable[..., Work]


@dataclass(frozen=True)
class Instance:
    """A case with its parameters.

    Attributes:
        suite: "replay", "augment", "update", "act", "loop" or "peers".
        name: of the builder.
        parameters: its arguments beside ``run``.
        labels: the parameters as their ids say them.
        variants: in the order of the table.
        baseline: the variant that ratios refer to.
        title: for people.
        scaling: name of the parameter that goes on the x axis of a picture.
        scale: from which the instance runs.
        builder: makes the work.
        marks: of pytest, beside those of the scale.
    """

    suite: str
    name: str
    parameters: Mapping[str, Any]
    labels: Mapping[str, str]
    variants: tuple[str, ...]
    baseline: str | None
    title: str
    scaling: str | None
    scale: str
    builder: Builder
    marks: tuple[Any, ...] = ()

    @property
    def id(self) -> str:
        """``suite/name[label-label]``."""
        labels = "-".join(self.labels.values())
        return f"{self.suite}/{self.name}" + (f"[{labels}]" if labels else "")

    def build(self, run: Run) -> Work:
        """The work; every variant is in ``functions`` or in ``missing``."""
        work = self.builder(run, **self.parameters)
        unknown = (set(work.functions) | set(work.missing)) - set(self.variants)
        if unknown:
            raise ValueError(f"{self.id} built {sorted(unknown)}; its variants are {', '.join(self.variants)}")
        for variant in self.variants:
            if variant not in work.functions:
                work.missing.setdefault(variant, f"not offered on {run.device}")
        return work


REGISTRY: dict[str, Instance] = {}
"""Every instance by its id; importing a ``benchmarks/bench_*.py`` enters its cases."""


def case(
    suite: str,
    *,
    variants: Sequence[str],
    baseline: str | None = None,
    title: str = "",
    scaling: str | None = None,
) -> Callable[[Builder], Callable[..., None]]:
    """Make a builder a test of every variant and combination of parameters.

    Args:
        suite: the table the case is part of.
        variants: names of all that the builder may build.
        baseline: that ratios refer to; by default the last variant.
        title: for people; parameters in braces, ``"sample {batch} of {data}"``. By default name and parameters.
        scaling: name of the parameter that goes on the x axis of a picture; its values are numbers.

    ``pytest.mark.parametrize`` below the decorator gives the parameters, the one nearest to the function first;
    :data:`normal` and :data:`full` say from which scale on a parameter, or the whole case, runs.
    """

    def decorate(builder: Builder) -> Callable[..., None]:
        instances = list(_instances(builder, suite, tuple(variants), baseline or variants[-1], title, scaling))
        for instance in instances:
            earlier = REGISTRY.get(instance.id)
            if earlier is not None and earlier.builder.__module__ != builder.__module__:
                raise ValueError(f"{instance.id} is a case of {earlier.builder.__module__} already")
            REGISTRY[instance.id] = instance

        def test(measurements: Any, benchmark: Any, instance: Instance, variant: str) -> None:
            measurements.play(instance, variant, benchmark)

        labels = {instance.id: instance.id.partition("[")[2].rstrip("]") for instance in instances}
        parameters = [
            pytest.param(each, name, id="-".join(filter(None, (labels[each.id], name))), marks=each.marks)
            for each in instances
            for name in each.variants
        ]
        test.__name__, test.__qualname__, test.__doc__ = builder.__name__, builder.__qualname__, builder.__doc__
        test.__module__ = builder.__module__
        test.__test__ = True  # type: ignore[attr-defined]  # whatever its name is
        return pytest.mark.parametrize(("instance", "variant"), parameters)(test)

    return decorate


def _instances(
    builder: Builder, suite: str, variants: tuple[str, ...], baseline: str, title: str, scaling: str | None
) -> Iterator[Instance]:
    if baseline not in variants:
        raise ValueError(f"{builder.__name__}: baseline is {baseline!r}; its variants are {', '.join(variants)}")
    own: list[Any] = list(getattr(builder, "pytestmark", []))
    axes = [_values(mark) for mark in own if mark.name == "parametrize"]
    names = [name for axis in axes for name in axis[0][0]]
    arguments = list(inspect.signature(builder).parameters)
    if set(arguments) != {"run", *names}:
        raise ValueError(f"{builder.__name__} takes {arguments}; it is given 'run' and {names}")
    if scaling is not None and scaling not in names:
        raise ValueError(f"{builder.__name__}: scaling is {scaling!r}; its parameters are {names}")
    everywhere = [mark for mark in own if mark.name != "parametrize"]
    for combination in itertools.product(*axes):
        parameters = {n: v for part in combination for n, v in zip(part[0], part[1], strict=True)}
        labels = {"-".join(part[0]): part[2] for part in combination}
        marks = [*everywhere, *(mark for part in combination for mark in part[3])]
        scale = max((m.args[0] for m in marks if m.name == "scale"), key=SCALES.index, default="quick")
        other = tuple(mark for mark in marks if mark.name != "scale")
        said = title.format(**parameters) if title else " ".join([builder.__name__.replace("_", " "), *labels.values()])
        yield Instance(
            suite, builder.__name__, parameters, labels, variants, baseline, said, scaling, scale, builder, other
        )


def _values(mark: Any) -> list[tuple[tuple[str, ...], tuple[Any, ...], str, tuple[Any, ...]]]:
    """Of a parametrize mark: names, values, id and marks of each of its sets."""
    given, sets = mark.args[0], mark.args[1]
    names = tuple(part.strip() for part in given.split(",")) if isinstance(given, str) else tuple(given)
    ids = mark.kwargs.get("ids")
    found = []
    for index, each in enumerate(sets):
        name, marks = None, ()
        if hasattr(each, "marks"):  # pytest.param
            values, name, marks = tuple(each.values), each.id, tuple(each.marks)
        else:
            values = (each,) if len(names) == 1 else tuple(each)
        if name is None and ids is not None:
            name = ids(values[0]) if callable(ids) else ids[index]
        label = "-".join(getattr(value, "__name__", None) or str(value) for value in values)
        found.append((names, values, name or label, tuple(getattr(mark, "mark", mark) for mark in marks)))
    return found
