"""The replay store beside its peers: the same transitions, the same requests, in turns.

python -m benchmarks.replay_peers --output docs/results/replay_peers.md

Every store runs in a process of its own, and all of a table are alive at once; a task is measured on one after the
other, round by round, so that a slow spell of the machine hits all of them. benchmarks/peers.txt says how to install
the peers; one that is missing, or does not offer a task, is a line that says so.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.children import in_turns
from benchmarks.interleaved import Rate, interleaved
from benchmarks.machine import busy_cores, machine, markdown, quiet_or_caution
from benchmarks.replay_children import filled_children
from benchmarks.replay_worker import SMALL, STORES, Worker
from benchmarks.row_gather import PASSES, ROW_BYTES, row_gathers
from serl_fast.cli import main, parse

OURS = "serl_fast"
FAST_CALL = f"{OURS}, positional call"
THREADED = (OURS, "LeRobot", "TorchRL")  # they split their copies among all threads unless told otherwise
NO_REUSE = "allocates every batch"
PEERS = [n for n in STORES if n != "NumPy rows"]
CHILDREN = [child for name in PEERS for child in ((name, f"{name}, 1 thread") if name in THREADED else (name,))]
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
BATCH = 256
SPARE_BYTES = 4_000_000_000  # left to everything else by the largest store of the sizes' table


@dataclass(frozen=True)
class ReplayPeersConfig:
    """Flags of ``benchmarks.replay_peers``.

    Attributes:
        only: names of stores; all by default. The project's own is always measured.
        pythons: "NAME=PATH": the interpreter of a store that cannot share this one.
        quick: a tenth of the transitions and short rounds, for a look.
        rounds: of every store and task, at least 2.
        seconds: of one round.
        output: Markdown file to write; a JSON file with all rates is put beside it.
    """

    only: tuple[str, ...] = ()
    pythons: tuple[str, ...] = ()
    quick: bool = False
    rounds: int = 5
    seconds: float = 0.25
    output: Path | None = None

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(CHILDREN)
        if unknown:
            raise ValueError(f"only {sorted(unknown)} are not known; choose from {CHILDREN}")
        if any("=" not in item for item in self.pythons):
            raise ValueError(f"pythons is {self.pythons}; each is NAME=PATH")
        if self.rounds < 2:
            raise ValueError(f"rounds is {self.rounds}; quartiles need at least 2")


class Task(NamedTuple):
    """A column: its title, the worker's task, rows a call, rows in the unit it is shown in."""

    title: str
    task: str
    rows: int
    unit: float = 1e6

    @property
    def key(self) -> str:
        return f"{self.task} {self.rows}"


STATES = (
    Task("append one, k/s", "append", 128, 1e3),
    Task("append 64, M/s", "extend", 64),
    Task("sample 256, M/s", "fresh", BATCH),
    Task("into reused arrays", "into", BATCH),
    Task("sample 4096, M/s", "fresh", 4096),
    Task("into reused arrays", "into", 4096),
)
CAMERAS = (
    Task("append one, k/s", "append", 128, 1e3),
    Task("append 64, k/s", "extend", 64, 1e3),
    Task("sample 256, batches/s", "fresh", BATCH, BATCH),
    Task("into reused arrays", "into", BATCH, BATCH),
)
N_STEP = (Task("sample 256, M/s", "fresh", BATCH), Task("into reused arrays", "into", BATCH))
PRIORITIZED = (*N_STEP, Task("sample 256 and give them new priorities, M/s", "prioritise", BATCH))


class Results(NamedTuple):
    """What one table's processes measured: rates by column and store, and reasons for gaps."""

    built: dict[str, dict[str, Any]]
    columns: dict[str, dict[str, Rate]]
    torn: dict[str, dict[str, float]]
    why: dict[str, str]


