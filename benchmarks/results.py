"""Results of a run of the suite: what ``results.json`` holds, and what its times say."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import LIMIT, Outcome
from benchmarks.spread import Figure, Ratio, figure, speed_up, unrest

FOLDER = Path(__file__).parent / "results"
FILE = "results.json"
FORMAT = 1
SUITES = ("replay", "augment", "update", "act", "loop", "peers")
OURS, FLOOR = "serl_fast", "matrix products alone"  # how names of variants begin


@dataclass
class Results:
    """A run, or several passes of it.

    Attributes:
        machine: see benchmarks/machine.py.
        run: the fields of :class:`benchmarks.suite.Run`.
        command: that was given.
        limits: by name, the fields of :class:`benchmarks.limits.Limit`.
        yardsticks: by name, seconds of fixed work, taken before every case.
        cases: what became of every instance.
        failures: of the cases, with their tracebacks.
        seconds: that all of it took.
        interrupted: by Ctrl-C or the end of its process, so that cases are missing.
    """

    machine: dict[str, str]
    run: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    limits: dict[str, dict[str, Any]] = field(default_factory=dict)
    yardsticks: dict[str, list[float]] = field(default_factory=dict)
    cases: list[Outcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    def save(self, folder: Path) -> Path:
        """Write ``results.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, default=str)
        short = re.sub(r"\[\s+((?:-?[\d.e+-]+,?\s*)+)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
        write_whole(path, short + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a folder of results, or its ``results.json``.

        Raises:
            ValueError: it is none.
        """
        path = path / FILE if path.is_dir() else path
        if not path.exists():
            raise ValueError(f"{path} is not there; give a folder that `python -m benchmarks` wrote")
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no JSON ({error}); give a folder that `python -m benchmarks` wrote") from error
        if not isinstance(known, dict) or known.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not of format {FORMAT}; give a folder that this `python -m benchmarks` wrote")
        try:
            cases = [Outcome(**each) for each in known.pop("cases")]
            return cls(cases=cases, **known)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path} does not hold what results hold ({type(error).__name__}: {error}); give a folder that this "
                "`python -m benchmarks` wrote"
            ) from error

    def add_pass(self, outcomes: Iterable[Outcome]) -> None:
        """Add another pass, or a part of it: its times beside the earlier ones'; see :func:`merged`."""
        by_id = {each.id: each for each in self.cases}
        for new in outcomes:
            by_id[new.id] = merged(by_id[new.id], new) if new.id in by_id else new
        self.cases = list(by_id.values())

    @property
    def unrest(self) -> float | None:
        """See :func:`benchmarks.spread.unrest`."""
        return unrest(list(self.yardsticks.values()))

    def seconds_per_call(self, case: Outcome, variant: str) -> Figure | None:
        """Of a call; None where the variant is missing."""
        passes = case.passes.get(variant)
        return figure(passes, self.unrest or 0.0) if passes and any(passes) else None

    def of_limit(self, case: Outcome, variant: str) -> float | None:
        """Fraction of the limit that the variant reaches; None where there is none."""
        mine = self.seconds_per_call(case, variant)
        if mine is None or case.limit is None:
            return None
        if case.limit == LIMIT:
            floor = self.seconds_per_call(case, LIMIT)
            return None if floor is None else floor.median / mine.median
        limit = self.limits.get(case.limit)
        work = 0.0 if limit is None else case.flops if limit["unit"] == "FLOP" else case.bytes
        return work / mine.median / limit["value"] if limit and work else None

    def limit_rate(self, case: Outcome) -> float | None:
        """Units per second at the limit."""
        for variant in case.variants:
            fraction, mine = self.of_limit(case, variant), self.seconds_per_call(case, variant)
            if fraction and mine is not None:
                return case.units / mine.median / fraction
        return None

    def figures(self) -> dict[tuple[str, str], Figure]:
        """Seconds per call of all that was measured, by case and variant."""
        found = {(case.id, name): self.seconds_per_call(case, name) for case in self.cases for name in case.variants}
        return {key: each for key, each in found.items() if each is not None}

    def of_suite(self, suite: str) -> list[Outcome]:
        """The cases of a table."""
        return [case for case in self.cases if case.suite == suite]

    @property
    def suites(self) -> list[str]:
        """That have a case, in the order of the report."""
        there = {case.suite for case in self.cases}
        return [*(name for name in SUITES if name in there), *sorted(there - set(SUITES))]


def merged(old: Outcome, new: Outcome) -> Outcome:
    """A case of two passes, the earlier one first.

    A variant that one of them lacks has no rounds there, so that every variant has as many passes, and rounds of the
    same pass stay paired. What a call does is the later pass's, unless that measured nothing. Further figures
    (``extra``) are those of the first pass that has them; the reasons of both stay.
    """
    before, after = ([[]] * max(map(len, each.passes.values()), default=0) for each in (old, new))
    variants = dict.fromkeys([*old.passes, *new.passes])
    described = new if new.passes or not old.passes else old
    return replace(
        described,
        passes={name: [*old.passes.get(name, before), *new.passes.get(name, after)] for name in variants},
        missing=old.missing | new.missing,
        failed=old.failed or new.failed,
        extra={name: new.extra.get(name, {}) | old.extra.get(name, {}) for name in {**old.extra, **new.extra}},
    )


def is_floor(case: Outcome, variant: str) -> bool:
    """Whether a variant is a bound, such as an update's matrix products and nothing else: it can not win."""
    return variant == LIMIT or variant.startswith(FLOOR) or bool(case.extra.get(variant, {}).get("floor"))


def shown_variant(case: Outcome) -> str | None:
    """The variant that a short table shows: the fastest of this project's own.

    That is no floor and not the baseline, and its name begins with "serl_fast" where any name of the case does.
    """
    names = [name for name in case.variants if name != case.baseline and not is_floor(case, name)]
    own = [name for name in names if name.startswith(OURS)]
    found = {name: ratio(case, name) for name in own or names}
    return max((name for name, each in found.items() if each), key=lambda name: found[name].median, default=None)


def ratio(case: Outcome, variant: str) -> Ratio | None:
    """How many times faster than the baseline; None for the baseline itself and where one of them is missing."""
    if variant == case.baseline or case.baseline is None:
        return None
    mine, base = case.passes.get(variant), case.passes.get(case.baseline)
    if not mine or not base or not any(a and b for a, b in zip(mine, base, strict=False)):
        return None
    return speed_up(mine, base)


def device_name(machine: dict[str, str]) -> str:
    """``"nvidia-h100"``, ``"amd-epyc-7763-4-cores"``: the first half of a folder's name."""
    name = machine.get("GPU") or f"{machine.get('CPU', 'cpu')} {machine.get('cores', '')} cores"
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


def new_folder(machine: dict[str, str], under: Path = FOLDER) -> Path:
    """``<device>_<date>`` below ``under``, with a number where that is taken."""
    name = f"{device_name(machine)}_{machine.get('date') or time.strftime('%Y-%m-%d')}"
    count, folder = 1, under / name
    while folder.exists():
        count += 1
        folder = under / f"{name}_{count}"
    return folder


def prepared(folder: Path) -> Path:
    """``folder``, made and tried, so that nothing is measured that can not be kept.

    Raises:
        ValueError: no file can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ValueError(
            f"no results can be written to {folder} ({error.strerror}); give a folder of yours: --output DIR"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Replace a file by ``text``, whole or not at all: a process that is killed leaves what was there."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def newest(under: Path = FOLDER, device: str = "") -> Path | None:
    """The folder with the latest results by the date that they record, of a device's name if one is given.

    Of several of a day it is the file that was written last; a file that can not be read has no date.
    """
    found = [path for path in under.glob(f"*/{FILE}") if path.parent.name.startswith(device)]
    latest = max(found, key=lambda path: (_date(path), path.stat().st_mtime), default=None)
    return latest.parent if latest else None


def _date(path: Path) -> str:
    try:
        return str(Results.load(path).machine.get("date", ""))
    except (ValueError, AttributeError):
        return ""


def known_durations(under: Path = FOLDER, device: str = "", scale: str = "") -> dict[str, float]:
    """Seconds that every case took in the latest results of the same scale; what can not be read says nothing."""
    folder = newest(under, device)
    try:
        results = Results.load(folder) if folder else None
    except ValueError:
        return {}
    if results is None or results.run.get("scale") != scale:
        return {}
    return {case.id: case.took for case in results.cases}
