"""Pictures of a run: how many times faster than the baseline by suite, and rates over what a case scales with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import LIMIT, Outcome
from benchmarks.report import quantity
from benchmarks.results import Results, is_floor, ratio
from benchmarks.spread import FASTER, NOISY, SLOWER

NO_MATPLOTLIB = "no pictures: matplotlib is not installed (pip install 'serl-fast[logging]'); the tables stand"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c564b")
MUTED = "#c8c8c8"
CREATOR = "python -m benchmarks"  # stands in every file, and says which of them may be replaced
BAR, GAP, MARGINS = 0.24, 0.42, 1.3  # inches: of a bar, above a case's title, of axis and legend
MOST_BARS = 40  # in one picture; a longer suite gets several


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the pictures into ``folder``, replacing those of an earlier call and nothing else.

    Args:
        results: of a run.
        folder: receives ``<suite>.svg`` and ``<suite>_<case>.svg``.

    Raises:
        ImportError: matplotlib is missing; :data:`NO_MATPLOTLIB`.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(NO_MATPLOTLIB) from error
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        if CREATOR.encode() in old.read_bytes():
            old.unlink()
    written = []
    style = {"svg.fonttype": "none", "svg.hashsalt": "serl_fast", "font.size": 9, "font.family": "sans-serif",
             "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
    with matplotlib.rc_context(style):
        for name, fill in _pictures(results):
            canvas = Canvas(layout="constrained")
            FigureCanvasAgg(canvas)
            fill(canvas)
            path = folder / f"{name}.svg"
            canvas.savefig(path, metadata={"Date": None, "Creator": CREATOR})
            written.append(path)
    return written


def _pictures(results: Results) -> Iterator[tuple[str, Any]]:
    for suite in results.suites:
        cases = [case for case in results.of_suite(suite) if _bars(case) and case.scaling is None]
        for index, part in enumerate(_parts(cases)):
            name = suite + f"_{index + 1}" * (index > 0)
            yield name, lambda canvas, part=part, suite=suite: bars(canvas, part, suite)
        for name, group in scaling_groups(results.of_suite(suite)).items():
            yield f"{suite}_{name}", lambda canvas, group=group: lines(canvas, results, group)


def _bars(case: Outcome) -> list[str]:
    return [name for name in case.variants if ratio(case, name) is not None and not is_floor(case, name)]


def _parts(cases: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    part: list[Outcome] = []
    for case in cases:
        if part and sum(len(_bars(each)) for each in [*part, case]) > MOST_BARS:
            yield part
            part = []
        part.append(case)
    if part:
        yield part


def bars(canvas: Any, cases: Sequence[Outcome], suite: str) -> None:
    """How many times faster than the baseline; a case's title stands above its bars, so that none is cut short."""
    count = sum(len(_bars(case)) for case in cases)
    canvas.set_size_inches(8.0, MARGINS + BAR * count + GAP * len(cases))
    axes = canvas.add_subplot()
    names = list(dict.fromkeys(variant for case in cases for variant in _bars(case)))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    found = [ratio(case, variant) for case in cases for variant in _bars(case)]
    low = min(0.8, *(each.lower for each in found))
    high = max(1.25, *(each.upper for each in found))
    at, ticks, labels = 0.0, [], []
    for case in cases:
        at += GAP / BAR * 0.62
        title = axes.text(low / 1.02, at, f"{case.title}  (1 = {case.baseline})", va="center", weight="bold")
        title.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # over the line at 1
        at += GAP / BAR * 0.38 + 0.4
        for variant in _bars(case):
            each = ratio(case, variant)
            clear = each.verdict in (FASTER, SLOWER)
            axes.barh(at, each.median - 1, left=1, height=0.8, color=colours[variant] if clear else MUTED)
            axes.plot([each.lower, each.upper], [at, at], color="black", linewidth=0.8)
            said = f"{each.median:.2f} x" if clear else "noisy" if each.verdict == NOISY else f"{each.median:.2f} x?"
            axes.annotate(said, (max(each.upper, 1.0), at), (4, 0), textcoords="offset points", va="center")
            ticks.append(at)
            labels.append(variant)
            at += 1.0
    axes.set_xscale("log")
    axes.set_xlim(low / 1.03, high * (high / low) ** 0.12)
    axes.set_ylim(at, 0)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.axvline(1, color="black", linewidth=0.8)
    _plain_ticks(axes, low, high)
    axes.set_xlabel("times faster than the baseline; the thin line is the 95 % interval")
    axes.set_title(suite, loc="left", weight="bold")


