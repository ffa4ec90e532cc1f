"""The report of a run: a table for every suite, made from ``results.json`` alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import markdown
from benchmarks.measure import LIMIT, Outcome
from benchmarks.results import Results, is_floor, ratio, shown_variant
from benchmarks.spread import FASTER, FEW, NOISY, Figure, Ratio

README_PICTURES = ("update", "loop", "replay")
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
COLUMNS = ("case", "variant", "time of a call", "rate", "against the baseline", "bytes", "FLOPs", "of the limit",
           "peak memory", "compile", "capture", "further")  # fmt: skip
OWN_COLUMNS = ("compile_s", "capture_s", "peak_bytes", "note", "floor")
HOW_TO_READ = (
    "A time is the median of all rounds, and in brackets the spread that a repetition stays within: quartiles, 95 % "
    "interval of the median and medians of the passes, whichever reaches further, widened by what the machine itself "
    "changed meanwhile. A ratio is the median over rounds in turns, above 1 faster than the baseline, in brackets "
    "its 95 % interval. Where that holds 1, the row says noisy and nobody has won. A floor is a part of the work "
    "alone, and no competitor. Warm-up, compiling and capturing are not part of the times. Further figures are those "
    "of the first pass. Bytes count what is read and what is written, FLOPs a multiply-add as two. More is in "
    "docs/guides/benchmarks.md."
)
INTERRUPTED = "**Interrupted**: only what was measured until then is here."


def report(results: Results, pictures: Sequence[Path] = ()) -> str:
    """The page ``report.md``.

    Args:
        results: of a run.
        pictures: beside the page.
    """
    parts = [f"# Benchmarks: {results.machine.get('GPU') or results.machine.get('CPU', 'unknown machine')}"]
    parts += [f"```\n{results.command}\n```", markdown(results.machine), _run_line(results), limits_table(results)]
    if results.interrupted:
        parts.append(INTERRUPTED)
    for suite in results.suites:
        parts += [f"## {suite}", suite_table(results, suite)]
        parts += [f"![{path.stem}]({path.name})" for path in pictures if path.stem.split("_")[0] == suite]
    if "GPU" not in results.machine:
        parts.append("## On a GPU\n\nNot yet measured. `python -m benchmarks --device cuda` measures it.")
    if results.failures:
        parts.append("## Failed\n\n" + "\n\n".join(f"```\n{text.strip()[-2000:]}\n```" for text in results.failures))
    return "\n\n".join([*parts, HOW_TO_READ]) + "\n"


def _run_line(results: Results) -> str:
    run = results.run
    passes = max((len(each) for case in results.cases for each in case.passes.values()), default=0)
    return (
        f"Scale {run.get('scale')}: {run.get('rounds')} rounds of {run.get('seconds')} s of every variant, in turns, "
        f"in {passes} pass{'es' * (passes != 1)}; {results.seconds / 60:.1f} minutes. The machine's own unrest "
        f"meanwhile: {'not measured' if results.unrest is None else f'{results.unrest:.1%}'}."
    )


def limits_table(results: Results) -> str:
    """What the machine can do at most."""
    if not results.limits:
        return "The machine's limits were not measured."
    rows = [("limit", "", "reached by")]
    rows += [
        (name, f"{quantity(each['value'])}{'B' if each['unit'] == 'bytes' else 'FLOP'}/s", each["how"])
        for name, each in results.limits.items()
    ]
    return table(rows)


def suite_table(results: Results, suite: str) -> str:
    """Every case of a suite and its variants; columns that nobody fills are left out."""
    rows = [row for case in results.of_suite(suite) for row in case_rows(results, case)]
    used = [index for index in range(len(COLUMNS)) if index < 3 or any(row[index] for row in rows)]
    return table([[row[index] for index in used] for row in (COLUMNS, *rows)])


def case_rows(results: Results, case: Outcome) -> list[tuple[str, ...]]:
    """A row for every variant, :data:`COLUMNS`, and one for the limit the case measured itself."""
    rows = []
    for variant in [*case.variants, *([LIMIT] if case.limit == LIMIT else [])]:
        title = case.title if not rows else ""
        taken = results.seconds_per_call(case, variant)
        if taken is None:
            rows.append((title, variant, case.missing.get(variant, "not measured"), *[""] * (len(COLUMNS) - 3)))
            continue
        extra = case.extra.get(variant, {})
        further = [f"{_name(key)} {_extra(key, value)}" for key, value in extra.items() if key not in OWN_COLUMNS]
        if extra.get("note"):
            further.append(str(extra["note"]))
        if variant in case.missing:
            further.append(f"not in every pass: {case.missing[variant]}")
        fraction = None if variant == LIMIT else results.of_limit(case, variant)
        named = "" if case.limit in (None, LIMIT) else f" ({case.limit})"
        rows.append(
            (
                title,
                "limit" if variant == LIMIT else variant,
                times(taken),
                rate(case.units / taken.median, case.unit),
                _against_of(case, variant),
                f"{quantity(case.bytes)}B, {quantity(case.bytes / taken.median)}B/s" if case.bytes else "",
                f"{quantity(case.flops)}FLOP, {quantity(case.flops / taken.median)}FLOP/s" if case.flops else "",
                "" if fraction is None else f"{fraction:.0%}{named}",
                _extra("peak_bytes", extra["peak_bytes"]) if "peak_bytes" in extra else "",
                _extra("compile_s", extra["compile_s"]) if "compile_s" in extra else "",
                _extra("capture_s", extra["capture_s"]) if "capture_s" in extra else "",
                "; ".join(further),
            )
        )
    return rows


def _against_of(case: Outcome, variant: str) -> str:
    if variant == LIMIT:
        return ""
    if is_floor(case, variant):
        return "floor"
    return against(ratio(case, variant), variant == case.baseline)


def against(found: Ratio | None, baseline: bool) -> str:
    """A ratio as the guard lets it be said."""
    if found is None:
        return "baseline" if baseline else ""
    interval = f"[{found.lower:.3g}, {found.upper:.3g}]"
    if found.verdict == NOISY:
        return f"noisy {interval}"
    if found.verdict == FEW:
        return f"{FEW}, {found.median:.3g} x {interval}"
    return f"{'**' * (found.verdict == FASTER)}{found.median:.3g} x{'**' * (found.verdict == FASTER)} {interval}"


def times(taken: Figure) -> str:
    """``"12.3 us [11.9, 12.8]"``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        if taken.median >= scale or unit == "ns":
            break
    return f"{taken.median / scale:.3g} {unit} [{taken.lower / scale:.3g}, {taken.upper / scale:.3g}]"


