"""What finished runs of ``make train`` reached, as a table.

python -m benchmarks.main_job runs/PickCube-v0_seed* --output docs/results/main_job.md
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from serl_fast.logging import read_metrics


@dataclass(frozen=True)
class MainJobConfig:
    """Flags.

    Attributes:
        runs: folders of finished runs.
        output: Markdown file to write; the first run's success.png is put beside it.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    output: Path | None = None


COLUMNS = (
    "seed",
    "success over {episodes} fresh episodes",
    "training, s",
    "environment steps",
    "updates",
    "updates/s, median",
    "steps by the operator, first quarter",
    "last 20 episodes",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def row(run: Path) -> str:
    """One line of the table."""
    config = json.loads((run / "config.json").read_text())
    metrics = read_metrics(run / "metrics.csv")

    def present(name: str) -> np.ndarray:
        values = metrics[name]
        return values[np.isfinite(values)]

    rate, steps = present("environment/episode/intervention_steps"), present("environment/episode/l")
    quarter = max(len(rate) // 4, 1)
    first, last = rate[:quarter].sum() / steps[:quarter].sum(), rate[-20:].sum() / steps[-20:].sum()
    learning = metrics["time"][np.isnan(metrics["final_evaluation/success_rate"])].max()
    return (
        f"| {config['seed']} | {present('final_evaluation/success_rate')[-1]:.0%} | {learning:.0f} "
        f"| {metrics['environment_steps'].max():,.0f} | {metrics['step'].max():,.0f} "
        f"| {np.median(present('learner/updates_per_second')):.0f} | {first:.1%} | {last:.1%} |"
    )


def main() -> None:
    """Print the table, and write it where asked."""
    config = tyro.cli(MainJobConfig, description=__doc__)
    first = json.loads((config.runs[0] / "config.json").read_text())
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    text = "\n".join(
        [
            "# The main job: a simulated Franka arm learns to pick up a cube",
            "",
            "`make train SEED=0` (and 1, 2), then `python -m benchmarks.main_job runs/PickCube-v0_seed* "
            "--output docs/results/main_job.md`.",
            "",
            f"Device {first['device_used']}, execution {first['execution_used']}, "
            f"commit {first['git']['commit'][:12]}, {versions}; {first['platform']}.",
            "",
            HEADER.format(episodes=first["final_eval_episodes"]) + "\n".join(row(run) for run in config.runs),
            "",
            "Training is the time from the start of the run to its last update, compilation and evaluations included.",
            "",
            f"![success and interventions of seed {first['seed']}](main_job.png)",
            "",
        ]
    )
    sys.stdout.write(text)
    if config.output:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(text)
        shutil.copy(config.runs[0] / "success.png", config.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
