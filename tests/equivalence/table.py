"""How far every execution and precision is from eager float32 after some updates of every agent, as a table.

python -m tests.equivalence.table --output docs/results/equality.md

About an hour and a half on one core, most of it compiling.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from serl_fast.core import Batch
from serl_fast.engine import Engine, EngineConfig
from tests.equivalence.agents import CASES, Case, batches, distance
from tests.equivalence.test_agents import EXECUTION_TOLERANCE, PRECISION_TOLERANCE

WAYS = (
    ("compiled", "float32"),
    ("graphed", "float32"),
    ("eager", "tf32"),
    ("eager", "bfloat16"),
    ("eager", "float16"),
    ("compiled", "bfloat16"),
    ("compiled", "float16"),
    ("graphed", "bfloat16"),
    ("graphed", "float16"),
)
NEEDS_CUDA = ("graphed", "tf32")
NOT_RUN = "not yet run on a GPU"
CONTROL = ("eager", "last digit changed")
CONTROL_SEEDS = (1, 2, 3)


def main() -> int:
    """Run what runs on this machine and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="a .md file")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--agents", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    ways = [way for way in WAYS if device.type == "cuda" or not set(way) & set(NEEDS_CUDA)]
    cells: dict[tuple[str, tuple[str, str]], str] = {}
    references = {name: train(CASES[name], "eager", "float32", arguments.updates, device) for name in arguments.agents}
    for name in arguments.agents:
        cells[name, CONTROL] = control(CASES[name], references[name], arguments.updates, device)
        print(f"{name}, {', '.join(CONTROL)}: {cells[name, CONTROL]}", file=sys.stderr)
    for way in sorted(ways, key=lambda way: way[0] != "eager"):  # compilers take their time
        for name in arguments.agents:
            torch._dynamo.reset()  # compiled functions of agents that are done with
            case, (reference, losses), began = CASES[name], references[name], time.monotonic()
            engine, found = train(case, *way, arguments.updates, device)
            parameters = max(distance(engine, reference, case).values())
            cells[name, way] = f"{parameters:.2g} / {difference(found, losses):.2g}"
            print(f"{name}, {', '.join(way)}: {cells[name, way]} ({time.monotonic() - began:.0f} s)", file=sys.stderr)
            arguments.output.write_text(page(cells, arguments.agents, arguments.updates, device))
    return 0


Trained = tuple[Engine, dict[str, list[float]]]


def control(case: Case, reference: Trained, updates: int, device: torch.device) -> str:
    """The cell of eager runs whose start differs in the last digit: what rounding alone makes of an agent."""
    runs = [train(case, "eager", "float32", updates, device, changed=seed) for seed in CONTROL_SEEDS]
    parameters = max(max(distance(engine, reference[0], case).values()) for engine, _ in runs)
    return f"{parameters:.2g} / {max(difference(losses, reference[1]) for _, losses in runs):.2g}"


def change_last_digit(engine: Engine, seed: int) -> None:
    """Multiply every trained parameter by 1 or by 1 plus or minus 2^-23, the distance to float32's next number."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in engine.agent.networks.parameters():
            if parameter.requires_grad:
                signs = torch.randint(-1, 2, parameter.shape, generator=generator)
                parameter.mul_((1 + signs * 2.0**-23).to(parameter.device))


def train(case: Case, execution: str, precision: str, updates: int, device: torch.device, changed: int = 0) -> Trained:
    """Train from the same start with the same noise; the engine, and every loss of every update.

    ``changed`` other than 0 is a seed for ``change_last_digit``.
    """
    torch.manual_seed(0)
    config = EngineConfig(execution, precision, strict=True)  # type: ignore[arg-type]
    engine = Engine(case.build(), config, seed=5, device=device)
    if changed:
        change_last_digit(engine, changed)
    if precision == "float16":
        state = engine.state_dict()
        state["loss_scaling"]["loss_scale"].fill_(2.0**5)
        engine.load_state_dict(state)
    losses: dict[str, list[float]] = {}
    for index, batch in enumerate(batches(case, updates)):
        metrics = engine.update(on(batch, device), with_actor=index % 2 == 1)
        for name in (name for name in metrics if name.endswith("/loss")):
            losses.setdefault(name, []).append(metrics[name].item())
    skipped = metrics.get("engine/skipped_steps")
    assert skipped is None or skipped.item() == 0, "a skipped update would be one less to compare"
    return engine, losses


def on(tree: Any, device: torch.device) -> Batch:
    """A batch on another device."""
    return {key: value.to(device) if isinstance(value, Tensor) else on(value, device) for key, value in tree.items()}


def difference(found: dict[str, list[float]], expected: dict[str, list[float]]) -> float:
    """Largest over losses of: mean over updates of |a - b|, as a part of the mean of |b|."""

    def relative(a: Sequence[float], b: Sequence[float]) -> float:
        return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / sum(map(abs, b))

    return max(relative(found[name], expected[name]) for name in expected)


def page(
    cells: dict[tuple[str, tuple[str, str]], str],
    agents: Sequence[str],
    updates: int,
    device: torch.device,
) -> str:
    """The whole document."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    bounds = [
        f"* compiled and graphed float32, the parameters: {EXECUTION_TOLERANCE:g} after 100 updates, after 5 or 10 "
        "with cameras;",
        *(
            f"* {precision}, the parameters: {states:g} after 100 updates, {cameras:g} after 5 or 10 with cameras;"
            for precision, (states, cameras) in PRECISION_TOLERANCE.items()
        ),
    ]
    ways = (CONTROL, *WAYS)
    header = [" ".join(way) for way in ways]
    rows = [["agent", *header], ["---"] * (1 + len(header))]
    for name in agents:
        row = [cells.get((name, way), NOT_RUN if set(way) & set(NEEDS_CUDA) else "") for way in ways]
        rows.append([name, *row])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# Executions and precisions side by side

```
python -m tests.equivalence.table --output docs/results/equality.md
```

Every agent of `tests/equivalence/agents.py` (small networks, batches of 32, or 4 where there are cameras), trained for
{updates} updates from the same start on the same batches with the same noise, beside eager float32. Each cell has two
numbers. *Parameters*: the norm of the difference of a network's parameters as a part of how far training moved it, the
largest of all networks. *Losses*: the mean of the absolute difference over all updates as a part of the mean loss, the
largest of all losses. {named}, {os.cpu_count()} cores, torch {torch.__version__}, {device.type}.

The tests hold them to these bounds (`python -m pytest tests/equivalence`):

{chr(10).join(bounds)[:-1]}.

Adam's step has the size of the learning rate whatever the gradient, so that the sign of a small one counts;
differences of single parameters grow from there while the losses stay together. After {updates} updates some agents
with cameras are beyond the bounds that hold after 5 or 10. The first column tells rounding from error: eager float32
again, three times, from a start whose parameters were moved to a neighbouring float32 at random; the largest
difference of the three.

{table}
"""


if __name__ == "__main__":
    sys.exit(main())
