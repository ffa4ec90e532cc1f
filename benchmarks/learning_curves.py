"""Learning curves of every algorithm on the simulated tasks, some seeds each, and their picture.

python -m benchmarks.learning_curves --output docs/results/learning_curves.md
python -m benchmarks.learning_curves --cases eager compiled bfloat16 float16 --output docs/results/executions.md

Each run is `serl_fast.train_hybrid --synchronous` in a process of its own (BC: `benchmarks.learning_curves_bc`). A
curve over environment steps thus does not depend on how fast the machine is, and is the same when made again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import machine, markdown
from serl_fast.cli import main, parse
from serl_fast.errors import require
from serl_fast.logging import read_metrics

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
CAMERA = "--image_keys wrist --image_size 32"
DRQ = (
    f"{CAMERA} --encoder small --encoder_dropout 0 --critic_ensemble_size 10 --critic_subsample_size 2 --batch_size 64"
)
FIXED = "--setup_mode single-arm-fixed-gripper"


@dataclass(frozen=True)
class Case:
    """One algorithm on one task.

    Attributes:
        title: what the table and the picture call it.
        env: gymnasium id.
        flags: of the training command, beside those that all cases share.
        steps: gradient steps; one per environment step, except for BC.
        demo_flags: of ``record_demos``.
        module: the training command.
    """

    title: str
    env: str
    flags: str
    steps: int
    demo_flags: str = ""
    module: str = "serl_fast.train_hybrid"


CASES = {
    "sac": Case("SAC, state", "serl_robots/Reach-v0", FIXED, 10_000),
    "td3": Case("TD3 of docs/examples", "serl_robots/Reach-v0", f"{FIXED} --algorithm td3:td3", 15_000),
    "drq": Case("DrQ, 32 px wrist camera", "serl_robots/ReachInView-v0", f"{FIXED} {DRQ}", 10_000, CAMERA),
    "hybrid": Case("hybrid SAC, state", "serl_robots/PickCube-v0", "", 12_000),
    "hybrid_compat": Case("hybrid SAC, compat hil_serl", "serl_robots/PickCube-v0", "--compat hil_serl", 12_000),
    "bc": Case("BC, state", "serl_robots/Reach-v0", "", 3_000, module="benchmarks.learning_curves_bc"),
    "eager": Case("hybrid SAC, eager", "serl_robots/PickCube-v0", "--execution eager", 12_000),
    "compiled": Case("hybrid SAC, compiled", "serl_robots/PickCube-v0", "--execution compiled", 12_000),
    "bfloat16": Case(
        "hybrid SAC, compiled, bfloat16",
        "serl_robots/PickCube-v0",
        "--execution compiled --precision bfloat16",
        12_000,
    ),
    "float16": Case(
        "hybrid SAC, compiled, float16",
        "serl_robots/PickCube-v0",
        "--execution compiled --precision float16",
        12_000,
    ),
}
EXECUTIONS = ("eager", "compiled", "bfloat16", "float16")  # the same algorithm: asked for by name
SHARED = (
    "--synchronous --max_utd_ratio 1 --operator scripted --training_starts 300 --random_steps 0 --stop_success_rate 0 "
    "--final_eval_episodes 50 --video_episodes 0 --save_replay=False --eval_episodes 20 --threads 1"
)


@dataclass(frozen=True)
class CurvesConfig:
    """Flags of ``benchmarks.learning_curves``.

    Attributes:
        cases: which of sac, td3, drq, hybrid, hybrid_compat, bc; or of eager, compiled, bfloat16, float16.
        seeds: one run for each.
        num_demos: demonstrations of the scripted expert, the same for all seeds of a task.
        runs: folder of the runs; finished ones are not run again.
        parallel: runs at a time.
        output: Markdown file to write, with a picture of the same name beside it.
        scale: fraction of the gradient steps, for a trial.
    """

    cases: tuple[str, ...] = tuple(name for name in CASES if name not in EXECUTIONS)
    seeds: tuple[int, ...] = (0, 1, 2)
    num_demos: int = 20
    runs: Path = Path("runs/learning_curves")
    parallel: int = 3
    output: Path | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        unknown = set(self.cases) - set(CASES)
        if unknown:
            raise ValueError(f"cases {sorted(unknown)} are not known; choose from {', '.join(CASES)}")


def demonstrations(case: Case, config: CurvesConfig) -> Path:
    """The task's demonstrations, recorded once."""
    kind = "_images" if case.demo_flags else ""
    path = config.runs / f"{case.env.rpartition('/')[2]}{kind}_{config.num_demos}.pkl"
    if not path.exists():
        command = f"--env {case.env} --num_demos {config.num_demos} --output {path} {case.demo_flags}"
        execute("serl_fast.record_demos", command, path.with_suffix(".log"))
    return path


def command_of(case: Case, config: CurvesConfig, seed: int, demos: Path, directory: Path) -> str:
    """The flags of one run."""
    steps = int(case.steps * config.scale)
    paths = f"--demo_paths {demos} --save_dir {directory} --seed {seed}"
    if case.module != "serl_fast.train_hybrid":
        return f"--env {case.env} {paths} --max_steps {steps} {case.flags}"
    interval = f"--max_steps {steps} --eval_interval {max(steps // 20, 1)}"
    return f"--env {case.env} {paths} {interval} {SHARED} {case.flags}"