def _plain_ticks(axes: Any, low: float, high: float) -> None:
    """1, 2, 5, 10 rather than powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    steps = [m * 10.0**e for e in range(-3, 6) for m in ((1, 2, 5) if high / low < 300 else (1,))]
    if high / low < 4:
        steps = sorted({*steps, 0.8, 1.2, 1.5, 2.5, 3.0})
    axes.xaxis.set_major_locator(FixedLocator([step for step in steps if low / 1.03 <= step <= high * 1.2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def scaling_groups(cases: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Cases that differ in the parameter they scale with alone, by the name of their picture; at least two each."""
    groups: dict[str, list[Outcome]] = {}
    for case in cases:
        if case.scaling is None or not any(any(each) for each in case.passes.values()):
            continue
        others = [str(value) for key, value in case.parameters.items() if key != case.scaling]
        short = case.id.partition("/")[2].partition("[")[0]
        name = "_".join([short, *("".join(c if c.isalnum() else "-" for c in other) for other in others)])
        groups.setdefault(name, []).append(case)
    found = {name: sorted(group, key=_scale_of) for name, group in groups.items()}
    return {name: group for name, group in found.items() if len({_scale_of(case) for case in group}) > 1}


def _scale_of(case: Outcome) -> float:
    return float(case.parameters[case.scaling])  # type: ignore[index]


def lines(canvas: Any, results: Results, group: Sequence[Outcome]) -> None:
    """Units per second by variant over the parameter, both logarithmic, and the limit dashed."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    canvas.set_size_inches(7.0, 4.4)
    axes = canvas.add_subplot()
    first = group[0]
    for index, variant in enumerate(first.variants):
        points = [(case, results.seconds_per_call(case, variant)) for case in group]
        found = [(_scale_of(case), taken.inverse(case.units)) for case, taken in points if taken is not None]
        if not found:
            continue
        xs, rates = [x for x, _ in found], [rate for _, rate in found]
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(xs, [rate.median for rate in rates], "o-", color=colour, label=variant, markersize=4)
        axes.fill_between(xs, [r.lower for r in rates], [r.upper for r in rates], color=colour, alpha=0.2, linewidth=0)
    limits = [(_scale_of(case), results.limit_rate(case)) for case in group]
    reached = [(x, rate) for x, rate in limits if rate]
    if reached:
        what = "the case's own floor" if first.limit == LIMIT else f"limit of the machine, {first.limit}"
        axes.plot(*zip(*reached, strict=True), "--", color="black", label=what)
    axes.set_xscale("log")
    axes.set_yscale("log")
    places = sorted({_scale_of(case) for case in group})
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e4 else quantity(value)))
    low, high = axes.get_ylim()
    middle = math.sqrt(low * high)
    if high / low < 20:
        low, high = min(low, middle / 4), max(high, middle * 4)  # a flat line is to look flat
        axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value).strip()))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, axis="y", linewidth=0.4, alpha=0.5)
    axes.set_xlabel(str(first.scaling).replace("_", " "))
    axes.set_ylabel(f"{first.unit} per second")
    others = {key: value for key, value in first.parameters.items() if key != first.scaling}
    said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in others.items())
    name = first.id.partition("[")[0].replace("_", " ")
    axes.set_title(f"{name}{': ' * bool(said)}{said}", loc="left", weight="bold")
    canvas.legend(loc="outside lower center", ncols=3, frameon=False)
