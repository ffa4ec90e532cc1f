"""The runner's tables: for the terminal and, condensed, for ``docs/results/parity.md``."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tests.parity.fixture import MEAN_ROUNDING, ROUNDING, Comparison

if TYPE_CHECKING:
    from tests.parity.check import Outcome

COMMAND = "python -m tests.parity.check ../shared/golden/* --markdown docs/results/parity.md"


def table(outcome: Outcome, *, every: bool = False) -> str:
    """The table of one folder: quantity, arrays, largest error, tolerance, ok."""
    lines = [f"\n{outcome.name} ({outcome.kind})"]
    fixture = outcome.fixture
    if fixture is not None and fixture.comparisons:
        groups = {c.name: [c] for c in fixture.comparisons} if every else grouped(fixture.comparisons)
        width = max(len(group) for group in groups)
        lines.append(f"  {'quantity':{width}}  arrays  largest error  {'tolerance':26}  ok")
        lines += [_row(group, members, width) for group, members in groups.items()]
        lines += [f"  known fault of the original: {fault}" for fault in fixture.faults]
    if outcome.trace:
        lines.append(outcome.trace.rstrip())
    if outcome.problem:
        lines.append(f"  FAILED: {outcome.problem}")
    lines.append(f"  {outcome.name}: {_sentence(outcome)}")
    return "\n".join(lines)


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line over all folders, and one for each that failed."""
    failed = [outcome for outcome in outcomes if not outcome.ok]
    compared = sum(len(o.fixture.compared) for o in outcomes if o.fixture)
    lines = [f"\n{len(outcomes) - len(failed)} of {len(outcomes)} recordings agree; {compared} arrays compared."]
    lines += [f"FAILED {outcome.name}: {_reasons(outcome)}" for outcome in failed]
    return "\n".join(lines)


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The page of results: one table for all folders, one row for each group of quantities."""
    machine = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    lines = [
        "# Parity with the original",
        "",
        "Our code on inputs, parameters and noise that were recorded with the JAX original, beside what it returned:",
        "",
        f"    {COMMAND}",
        "",
        f"With {machine} on the {platform.machine()} CPU, float32. {summary(outcomes).strip()}",
        "",
        _EXPLANATION,
    ]
    for outcome in outcomes:
        lines += _section(outcome)
    return "\n".join(lines)


_EXPLANATION = f"""\
A row is the array of its group that uses most of its tolerance. *Of scale* is relative to the largest recorded
magnitude of the array (for a gradient: of the leaf), *of leaf norm* is a statistic (norm, sum, checksum) of a
leaf relative to its norm, *absolute* is in the quantity's own unit, *exact* is bit for bit. Where float32
leaves too few digits of the value itself, the table says which scale was used instead:

* *of largest term*: a mean of terms of both signs that cancel. float32 gives it to {MEAN_ROUNDING:.0e} of its largest
  term; where that is more than the tolerance allows of the mean, and the mean exceeds it, the term is the scale.
* *of sum |x|*: the sum over a whole feature map, both signs; the scale is the sum of the magnitudes.
* *of logits_eval*: one logit alone; the scale is the largest one of its batch.
* *of logit + change*: logits after a training step that moves them as far as they are large.

*Excused* counts parameters (for statistics: leaves) that differ by more than the tolerance because the recorded
gradient is known only to {ROUNDING:.0e} of its leaf's largest entry: Adam divides a gradient by its own size,
so that an entry near that level can step either way. They may differ by what two Adams do that are fed the
gradient plus and minus its rounding (`tests/parity/parameters.py`), and by no more. The recordings' notes speak of
about 1e-7; with that a statistic of one leaf of `bc`, whose gradients pass three layers of 512, would be beyond.

The original's replay buffer returns wrong frames after truncations and at some wrap-arounds; the recording
lists where. There ours is compared with what was inserted, and the place is counted as a known fault.
"""


def grouped(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """The comparisons by their row of the table, in order of appearance."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.group, []).append(comparison)
    return groups


def _row(group: str, members: list[Comparison], width: int) -> str:
    worst = _worst(members)
    ok = "yes" if worst.ok else "NO"
    text = f"  {group:{width}}  {len(members):6}  {worst.error:13.2g}  {_limit(worst):26}  {ok}"
    return text if worst.ok or worst.name == group else f"{text}  {worst.name}"


def _worst(members: list[Comparison]) -> Comparison:
    """The member that exhausts its tolerance most; a NaN is worst of all."""
    return max(members, key=lambda c: (not c.ok, c.error / (c.tolerance.limit or 1.0)))


def _limit(comparison: Comparison) -> str:
    tolerance = comparison.tolerance
    text = "exact" if tolerance.unit == "exact" else f"{tolerance.limit:.0e} {comparison.scale or tolerance.unit}"
    return text.replace("e-0", "e-")


def _sentence(outcome: Outcome) -> str:
    fixture = outcome.fixture
    if fixture is None:
        return "not run"
    beyond = sum(not c.ok for c in fixture.comparisons)
    text = f"{len(fixture.compared)} arrays compared, {len(fixture.inputs)} inputs, {beyond} beyond tolerance"
    excused = sum(c.excused for c in fixture.comparisons)
    if excused:
        text += f", {excused} excused (gradient at rounding level)"
    if fixture.faults:
        text += f", {len(fixture.faults)} known faults of the original"
    return f"{text}: {'agrees' if outcome.ok else 'FAILED'}"


def _reasons(outcome: Outcome) -> str:
    names = [c.name for c in outcome.fixture.comparisons if not c.ok] if outcome.fixture else []
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    reasons = [outcome.problem] if outcome.problem else []
    return "; ".join(reasons + ([f"beyond tolerance: {', '.join(names[:8])}{more}"] if names else []))


def _section(outcome: Outcome) -> list[str]:
    lines = [f"## {outcome.name}", ""]
    if outcome.problem:
        lines += [f"Failed: {outcome.problem}", ""]
    fixture = outcome.fixture
    if fixture is None or not fixture.comparisons:
        return lines if outcome.problem else [*lines, "Parameters that other recordings use; each has its place.", ""]
    lines += ["| quantities | arrays | largest error | tolerance | excused | ok |", "|---|--:|--:|---|--:|---|"]
    parts: dict[str, list[Comparison]] = {}
    for comparison in fixture.comparisons:
        parts.setdefault(_part(comparison.group), []).append(comparison)
    for part, members in parts.items():
        worst, excused = _worst(members), sum(c.excused for c in members)
        ok = "yes" if all(c.ok for c in members) else "**no**"
        row = (f"`{part}`", str(len(members)), f"{worst.error:.2g}", _limit(worst), str(excused or ""), ok)
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, "", f"{_sentence(outcome)}.", ""]


def _part(group: str) -> str:
    """The group of groups that has one row on the page."""
    parts = group.removeprefix("config.").split("/")
    if group.startswith("config."):
        return "config"
    return "/".join(parts[: 2 if parts[0] in ("step*", "stats") else 1])
