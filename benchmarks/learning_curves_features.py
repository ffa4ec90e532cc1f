"""Does it cost anything to learn from the features of K fixed crops of every frame instead of fresh ones?

python -m benchmarks.learning_curves_features --output docs/results/feature_cache_curves.md

One task from one camera behind a frozen trunk, with 1, 3 and 8 crops per frame and, where asked for (``--cases live``:
hours on a CPU), with every crop encoded in the update. The rest is as in ``benchmarks.learning_curves``, which makes
the runs.
"""

from __future__ import annotations

import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import learning_curves as curves
from benchmarks.machine import machine, markdown
from serl_fast.cli import main, parse
from serl_fast.errors import require

ENV = "serl_robots/ReachInView-v0"
# As the DrQ case of the learning curves, but for the encoder.
FLAGS = (
    f"{curves.FIXED} {curves.CAMERA} --encoder_dropout 0 --critic_ensemble_size 10 --critic_subsample_size 2 "
    "--batch_size 64"
)
CROPS = {"k1": 1, "k3": 3, "k8": 8, "live": 0}


@dataclass(frozen=True)
class FeatureCurvesConfig:
    """Flags of ``benchmarks.learning_curves_features``.

    Attributes:
        cases: which of k1, k3, k8, live.
        seeds: one run for each.
        steps: gradient steps, one per environment step.
        num_demos: demonstrations of the scripted expert.
        runs: folder of the runs; finished ones are not run again.
        parallel: runs at a time.
        output: Markdown file to write, with a picture of the same name beside it.
    """

    cases: tuple[str, ...] = ("k1", "k3", "k8")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 10_000
    num_demos: int = 20
    runs: Path = Path("runs/learning_curves_features")
    parallel: int = 3
    output: Path | None = None

    def __post_init__(self) -> None:
        unknown = set(self.cases) - set(CROPS)
        if unknown:
            raise ValueError(f"cases {sorted(unknown)} are not known; choose from {', '.join(CROPS)}")


def case_of(name: str, steps: int) -> curves.Case:
    """One number of crops."""
    crops = CROPS[name]
    title = f"{crops} crop{'s' * (crops > 1)} per frame" if crops else "a fresh crop in every update"
    flags = f"{FLAGS} --feature_cache {CROPS[name]}"
    return curves.Case(title, ENV, flags, steps, demo_flags=curves.CAMERA)


def make_runs(config: FeatureCurvesConfig) -> dict[str, list[Path]]:
    """Train what is not there yet; the folders by case."""
    results = {name: [config.runs / f"{name}_seed{seed}" for seed in config.seeds] for name in config.cases}
    shared = curves.CurvesConfig(runs=config.runs, num_demos=config.num_demos, parallel=config.parallel)
    jobs = []
    for name, directories in results.items():
        case = case_of(name, config.steps)
        demos = curves.demonstrations(case, shared)
        for seed, directory in zip(config.seeds, directories, strict=True):
            if not curves.finished(directory):
                flags = curves.command_of(case, shared, seed, demos, directory)
                jobs.append((case.module, flags, config.runs / f"{directory.name}.log"))
    with ThreadPoolExecutor(config.parallel) as pool:
        for _ in pool.map(lambda job: curves.execute(*job), jobs):
            pass
    return results


def table(results: dict[str, list[Path]], config: FeatureCurvesConfig) -> str:
    """One line per run."""
    lines = [
        "| | seed | mean over the curve | steps to 90 % | success over 50 fresh episodes | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, directories in results.items():
        for seed, directory in zip(config.seeds, directories, strict=True):
            reached = curves.steps_to(directory, 0.9)
            cells = (
                case_of(name, config.steps).title,
                str(seed),
                f"{curves.curve(directory)[1].mean():.0%}",
                f"{reached:,.0f}" if np.isfinite(reached) else "not reached",
                f"{curves.final(directory):.0%}",
                f"{curves.seconds(directory) / 60:.1f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: dict[str, list[Path]], config: FeatureCurvesConfig, png: Path) -> None:
    """The seeds thin, their mean thick."""
    figure = require("matplotlib.figure", "logging").Figure(figsize=(7, 4), dpi=130, layout="constrained")
    axes = figure.subplots()
    colours = ("#1f77b4", "#d1495b", "#2e8b57", "#555555")
    for (name, directories), colour in zip(results.items(), colours, strict=False):
        found = [curves.curve(directory) for directory in directories]
        grid = np.linspace(0, min(steps[-1] for steps, _ in found), 100)
        for steps, rates in found:
            axes.plot(steps, rates, color=colour, alpha=0.35, linewidth=0.8)
        mean = np.mean([np.interp(grid, steps, rates) for steps, rates in found], axis=0)
        axes.plot(grid, mean, color=colour, linewidth=2, label=case_of(name, config.steps).title)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("success rate of 20 episodes")
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)


def run(argv: list[str]) -> int:
    """Train what is not there yet, then draw; the exit status."""
    config = parse(FeatureCurvesConfig, argv, description=__doc__ or "")
    results = make_runs(config)
    rows = table(results, config)
    print(rows)
    if config.output is not None:
        png = config.output.with_suffix(".png")
        plot(results, config, png)
        text = [
            "# Learning from cached features",
            f"```\npython -m benchmarks.learning_curves_features {shlex.join(argv)}\n```",
            f"{ENV}, wrist camera of 32 px behind a frozen ResNet-10 with random weights, {config.num_demos} "
            f"demonstrations, {len(config.seeds)} seeds, one gradient step per environment step (`--synchronous`). "
            "Columns as in [the learning curves](learning_curves.md); minutes of a machine that did other work too.",
            f"![learning curves]({png.name})",
            rows,
            markdown(machine()),
        ]
        config.output.write_text("\n\n".join(text) + "\n", encoding="utf-8")
        print(f"{config.output}\n{png}")
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