def measure(
    work: str, order: str, capacity: int, tasks: Sequence[Task], config: ReplayPeersConfig, shared: bool
) -> Results:
    """Fill the stores and measure the tasks; with ``shared`` also a thread that appends beside one that samples."""
    print(f"{work}, {order}: filling", flush=True)
    start = time.perf_counter()
    names = [name for name in CHILDREN if not config.only or name in (*config.only, OURS)]
    alive, why = filled_children(names, dict(item.split("=", 1) for item in config.pythons), work, order, capacity)
    ours = [child for child in alive if child.name == OURS]
    columns: dict[str, dict[str, Rate]] = {}
    torn: dict[str, dict[str, float]] = {}
    try:
        for task in tasks:
            request = {"do": "rate", "task": task.task, "rows": task.rows, "seconds": config.seconds}
            found = in_turns(alive, request, config.rounds, why, task.key)
            columns[task.key] = column = {name: values["rate"] for name, values in found.items()}
            if task.task == "append":
                fast = request | {"task": "append_fast"}
                found = in_turns(ours, fast, config.rounds, why, f"append_fast {task.rows}")
                column |= {f"{name}, positional call": values["rate"] for name, values in found.items()}
            print(f"{time.perf_counter() - start:.0f} s {task.key}", {n: f"{r.median:.3g}" for n, r in column.items()})
        if shared:
            request = {"do": "concurrent", "rows": BATCH, "seconds": config.seconds}
            found = in_turns(alive, request, config.rounds, why, f"concurrent {BATCH}")
            for side in ("append", "sample"):
                columns[f"concurrent {side}"] = {name: values[side] for name, values in found.items()}
        if shared and work == "states":
            answers = {child.name: child.ask("torn", seconds=2 * config.seconds) for child in alive}
            torn = {name: answer for name, answer in answers.items() if "missing" not in answer}
    finally:
        for child in alive:
            child.close()
    print(f"{time.perf_counter() - start:.0f} s in all", flush=True)
    return Results({child.name: child.built for child in alive}, columns, torn, why)


