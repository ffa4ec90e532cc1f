"""Results of a run of the suite: what ``results.json`` holds, and what its times say."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import LIMIT, Outcome
from benchmarks.spread import Figure, Ratio, figure, speed_up, unrest

FOLDER = Path(__file__).parent / "results"
FILE = "results.json"
FORMAT = 1
SUITES = ("replay", "augment", "update", "act", "loop", "peers")


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
    """

    machine: dict[str, str]
    run: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    limits: dict[str, dict[str, Any]] = field(default_factory=dict)
    yardsticks: dict[str, list[float]] = field(default_factory=dict)
    cases: list[Outcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def save(self, folder: Path) -> Path:
        """Write ``results.json`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, default=str)
        short = re.sub(r"\[\s+((?:-?[\d.e+-]+,?\s*)+)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
        path.write_text(short + "\n", encoding="utf-8")
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
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON ({error}); give a folder that `python -m benchmarks` wrote") from error
        if not isinstance(known, dict) or known.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not of format {FORMAT}; give a folder that this `python -m benchmarks` wrote")
        cases = [Outcome(**each) for each in known.pop("cases")]
        return cls(cases=cases, **known)

    def add_pass(self, outcomes: Iterable[Outcome]) -> None:
        """Add another pass: its times beside the earlier ones', the rest replaces them."""
        by_id = {each.id: each for each in self.cases}
        for new in outcomes:
            old = by_id.get(new.id)
            if old is not None:
                for variant, passes in old.passes.items():
                    new.passes[variant] = passes + new.passes.get(variant, [])
                new.missing = {name: why for name, why in new.missing.items() if name not in new.passes}
                new.failed |= old.failed
            by_id[new.id] = new
        self.cases = list(by_id.values())

    @property
    def unrest(self) -> float:
        """See :func:`benchmarks.spread.unrest`."""
        return unrest(list(self.yardsticks.values()))

    def seconds_per_call(self, case: Outcome, variant: str) -> Figure | None:
        """Of a call; None where the variant is missing."""
        passes = case.passes.get(variant)
        return figure(passes, self.unrest) if passes and any(passes) else None

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


def newest(under: Path = FOLDER, device: str = "") -> Path | None:
    """The folder with the latest results, of a device's name if one is given."""
    found = [path.parent for path in under.glob(f"*/{FILE}") if path.parent.name.startswith(device)]
    return max(found, key=lambda folder: (folder / FILE).stat().st_mtime, default=None)


def known_durations(under: Path = FOLDER, device: str = "", scale: str = "") -> dict[str, float]:
    """Seconds that every case took in the latest results of the same scale; what can not be read says nothing."""
    folder = newest(under, device)
    try:
        results = Results.load(folder) if folder else None
    except (ValueError, TypeError):
        return {}
    if results is None or results.run.get("scale") != scale:
        return {}
    return {case.id: case.took for case in results.cases}
