"""One SAC update from the replay, beside other packages' own code for it.

python -m venv peers && peers/bin/pip install -e ".[peers]"
python -m benchmarks.update_peers --peers_python peers/bin/python --output docs/results/update_peers.md

The task is that of ``benchmarks.peers.task``: one call draws 256 transitions and updates critics, actor, temperature
and targets. Every package runs in a process of its own, and all of a table are alive at once; they are measured one
after the other, round by round, so that a slow spell of the machine hits all of them. Before that each has to take one
update from the same weights on the same data and end where plain NumPy ends. One that is missing or does other work is
a line that says so.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.children import Child, built_children, in_turns
from benchmarks.interleaved import Rate
from benchmarks.machine import busy_cores, machine, markdown, quiet_or_caution
from benchmarks.peers.worker import LEARNERS, LIMIT, ONEDNN
from serl_fast.cli import main, parse

OURS, EAGER = "serl_fast, compiled", "serl_fast, eager"
BUILD_LIMIT = 600.0  # seconds; all compile at once
PLACEHOLDER = "PYTHON"


@dataclass(frozen=True)
class UpdatePeersConfig:
    """Flags of ``benchmarks.update_peers``.

    Attributes:
        peers_python: interpreter with the other packages; by default this one.
        only: names of learners; all by default. The project's own and the limit are always measured.
        threads: 0 stands for all cores.
        rounds: of every learner, at least 2.
        seconds: of one round.
        output: Markdown file to write; a JSON file with all rates is put beside it.
    """

    peers_python: str = sys.executable
    only: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1, 2, 0)
    rounds: int = 7
    seconds: float = 1.0
    output: Path | None = None

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(LEARNERS)
        if unknown:
            raise ValueError(f"only {sorted(unknown)} are not known; choose from {list(LEARNERS)}")
        if shutil.which(self.peers_python) is None:
            raise ValueError(f"peers_python is {self.peers_python}, which is no program; give a Python interpreter")
        if self.rounds < 2:
            raise ValueError(f"rounds is {self.rounds}; quartiles need at least 2")


class Results(NamedTuple):
    """What one number of threads gave: answers to "build", rates, and reasons for gaps, by name."""

    threads: int
    built: dict[str, dict[str, Any]]
    rates: dict[str, Rate]
    why: dict[str, str]


def measure(threads: int, config: UpdatePeersConfig) -> Results:
    """Start, build and check every learner, then measure them in turns."""
    start = time.perf_counter()
    names = [name for name in LEARNERS if not config.only or name in (*config.only, OURS, EAGER, LIMIT, ONEDNN)]
    with tempfile.TemporaryDirectory() as cache:  # compiled code is made for a number of threads
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "JAX_PLATFORMS": "cpu",
        }
        started = [
            Child(
                name,
                "benchmarks.peers.worker",
                [name, str(threads)],
                sys.executable if LEARNERS[name].startswith("ours:") else config.peers_python,
                environment,
            )
            for name in names
        ]
        alive, why = built_children(started, BUILD_LIMIT)
        print(f"{threads} threads: built in {time.perf_counter() - start:.0f} s", why or "", flush=True)
        try:
            found = in_turns(alive, {"do": "rate", "seconds": config.seconds}, config.rounds, why, "rate")
        finally:
            for child in alive:
                child.close()
    rates = {name: values["rate"] for name, values in found.items()}
    print(f"{time.perf_counter() - start:.0f} s in all", {n: f"{r.median:.4g}" for n, r in rates.items()}, flush=True)
    return Results(threads, {child.name: child.built for child in alive}, rates, why)


def table(results: Results) -> str:
    """A row a learner, and what ours reaches of each."""
    lines = [
        "| | updates/s, median (quartiles) | serl_fast, compiled, over it | GFLOP counted |",
        "| --- | --- | --- | --- |",
    ]
    ours = results.rates.get(OURS)
    for name in LEARNERS:
        rate = results.rates.get(name)
        if rate is not None:
            ratio = f"{ours.median / rate.median:.2f} x" if ours is not None else ""
            gflop = results.built[name].get("gflop")
            lines.append(f"| {name} | {rate} | {ratio} | {'' if gflop is None else f'{gflop:.3f}'} |")
    gaps = [f"* {name}: {why}" for name, why in results.why.items()]
    title = f"## {results.threads} thread{'s' if results.threads > 1 else ''}"
    return "\n".join([f"{title}\n", *lines, *(["", *gaps] if gaps else [])])


def notes(config: UpdatePeersConfig, collected: list[Results]) -> str:
    special = sorted({built["note"] for results in collected for built in results.built.values() if built["note"]})
    text = (
        f"Medians and quartiles of {config.rounds} rounds of {config.seconds:g} s, all rows of a table in turns, each "
        "in a process of its own. One update: draw 256 of 100 000 transitions (state 32, action 7), then critics, "
        "actor, temperature and targets; 2 critics and the actor of 2 x 256, relu, float32, Adam 3e-4, discount 0.99, "
        "tau 0.005, target entropy -7, entropy in the target. The limit runs the matrix products of one eager update "
        "of serl_fast, as torch computes them (by MKL) and by oneDNN, without drawing a batch. Every learner took one "
        "update from the same weights on the same transition before it was measured: the number of parameters, the "
        "critics' loss, every weight of the critics after it, the targets and the size of every other network's step "
        "agree with NumPy; those that make 20 updates in a call were checked for 20 such steps. GFLOP are those of "
        "matrix products (JAX: all that its compiler counts). Every process is pinned to as many cores as it has "
        "threads; torch's threads are OMP_NUM_THREADS, XLA's the cores it may use. Compiling is not part of the rates."
    )
    return "\n".join([text, *(["", *(f"* {note}" for note in special)] if special else [])])


def run(argv: list[str]) -> int:
    """Measure, print and write; the exit status."""
    config = parse(UpdatePeersConfig, argv, description=__doc__ or "")
    start, block, busy = time.perf_counter(), machine(), [busy_cores()]
    cores = len(os.sched_getaffinity(0))
    collected = [measure(threads, config) for threads in dict.fromkeys(min(n or cores, cores) for n in config.threads)]
    busy.append(busy_cores())
    versions = {b["package"]: b["version"] for results in collected for b in results.built.values()}
    block["packages"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    block |= quiet_or_caution(busy)
    block["duration"] = f"{time.perf_counter() - start:.0f} s"
    command = f"python -m benchmarks.update_peers {' '.join(argv)}".rstrip()
    parts = ["# One SAC update beside other packages", f"```\n{command}\n```", markdown(block)]
    text = "\n\n".join([*parts, *(table(results) for results in collected), notes(config, collected)])
    text = text.replace(config.peers_python, PLACEHOLDER)
    print(text)
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(text + "\n", encoding="utf-8")
        settings = {key: value for key, value in asdict(config).items() if key not in ("peers_python", "output")}
        everything = {"machine": block, "config": settings, "threads": [results._asdict() for results in collected]}
        config.output.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
