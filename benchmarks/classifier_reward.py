"""A classifier of camera images in place of the simulation's reward: from labelled frames to true success.

python -m benchmarks.classifier_reward --output docs/results/classifier_reward.md

Every stage is a command of the package in a process of its own. The policy learns from the state; the camera is there
for the classifier alone. The simulation's verdict is never used for learning, only to measure true success.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.learning_curves import execute, finished
from benchmarks.machine import machine, markdown
from serl_fast.cli import main, parse
from serl_fast.errors import require
from serl_fast.logging import read_metrics

FRESH, FRESH_SEED = 200, 1_500_000_000
"""Episodes that the final policies are measured on, and the first one's seed."""

ENV = "--env serl_robots/PickCube-v0"
CAMERA = "--image_keys front --image_size 64"
RECORD = f"{ENV} {CAMERA} --labels scripted --seed 10 --successes_needed"
CLASSIFIER = f"{CAMERA} --encoder small --lr 3e-4 --threads 1 --num_epochs"
SHARED = (
    "--synchronous --max_utd_ratio 1 --operator scripted --training_starts 300 --random_steps 0 "
    "--final_eval_episodes 50 --video_episodes 0 --save_replay=False --eval_episodes 20 --threads 1"
)

HEIGHT = '--reward_consecutive 2 --reward_condition "state[3]>-0.04"'
VARIANTS: dict[str, tuple[str, str, float]] = {
    "env": ("the simulation's own reward", "", 0.0),
    "frames1": ("classifier, 1 frame", "--reward_consecutive 1", 0.0),
    "frames2": ("classifier, 2 frames in a row", "--reward_consecutive 2", 0.0),
    "height": ("classifier, 2 frames, tool above 14 cm", HEIGHT, 0.0),
    "stopped": ("the same, until 95 % by the classifier", HEIGHT, 0.95),
}
"""Title and flags of each reward, and --stop_success_rate. The state's entry 3 is the tool's height less 0.18 m."""


@dataclass(frozen=True)
class ClassifierRewardConfig:
    """Flags of ``benchmarks.classifier_reward``.

    Attributes:
        variants: which of env, frames1, frames2, height, stopped; one run of each for every seed.
        contrasts: further ones, of which one run with the first seed is enough.
        seeds: of the runs.
        successes: labelled frames of success to record.
        epochs: of the classifier's training, at most.
        steps: gradient steps of a run, one per environment step.
        runs: folder of data, classifier and runs; what is finished is not done again.
        parallel: runs at a time, one thread each.
        output: Markdown file to write, with a picture of the same name beside it.
    """

    variants: tuple[str, ...] = ("height", "stopped")
    contrasts: tuple[str, ...] = ("frames2",)
    seeds: tuple[int, ...] = (0, 1, 2)
    successes: int = 1000
    epochs: int = 15
    steps: int = 16_000
    runs: Path = Path("runs/classifier_reward")
    parallel: int = 1
    output: Path | None = None

    def __post_init__(self) -> None:
        unknown = {*self.variants, *self.contrasts} - set(VARIANTS)
        if unknown:
            raise ValueError(f"variants {sorted(unknown)} are not known; choose from {', '.join(VARIANTS)}")

    def seeds_of(self) -> dict[str, tuple[int, ...]]:
        """The seeds of every variant."""
        return dict.fromkeys(self.contrasts, self.seeds[:1]) | dict.fromkeys(self.variants, self.seeds)


Stage = tuple[str, str, Callable[[Path], bool]]
"""Command, flags without the place where its result goes, and whether a place has it."""


def preparation(config: ClassifierRewardConfig) -> dict[Path, Stage]:
    """What comes before the runs, by the place of its result, in order."""
    data, classifier = config.runs / "data", config.runs / "classifier"
    stages: dict[Path, Stage] = {
        data: ("record_success_fail", f"{RECORD} {config.successes} --output_dir {data}", _has("*_success_*.pkl")),
        classifier: (
            "train_classifier",
            f"--labelled_data {data} {CLASSIFIER} {config.epochs} --output_dir {classifier}",
            _has("config.json"),
        ),
    }
    for variant in config.seeds_of():
        demos = config.runs / f"demos_{variant}.pkl"
        flags = f"{ENV} --num_demos 20 --output {demos} {reward_flags(variant, classifier)}"
        stages[demos] = ("record_demos", flags, Path.exists)
    return stages


