"""The parity runner: our code on recorded inputs, beside what the original returned.

python -m tests.parity.check ../shared/golden/* --markdown docs/results/parity.md

Exit status 0: every array of every folder is an input or was compared, and every error is within its tolerance.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.parity import report
from tests.parity.fixture import Fixture, FixtureError
from tests.parity.library import Library, kind_of

MODULES = {
    "policy": "networks",
    "critic": "networks",
    "grasp_critic": "networks",
    "resnet10": "vision",
    "encoder_heads": "vision",
    "augmentation": "vision",
    "optimizer": "optimizer",
    "replay_buffer": "replay",
    "agent": "agents",
    "agent_pixels": "agents",
    "utd": "sequences",
    "bc": "bc",
    "reward_classifier": "rewards",
    "vice": "rewards",
}
"""Which module of ``tests.parity.kinds`` holds the function named after the kind."""


@dataclass
class Outcome:
    """What came of one folder."""

    name: str
    kind: str = "?"
    fixture: Fixture | None = None
    problem: str = ""
    trace: str = ""

    @property
    def ok(self) -> bool:
        """Whether it ran, everything was compared and is within its tolerance."""
        return bool(not self.problem and self.fixture and all(c.ok for c in self.fixture.comparisons))


def check(path: Path, library: Library) -> Outcome:
    """Run our code on one recording."""
    outcome = Outcome(path.name)
    try:
        outcome.fixture = fixture = Fixture.read(path)
        outcome.kind = kind = kind_of(fixture)
        getattr(importlib.import_module(f"tests.parity.kinds.{MODULES[kind]}"), kind)(fixture, library)
        if leftover := fixture.leftover():
            outcome.problem = f"not compared: {', '.join(leftover)}"
    except FixtureError as error:
        outcome.problem = str(error)
    except Exception as error:  # the others shall still be run
        outcome.problem = f"{type(error).__name__}: {error}"
        outcome.trace = traceback.format_exc()
    return outcome


def run(paths: Sequence[Path]) -> list[Outcome]:
    """Run every folder among ``paths``, and say which paths are none."""
    given = [path for path in paths if path.is_dir()]
    for path in paths:
        if path.is_file():
            print(f"{path.name}: a file, not a recording; skipped")
    library = Library(given)
    missing = [Outcome(path.name, problem="there is no such folder") for path in paths if not path.exists()]
    return [*(check(path, library) for path in given), *missing]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.check", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folders with arrays.npz and meta.json")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables, condensed, to FILE")
    parser.add_argument("--every", action="store_true", help="a row for each array, not for each group of arrays")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the same sums in the same order on every machine
    outcomes = run(options.paths)
    for outcome in outcomes:
        print(report.table(outcome, every=options.every))
    print(report.summary(outcomes))
    if options.markdown:
        options.markdown.write_text(report.markdown(outcomes))
    return 0 if outcomes and all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
