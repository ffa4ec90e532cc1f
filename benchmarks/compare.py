"""Results side by side: two of them as a ratio, more as the question whether they repeat each other."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import table, times
from benchmarks.results import Results
from benchmarks.spread import repeats


def compare(results: Sequence[Results], names: Sequence[str]) -> str:
    """A table of what all have in common; what only some have is counted below it.

    Runs of different times can not be paired by rounds. A difference counts where the printed spreads do not meet.

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
        if max(first.lower, last.lower) <= min(first.upper, last.upper):
            said = "no difference"
        else:
            said = f"{first.median / last.median:.3g} x"
        rows.append((suites[case], titles[case], variant, *(times(each) for each in found), said))
    everything = set().union(*figures)
    parts = [machines(results, names), table(rows)]
    if len(everything) > len(common):
        parts.append(f"{len(everything) - len(common)} more figures are in only some of them.")
    return "\n\n".join(parts)


def machines(results: Sequence[Results], names: Sequence[str]) -> str:
    """What the machines have not in common."""
    keys = list(dict.fromkeys(key for each in results for key in each.machine))
    rows = [("", *names)]
    for key in keys:
        values = [each.machine.get(key, "") for each in results]
        if len(set(values)) > 1:
            rows.append((key, *values))
    return table(rows) if len(rows) > 1 else "The same machine, versions and commit."


def repetition(results: Sequence[Results]) -> tuple[str, bool]:
    """Whether every figure differs by less than the spread it prints: text, and the answer.

    Args:
        results: of the same command, two or more.
    """
    figures = [each.figures() for each in results]
    common = [key for key in figures[0] if all(key in each for each in figures)]
    rows = [("case", "variant", *(f"run {index + 1}" for index in range(len(results))))]
    beyond = [key for key in common if not repeats([each[key] for each in figures])]
    rows += [(*key, *(times(each[key]) for each in figures)) for key in beyond]
    text = f"{len(common) - len(beyond)} of {len(common)} figures differ by less than the spread they print"
    return (f"{text}; those that do not:\n\n{table(rows)}" if beyond else f"{text}."), not beyond