def reward_flags(variant: str, classifier: Path) -> str:
    """What says who gives the reward."""
    flags = VARIANTS[variant][1]
    return f"--reward classifier={classifier} --image_size 64 {flags}" if flags else ""


def training(config: ClassifierRewardConfig, variant: str, seed: int) -> tuple[Path, str]:
    """Folder and flags of a run."""
    directory = config.runs / f"{variant}_seed{seed}"
    interval, stop = max(config.steps // 10, 1), VARIANTS[variant][2]
    length = f"--max_steps {config.steps} --eval_interval {interval} --stop_success_rate {stop}"
    places = f"--demo_paths {config.runs / f'demos_{variant}.pkl'} --save_dir {directory} --seed {seed}"
    return directory, f"{ENV} {places} {length} {SHARED} {reward_flags(variant, config.runs / 'classifier')}".strip()


def _has(pattern: str) -> Callable[[Path], bool]:
    return lambda folder: any(folder.glob(pattern))


def curve(directory: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(environment steps, rate) of the evaluations of a run."""
    columns = read_metrics(directory / "metrics.csv")
    rates = columns[name]
    return columns["environment_steps"][np.isfinite(rates)], rates[np.isfinite(rates)]


def true_name(variant: str) -> str:
    """The metric that tells true success."""
    return "evaluation/success_rate" if variant == "env" else "evaluation/true_success_rate"


def fresh(directory: Path) -> tuple[str, str]:
    """Success over fresh episodes after training, by the reward and true, in percent."""
    said = re.findall(r"^(?:success rate|true success) +([\d.]+)%", evaluation(directory).read_text(), re.MULTILINE)
    return f"{float(said[0]):.1f}%", f"{float(said[-1]):.1f}%"


def evaluation(directory: Path) -> Path:
    """What ``serl_fast.evaluate`` said of a run."""
    return directory.with_name(f"{directory.name}_evaluation.log")


def _evaluated(directory: Path) -> bool:
    path = evaluation(directory)
    return path.exists() and "success rate" in path.read_text()


def steps_to(directory: Path, variant: str, rate: float = 0.9) -> str:
    """Environment steps of the first evaluation from which on the mean true success stays at ``rate``."""
    steps, rates = curve(directory, true_name(variant))
    reached = [
        at for at, index in zip(steps, range(len(rates)), strict=True) if rates[index:].mean() >= rate <= rates[index]
    ]
    return f"{reached[0]:,.0f}" if reached else "not reached"


def false_successes(directory: Path, variant: str) -> str:
    """Share of what the reward called success in the evaluations during training that was none."""
    said, true = (curve(directory, name)[1].sum() for name in ("evaluation/success_rate", true_name(variant)))
    return f"{max(1.0 - true / said, 0.0):.0%}" if said else "-"


def table(config: ClassifierRewardConfig) -> str:
    """One line per run."""
    lines = [
        f"| reward | seed | success over {FRESH} fresh episodes, by the reward | **true success** | "
        "steps to 90 % true | false successes on the way |",
        "|---|---|---|---|---|---|",
    ]
    for variant, seeds in config.seeds_of().items():
        for seed in seeds:
            directory, _ = training(config, variant, seed)
            cells = (
                VARIANTS[variant][0],
                str(seed),
                *fresh(directory),
                steps_to(directory, variant),
                false_successes(directory, variant),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(config: ClassifierRewardConfig, png: Path) -> None:
    """One panel per reward: true success as lines, what the reward says as dots."""
    figure = require("matplotlib.figure", "logging").Figure(figsize=(13, 3.8), dpi=130, layout="constrained")
    seeds_of = config.seeds_of()
    panels = figure.subplots(1, len(seeds_of), sharey=True, squeeze=False)[0]
    for axes, (variant, seeds) in zip(panels, seeds_of.items(), strict=True):
        for seed, colour in zip(seeds, ("#1f77b4", "#d1495b", "#2a9d5c", "#8d5fb8"), strict=False):
            directory, _ = training(config, variant, seed)
            axes.plot(*curve(directory, true_name(variant)), color=colour, linewidth=1.6, label=f"true, seed {seed}")
            if variant != "env":
                said = curve(directory, "evaluation/success_rate")
                axes.plot(*said, color=colour, linewidth=0, marker=".", markersize=5, label=f"classifier, seed {seed}")
        axes.set_title(VARIANTS[variant][0], fontsize=10)
        axes.legend(loc="lower right", fontsize=7)
        axes.set_xlabel("environment steps")
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("success rate of 20 episodes")
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)


def report(config: ClassifierRewardConfig, output: Path, argv: list[str]) -> None:
    """The picture and the page around it."""
    png = output.with_suffix(".png")
    plot(config, png)
    commands = [f"python -m serl_fast.{command} {flags}" for command, flags, _ in preparation(config).values()]
    commands += [
        f"python -m serl_fast.train_hybrid {training(config, v, config.seeds[0])[1]}" for v in config.seeds_of()
    ]
    text = [
        "# A classifier of images in place of the simulation's reward",
        f"```\npython -m benchmarks.classifier_reward {shlex.join(argv)}\n```",
        "PickCube, the policy from the state. Reward and the end of an episode come from a classifier of one 64 px "
        "camera, for demonstrations, training and evaluations alike. The simulation's own verdict labels the frames "
        "that the classifier learns from, and measures **true success**; learning never sees it. *By the reward*: what "
        "the classifier says of the same episodes. One gradient step per environment step, `--synchronous`. A scripted "
        "operator, who knows the simulation's state, intervenes during training, never in evaluations.",
        f"![success of the policy]({png.name})",
        table(config),
        "*Steps to 90 % true*: environment steps of the first evaluation (20 episodes) at 90 % or more whose "
        "successors have a mean of 90 % or more. *False successes on the way*: share of the successes by the reward, "
        "over all evaluations during training, that the simulation did not see.",
        "In a false success the cube is held, but 8 to 10 cm above the table instead of 10 or more: the classifier "
        "does not tell the difference in 64 pixels. A condition on the tool's height, which any arm measures, does.",
        "## The classifier",
        classifier_text(config.runs / "classifier"),
        "## Commands",
        "Of the first seed:",
        "```\n" + "\n\n".join(commands) + "\n```",
        markdown(machine()),
    ]
    output.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(f"{output}\n{png}")


def classifier_text(folder: Path) -> str:
    """What training said of the frames that were held out, by whole episodes."""
    found = json.loads((folder / "report.json").read_text())
    threshold = found["threshold"]
    return (
        f"Held-out frames, by whole episodes: {threshold['positives']} of success and {threshold['negatives']} of "
        f"failure. Accuracy {found['accuracy']:.1%}, ROC area {threshold['roc_area']:.4f}. At the threshold of "
        f"{threshold['value']:.3f}, {threshold['false_positives']} failures pass for success "
        f"({threshold['false_positive_rate']:.1%}) and {threshold['recall']:.1%} of the successes are recognised."
    )


def run(argv: list[str]) -> int:
    """Do what is not done yet, then draw; the exit status."""
    config = parse(ClassifierRewardConfig, argv, description=__doc__ or "")
    for place, (command, flags, done) in preparation(config).items():
        if not done(place):
            print(f"{command} {flags}", flush=True)
            execute(f"serl_fast.{command}", flags, config.runs / f"{place.stem}.log")
    jobs = []
    for variant, seeds in config.seeds_of().items():
        for seed in seeds:
            directory, flags = training(config, variant, seed)
            if not finished(directory):
                jobs.append(("serl_fast.train_hybrid", flags, config.runs / f"{directory.name}.log"))
    track = require("rich.progress", "logging").track
    with ThreadPoolExecutor(config.parallel) as pool:
        for _ in track(pool.map(lambda job: execute(*job), jobs), total=len(jobs), description="runs"):
            pass
    for variant, seeds in config.seeds_of().items():
        for seed in seeds:
            directory, _ = training(config, variant, seed)
            if not _evaluated(directory):
                flags = f"--checkpoint {directory / 'final_model.pth'} --episodes {FRESH} --seed {FRESH_SEED}"
                reward = reward_flags(variant, config.runs / "classifier").replace("--image_size 64", "")
                execute("serl_fast.evaluate", f"{flags} {reward}", evaluation(directory))
    print(table(config))
    if config.output is not None:
        report(config, config.output, argv)
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
