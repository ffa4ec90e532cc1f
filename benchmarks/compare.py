"""Results side by side: two of them as a ratio, more as the question whether they repeat each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report import table, times
from benchmarks.results import Results
from benchmarks.spread import repeats


def compare(results: Sequence[Results], names: Sequence[str]) -> str:
    """A table of what all have in common; what only some have is counted below it.

    Runs of different times can not be paired by rounds. A difference counts where the printed spreads do not meet. A
    row whose work is not the same has no ratio, and says why; see :func:`other_work`.

    Args:
        results: two or more.
        names: of the columns.
    """
    figures = [each.figures() for each in results]
    common = [key for key in figures[0] if all(key in each for each in figures)]
    titles = {case.id: case.title for case in results[0].cases}
    suites = {case.id: case.suite for case in results[0].cases}
    rows = [("suite", "case", "variant", *names, f"{names[-1]} against {names[0]}")]
    for case, variant in common:
        found = [each[case, variant] for each in figures]
        first, last = found[0], found[-1]
        other = other_work(results, case)
        if other:
            said = f"other work: {other}"
        elif max(first.lower, last.lower) <= min(first.upper, last.upper):
            said = "no difference"
        else:
            said = f"{first.median / last.median:.3g} x"
        rows.append((suites[case], titles[case], variant, *(times(each) for each in found), said))
    everything = set().union(*figures)
    parts = [machines(results, names), table(rows)]
    if len(everything) > len(common):
        parts.append(f"{len(everything) - len(common)} more figures are in only some of them.")
    return "\n\n".join(parts)


def other_work(results: Sequence[Results], case: str) -> str:
    """What of a case's work differs between results, so that its times are of different things; "" where nothing does.

    Units, bytes, FLOPs and parameters are the case's own; a scale builds stores and networks of its own size.
    """
    cases = [next(each for each in one.cases if each.id == case) for one in results]
    known: dict[str, list[Any]] = {"scale": [one.run.get("scale") for one in results]}
    known |= {name: [getattr(each, name) for each in cases] for name in ("unit", "units", "bytes", "flops")}
    for name in dict.fromkeys(name for each in cases for name in each.parameters):
        known[name] = [each.parameters.get(name) for each in cases]
    return ", ".join(
        f"{name} {' and '.join(map(_said, values))}"
        for name, values in known.items()
        if any(value != values[0] for value in values)
    )


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machines(results: Sequence[Results], names: Sequence[str]) -> str:
    """What the machines and the runs have not in common."""
    blocks = [each.machine | {f"run: {key}": str(value) for key, value in each.run.items()} for each in results]
    rows = [("", *names)]
    for key in dict.fromkeys(key for block in blocks for key in block):
        values = [block.get(key, "") for block in blocks]
        if len(set(values)) > 1:
            rows.append((key, *values))
    return table(rows) if len(rows) > 1 else "The same machine, versions, commit and run."


def repetition(results: Sequence[Results]) -> tuple[str, bool]:
    """Whether every figure differs by less than the spread it prints: text, and the answer.

    Args:
        results: of the same command, two or more.
    """
    figures = [each.figures() for each in results]
    common = [key for key in figures[0] if all(key in each for each in figures) and not other_work(results, key[0])]
    rows = [("case", "variant", *(f"run {index + 1}" for index in range(len(results))))]
    beyond = [key for key in common if not repeats([each[key] for each in figures])]
    rows += [(*key, *(times(each[key]) for each in figures)) for key in beyond]
    text = f"{len(common) - len(beyond)} of {len(common)} figures differ by less than the spread they print"
    return (f"{text}; those that do not:\n\n{table(rows)}" if beyond else f"{text}."), bool(common) and not beyond