def execute(module: str, flags: str, log: Path) -> None:
    """Run a command of this package in a process of its own.

    Raises:
        RuntimeError: it failed; the message has the end of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with log.open("w") as output:
        arguments = [sys.executable, "-m", module, *shlex.split(flags)]
        status = subprocess.run(arguments, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
    if status:
        raise RuntimeError(f"{module} {flags} ended with {status}:\n{log.read_text()[-2000:]}")


def curve(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """(steps, success rate) of the evaluations of one run; environment steps, or updates where there are none."""
    columns = read_metrics(directory / "metrics.csv")
    rates = columns["evaluation/success_rate"]
    there = np.isfinite(rates)
    steps = columns["environment_steps"][there]
    return (steps if steps.any() else columns["step"][there]), rates[there]


def final(directory: Path) -> float:
    """Success rate over the fresh episodes after training."""
    rates = read_metrics(directory / "metrics.csv")["final_evaluation/success_rate"]
    return float(rates[np.isfinite(rates)][-1])


def seconds(directory: Path) -> float:
    """Duration of a run up to its last evaluation."""
    return float(np.nanmax(read_metrics(directory / "metrics.csv")["time"]))


def steps_to(directory: Path, rate: float) -> float:
    """Steps of the first evaluation from which on the mean of the rest stays at ``rate``; infinite where none does."""
    steps, rates = curve(directory)
    for index in range(len(rates)):
        if rates[index] >= rate and rates[index:].mean() >= rate:
            return float(steps[index])
    return float("inf")


def plot(results: Mapping[str, list[Path]], png: Path) -> None:
    """One panel per task: the seeds thin, their mean thick."""
    figure = require("matplotlib.figure", "logging").Figure(figsize=(13, 3.6), dpi=130, layout="constrained")
    panels: dict[str, list[str]] = {}
    for name in results:
        key = "BC" if name == "bc" else CASES[name].env.rpartition("/")[2]
        panels.setdefault(key, []).append(name)
    for axes, (title, names) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for name, colour in zip(names, ("#1f77b4", "#d1495b", "#2a9d5c", "#8d5fb8"), strict=False):
            curves = [curve(directory) for directory in results[name]]
            grid = np.linspace(0, min(steps[-1] for steps, _ in curves), 100)
            values = np.array([np.interp(grid, steps, rates) for steps, rates in curves])
            for steps, rates in curves:
                axes.plot(steps, rates, color=colour, alpha=0.35, linewidth=0.8)
            axes.plot(grid, values.mean(0), color=colour, linewidth=2, label=CASES[name].title)
        axes.set_title(title if title != "BC" else "Reach-v0, demonstrations only")
        axes.set_xlabel("gradient steps" if title == "BC" else "environment steps")
        axes.set_ylim(-0.02, 1.02)
        axes.legend(loc="lower right", fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("success rate of 20 episodes")
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)


def table(results: Mapping[str, list[Path]], config: CurvesConfig) -> str:
    """One line per run."""
    lines = [
        "| algorithm | task | seed | mean over the curve | steps to 90 % | success over 50 fresh episodes | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, directories in results.items():
        case = CASES[name]
        for seed, directory in zip(config.seeds, directories, strict=True):
            reached = steps_to(directory, 0.9)
            steps = f"{reached:,.0f}" if np.isfinite(reached) else "not reached"
            task = case.env.rpartition("/")[2]
            cells = (
                case.title,
                task,
                str(seed),
                f"{curve(directory)[1].mean():.0%}",
                steps,
                f"{final(directory):.0%}",
                f"{seconds(directory) / 60:.1f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(results: Mapping[str, list[Path]], config: CurvesConfig, output: Path, argv: list[str]) -> None:
    """The picture and the page around it."""
    png = output.with_suffix(".png")
    plot(results, png)
    commands = [
        f"{name}: python -m {CASES[name].module} "
        + command_of(CASES[name], config, 0, Path("DEMOS.pkl"), Path("DIRECTORY"))
        for name in results
    ]
    text = [
        "# Learning curves",
        f"```\npython -m benchmarks.learning_curves {shlex.join(argv)}\n```",
        f"{config.num_demos} demonstrations of the scripted expert, {len(config.seeds)} seeds; one gradient step per "
        "environment step, actor and learner in turn (`--synchronous`), so a run does not depend on the machine's "
        "speed. A scripted operator intervenes during training, never in the evaluations that are drawn. "
        "*Mean over the curve*: of all evaluations along the way, so that learning faster is more. "
        "*Steps to 90 %*: environment steps (BC: gradient steps) of the first evaluation at 90 % or more whose "
        f"successors have a mean of 90 % or more. Minutes are of {config.parallel} runs at a time, one thread each.",
        f"![learning curves]({png.name})",
        table(results, config),
        "The command of each, for seed 0:",
        "```\n" + "\n\n".join(commands) + "\n```",
        markdown(machine()),
    ]
    output.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(f"{output}\n{png}")


def run(argv: list[str]) -> int:
    """Train what is not there yet, then draw; the exit status."""
    config = parse(CurvesConfig, argv, description=__doc__ or "")
    results = {name: [config.runs / f"{name}_seed{seed}" for seed in config.seeds] for name in config.cases}
    jobs = []
    for name, directories in results.items():
        case = CASES[name]
        demos = demonstrations(case, config)
        for seed, directory in zip(config.seeds, directories, strict=True):
            if not finished(directory):
                flags = command_of(case, config, seed, demos, directory)
                jobs.append((case.module, flags, config.runs / f"{directory.name}.log"))
    track = require("rich.progress", "logging").track
    with ThreadPoolExecutor(config.parallel) as pool:
        for _ in track(pool.map(lambda job: execute(*job), jobs), total=len(jobs), description="runs"):
            pass
    print(table(results, config))
    if config.output is not None:
        report(results, config, config.output, argv)
    return 0


def finished(directory: Path) -> bool:
    """Whether a run got as far as its evaluation after training."""
    with contextlib.suppress(OSError, KeyError, IndexError):
        return bool(np.isfinite(final(directory)))
    return False


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