def quantity(value: float) -> str:
    """Three digits and a prefix, with the space before the unit: ``"12.3 M"``."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g} "


def rate(value: float, unit: str) -> str:
    """``"3.72 M transitions/s"``."""
    return f"{quantity(value).strip()} {unit}/s"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the header."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def _name(key: str) -> str:
    return key.removesuffix("_s").removesuffix("_bytes").replace("_", " ")


def _extra(key: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    if key.endswith("_s"):
        return times(Figure(value, value, value)).partition(" [")[0]
    if key.endswith("_bytes") or key == "bytes":
        return f"{quantity(value)}B"
    return f"{value:.4g}"


def readme_block(results: Results, folder: str, pictures: Sequence[Path]) -> str:
    """The short table of the README: of every case its first parameters, and :func:`shown_variant`; and the pictures.

    What makes the figures doubtful or incomplete stands above them.

    Args:
        results: of a run.
        folder: of the results, as the README refers to it.
        pictures: in that folder.
    """
    rows, seen = [("suite", "case", "variant", "rate", "against", "")], set()
    for case in results.cases:
        shown = shown_variant(case)
        if case.id.partition("[")[0] in seen or shown is None:
            continue
        seen.add(case.id.partition("[")[0])
        said = rate(case.units / results.seconds_per_call(case, shown).median, case.unit)
        rows.append((case.suite, case.title, shown, said, str(case.baseline), against(ratio(case, shown), False)))
    machine = results.machine
    where = f"{machine.get('GPU') or machine.get('CPU')}, {machine.get('cores')} cores, {machine.get('date')}"
    said = f"`{results.command}` on {where}, commit {machine.get('commit')} ([all of it]({folder}/report.md)):"
    doubts = [f"**Caution**: {machine['caution']}."] if machine.get("caution") else []
    doubts += [INTERRUPTED] if results.interrupted else []
    if results.failures:
        first = [text.strip().splitlines()[0] for text in results.failures if text.strip()]
        doubts.append(f"**{len(results.failures)} failed**: {'; '.join(first)}.")
    text = [said, *doubts, table(rows) if len(rows) > 1 else "No case has been measured beside its baseline yet."]
    text += [f"![{path.stem}]({folder}/{path.name})" for path in pictures if path.stem in README_PICTURES]
    if "GPU" not in machine:
        text.append("On a GPU: not yet measured.")
    return "\n\n".join(text)


def replace_block(page: str, block: str) -> str:
    """The page with what stands between its two markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN} and {END}; add them where the table is to stand")
    return f"{before}{begin}\n{block}\n{end}{after}"