def table(results: Results, tasks: Sequence[Task], more: dict[str, Callable[[str], str]]) -> str:
    """A row a store, a column a task; below, what ours reaches of the best of the others."""
    names = [name for name in (*CHILDREN, FAST_CALL) if any(name in column for column in results.columns.values())]
    names.sort(key=lambda name: (not name.startswith(OURS), CHILDREN.index(name) if name in CHILDREN else -1))
    header = ["", *(task.title for task in tasks), *more]
    rows = [header, ["---"] * len(header)]
    for name in names:
        cells = [shown(results.columns[task.key].get(name), task.unit) for task in tasks]
        rows.append([name, *cells, *(column(name) for column in more.values())])
    rows.append(["**of the best other**", *(of_the_best(results.columns, task) for task in tasks), *("" for _ in more)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shown(rate: Rate | None, unit: float) -> str:
    if rate is None:
        return ""
    median, lower, upper = (f"{float(f'{value / unit:.3g}'):,.6g}" for value in rate)  # three digits, no exponent
    return f"{median} ({lower} to {upper})"


def of_the_best(columns: dict[str, dict[str, Rate]], task: Task) -> str:
    """Ours over the best other. Who cannot reuse arrays competes with fresh ones there too."""
    kinds = ("fresh", "into") if task.task == "into" else (task.task,)
    rates = [(name, rate.median) for kind in kinds for name, rate in columns[f"{kind} {task.rows}"].items()]
    others = [(rate, name) for name, rate in rates if not name.startswith(OURS)]
    ours = [rate.median for name, rate in columns[task.key].items() if name.startswith(OURS)]
    if not others or not ours:
        return ""
    best, name = max(others)
    return f"{max(ours) / best:.2f} x ({name})"


def gaps(results: Results) -> str:
    """Why a store is missing or a cell is empty, and what is special about one."""
    notes = {built["note"] for built in results.built.values() if built["note"]}
    reasons: dict[str, list[str]] = {}
    for name, why in results.why.items():
        if why != NO_REUSE:
            reasons.setdefault(why, []).append(name)
    lines = [f"* {'; '.join(names)}: {why}" for why, names in reasons.items()]
    for name, built in results.built.items():
        if built["wrong"]:
            lines.append(f"* {name}: {built['wrong']:.2%} of the sampled rows are not what was stored")
    return "\n".join([*lines, *(f"* {note}" for note in sorted(notes))])


def states_and_cameras(config: ReplayPeersConfig, scale: int, collected: dict[str, Results]) -> list[str]:
    parts = []
    for work, tasks, capacity in (("states", STATES, 1_000_000 // scale), ("cameras", CAMERAS, 4_000 // scale)):
        results = collected[work] = measure(work, "uniform", capacity, tasks, config, shared=True)

        def concurrent(side: str, results: Results = results) -> Callable[[str], str]:
            return lambda name: shown(results.columns[f"concurrent {side}"].get(name), 1e3)

        def resident(name: str, results: Results = results) -> str:
            return f"{results.built[name]['bytes']:,.0f}" if name in results.built else ""

        more = {
            "append beside sampling, k/s": concurrent("append"),
            "sample beside appending, k/s": concurrent("sample"),
            "bytes a transition": resident,
        }
        title = {
            "states": "observations of 32 float32, action 7",
            "cameras": "two 128 x 128 x 3 uint8 cameras and 14 float32, action 7",
        }[work]
        parts.append(f"## {work}: {title}; {capacity:,} transitions, full\n\n{table(results, tasks, more)}")
        parts.append(gaps(results))
        if results.torn:
            parts.append(torn_table(results))
    return parts


def torn_table(results: Results) -> str:
    rows = [f"| {n} | {t['alone']:.2%} | {t['concurrent']:.2%} | {t['rows']:,} |" for n, t in results.torn.items()]
    header = "| | wrong rows, alone | wrong rows beside an appending thread | rows looked at |\n|---|---|---|---|"
    return "\n".join(
        [
            f"Rows that were never stored, drawn from a store of {SMALL} transitions: fields of two transitions in one "
            "row, or a next observation of another episode. The store is that small so that readers meet the writer "
            "often; the share falls with the capacity and rises with the time that a batch takes.\n",
            header,
            *rows,
        ]
    )


def n_step_and_prioritized(config: ReplayPeersConfig, scale: int, collected: dict[str, Results]) -> list[str]:
    parts = []
    titles = {"n_step": "3-step returns", "prioritized": "prioritised sampling"}
    for order, tasks in (("n_step", N_STEP), ("prioritized", PRIORITIZED)):
        capacity = 1_000_000 // scale
        results = collected[order] = measure("states", order, capacity, tasks, config, shared=False)
        parts += [f"## {titles[order]}: states, {capacity:,} transitions\n\n{table(results, tasks, {})}", gaps(results)]
    return parts


def gather_limit(config: ReplayPeersConfig, found: dict[str, Any]) -> str:
    """Batches of both cameras beside random rows copied and nothing else."""
    cores, stored, batch = len(os.sched_getaffinity(0)), 4_000, 4 * BATCH  # fewer would sit in the caches
    counts = tuple(count for count in (1, 2, 4) if count <= cores)
    copies = row_gathers(batch, 2 * stored, counts)  # as many as there are frames in a store
    functions = {name: copy for name, (_, copy) in copies.items()}
    bytes_a_call = dict.fromkeys(functions, PASSES * batch * ROW_BYTES)
    for name in (OURS, "NumPy"):
        worker = Worker(name, "cameras", "uniform")
        worker.build(stored)
        label = f"{name}: sample 256 of cameras into reused arrays"
        functions[label] = worker.function("into", BATCH)
        bytes_a_call[label] = BATCH * worker.work.transition_bytes
    rates = interleaved(functions, config.rounds, config.seconds)
    written = {name: Rate(*(value * bytes_a_call[name] / 1e9 for value in rate)) for name, rate in rates.items()}
    found["gather"] = written
    one = max(written[name].median for name, (threads, _) in copies.items() if threads == 1)
    best = max(written[name].median for name in copies)
    lines = ["| | GB/s written | of the best with 1 thread | of the best |", "|---|---|---|---|"]
    for name, rate in written.items():
        lines.append(f"| {name} | {rate} | {rate.median / one:.0%} | {rate.median / best:.0%} |")
    title = f"## The limit: {batch} random rows of 48 KiB out of {2 * stored * ROW_BYTES / 1e6:,.0f} MB"
    return title + "\n\n" + "\n".join(lines)


def size_table(config: ReplayPeersConfig, found: dict[str, Any]) -> str:
    """Sampling against the number of stored transitions, beside random reads of rows of the same bytes."""
    lines = ["| transitions | serl_fast, M/s | NumPy rows, M/s | ratio |", "|---|---|---|---|"]
    for size in SIZES[:3] if config.quick else SIZES:
        ours, rows = Worker(OURS, "states", "uniform"), Worker("NumPy rows", "states", "uniform")
        if available_bytes() < 2 * size * ours.work.transition_bytes + SPARE_BYTES:
            lines.append(f"| {size:,} | not enough free memory | | |")
            continue
        functions = {}
        for worker in (ours, rows):
            worker.build(size)
            functions[worker.name] = worker.function("into", BATCH)
        rates = interleaved(functions, config.rounds, config.seconds)
        found[f"size {size}"] = rates
        ratio = rates[OURS].median / rates["NumPy rows"].median
        cells = (f"{size:,}", *(shown(rates[name], 1e6 / BATCH) for name in functions), f"{ratio:.2f} x")
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "## Sampling 256 states into reused arrays, by size\n\n" + "\n".join(lines)


def available_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return 1024 * int(fields["MemAvailable"].split()[0])


def run(argv: list[str]) -> int:
    """Measure, print and write; the exit status."""
    config = parse(ReplayPeersConfig, argv, description=__doc__ or "")
    if config.quick:
        config = ReplayPeersConfig(**{**asdict(config), "rounds": 3, "seconds": 0.08})
    importlib.import_module("serl_fast.replay")  # an extension that is not built should not be found out last
    scale, start, block = 10 if config.quick else 1, time.perf_counter(), machine()
    collected: dict[str, Results] = {}
    found: dict[str, Any] = {}
    busy = [busy_cores()]
    tables = states_and_cameras(config, scale, collected) + n_step_and_prioritized(config, scale, collected)
    tables += [gather_limit(config, found), size_table(config, found)]
    versions = {n.partition(",")[0]: b["version"] for results in collected.values() for n, b in results.built.items()}
    block["stores"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    busy.append(busy_cores())
    block |= quiet_or_caution(busy)
    block["duration"] = f"{time.perf_counter() - start:.0f} s"
    command = f"python -m benchmarks.replay_peers {' '.join(argv)}".rstrip()
    text = "\n\n".join(["# Replay stores", f"```\n{command}\n```", markdown(block), *tables, notes(config)])
    print(text)
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(text + "\n", encoding="utf-8")
        everything = {"machine": block, **{k: v._asdict() for k, v in collected.items()}, **found}
        config.output.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return 0


def notes(config: ReplayPeersConfig) -> str:
    return (
        f"Rows a second, medians and quartiles of {config.rounds} rounds of {config.seconds:g} s; all stores of a "
        "table in turns, each in a process of its own and with its own defaults. An empty cell is a call that a store "
        'does not offer. "1 thread" is OMP_NUM_THREADS=1 for LeRobot and TorchRL. The transitions are brought into a '
        "store's own form before the clock starts. Stores are full before they are measured, and their batches are "
        "compared with what went in. A batch of ours holds masks and discounts as well; those of Stable-Baselines3, "
        "LeRobot and TorchRL are tensors, and LeRobot's images are float32. Adding 64 is one step of 64 environments "
        "for Stable-Baselines3 and Tianshou. The last row divides by the best other store, NumPy's hand-written "
        "arrays included; who offers no reused arrays competes there with fresh ones. Memory is what the process grew "
        "by, over the transitions. cpprb and TorchRL make n-step returns while appending, so that sampling them costs "
        "nothing there; Tianshou's are without a critic. Reverb fetches batches ahead."
    )


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
