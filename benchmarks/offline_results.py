"""Offline algorithms on data sets that are made here: a table, and learning curves.

python -m benchmarks.offline_results --task pickcube --seeds 0 1 2 --output docs/results/offline_pickcube.md
python -m benchmarks.offline_results --task halfcheetah --seeds 0 1 2 --output docs/results/offline_halfcheetah.md

Makes the data sets that are not there yet, then runs `serl_fast.train_offline` in processes of their own. Runs that are
finished are not run again; the table has those that are finished.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from benchmarks.learning_curves import execute, finished, seconds
from benchmarks.machine import machine, markdown
from benchmarks.offline_cases import SHARED, TASKS, Task
from serl_fast.cli import main, parse
from serl_fast.data.d4rl_scores import normalized_score
from serl_fast.data.formats import open_dataset
from serl_fast.errors import require
from serl_fast.logging import read_metrics


@dataclass(frozen=True)
class ResultsConfig:
    """Flags of ``benchmarks.offline_results``.

    Attributes:
        task: pickcube or halfcheetah.
        cases: which of the task's; by default all.
        seeds: one run for each.
        runs: folder of the data sets and runs.
        parallel: runs at a time.
        train: run what is not finished; otherwise only the table is made.
        output: Markdown file to write, with a picture of the same name beside it.
        updates: gradient steps, by default the task's.
    """

    task: Literal["pickcube", "halfcheetah"] = "pickcube"
    cases: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    runs: Path = Path("runs/offline")
    parallel: int = 2
    train: bool = True
    output: Path | None = None
    updates: int | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.cases) - set(self.setup.cases):
            raise ValueError(f"cases {sorted(unknown)} are not known; choose from {', '.join(self.setup.cases)}")

    @property
    def setup(self) -> Task:
        """The task."""
        return TASKS[self.task]


class Job(NamedTuple):
    """One run: a data set (as the tables call it), a case, a seed, and where it goes."""

    data: str
    case: str
    seed: int
    directory: Path


def jobs_of(config: ResultsConfig) -> list[Job]:
    """All runs, one seed of everything before the next."""
    task = config.setup
    return [
        Job(data, case, seed, config.runs / f"{Path(file).stem}_{case}_seed{seed}")
        for index, seed in enumerate(config.seeds)
        for case in config.cases or task.cases
        if index < (task.cases[case].seeds or len(config.seeds))
        for data, file in task.data.items()
    ]


def flags_of(config: ResultsConfig, job: Job) -> str:
    """The flags of one run."""
    task = config.setup
    return (
        f"--env {task.env} --demo_paths {config.runs / task.data[job.data]} --save_dir {job.directory} "
        f"--seed {job.seed} --max_steps {config.updates or task.updates} {task.flags} {SHARED} "
        f"{task.cases[job.case].flags}"
    )


def make_data(config: ResultsConfig) -> None:
    """Run the commands whose products are not there."""
    for making in config.setup.making:
        path = config.runs / making.makes
        if not path.exists():
            print(f"making {path}")
            execute(making.module, making.of(config.runs), config.runs / f"{path.stem}.log")


def newest(directory: Path, name: str) -> float:
    """The last value of a metric; NaN where there is none."""
    values = read_metrics(directory / "metrics.csv").get(name, np.array([]))
    return float(values[np.isfinite(values)][-1]) if np.isfinite(values).any() else float("nan")


def curve(directory: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(gradient steps, values) of a metric; of several at one step the last."""
    columns = read_metrics(directory / "metrics.csv")
    values = columns.get(name, np.full(len(columns["step"]), np.nan))
    there = np.isfinite(values)
    found = dict(zip(columns["step"][there], values[there], strict=True))
    return np.array(list(found)), np.array(list(found.values()))


def over_seeds(values: list[float], form: str) -> str:
    """Mean ± standard deviation of the sample; the value alone of one."""
    if not np.isfinite(values).all():
        return "–"
    mean = format(float(np.mean(values)), form)
    return f"{mean} ± {format(float(np.std(values, ddof=1)), form)}" if len(values) > 1 else mean


Results = Mapping[tuple[str, str], list[Job]]
"""Finished runs by data set and case."""


def results_of(config: ResultsConfig) -> Results:
    """The finished runs, by data set and case in the order of the task."""
    done = [job for job in jobs_of(config) if finished(job.directory)]
    keys = [(data, case) for data in config.setup.data for case in config.setup.cases]
    grouped = {key: [job for job in done if (job.data, job.case) == key] for key in keys}
    return {key: jobs for key, jobs in grouped.items() if jobs}


def success_table(results: Results, task: Task) -> str:
    """Success, what the critics said, and how long it took."""
    lines = [
        "| data | algorithm | seeds | success, % | of each seed | best evaluation, % | Q(data) | Q(policy) "
        "| return of the data | distance | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, case), jobs in results.items():
        folders = [job.directory for job in jobs]
        final = [100 * newest(folder, "final_evaluation/success_rate") for folder in folders]
        best = [100 * float(curve(folder, "evaluation/success_rate")[1].max(initial=0)) for folder in folders]
        values = {
            name: [newest(folder, f"offline/{name}") for folder in folders]
            for name in ("q_data", "q_policy", "mc_return", "action_distance")
        }
        cells = (
            data,
            task.cases[case].title,
            str(len(jobs)),
            over_seeds(final, ".0f"),
            " ".join(f"{value:.0f}" for value in final),
            over_seeds(best, ".0f"),
            over_seeds(values["q_data"], ".2f"),
            over_seeds(values["q_policy"], ".2f"),
            format(values["mc_return"][0], ".2f"),
            over_seeds(values["action_distance"], ".3f"),
            f"{np.mean([seconds(folder) for folder in folders]) / 60:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def score_table(results: Results, task: Task, data_return: float) -> str:
    """D4RL's normalised scores beside the published ones, which are of another data set."""
    lines = [
        "| algorithm | seeds | score here | of each seed | return here | return / data's mean return "
        "| score on halfcheetah-medium-v2 (ANOTHER data set, published) | Q(data) | Q(policy) | distance | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (_, case), jobs in results.items():
        folders = [job.directory for job in jobs]
        returns = [newest(folder, "final_evaluation/return") for folder in folders]
        scores = [100 * float(normalized_score(task.env, value)) for value in returns]
        values = {
            name: [newest(folder, f"offline/{name}") for folder in folders]
            for name in ("q_data", "q_policy", "action_distance")
        }
        cells = (
            task.cases[case].title,
            str(len(jobs)),
            over_seeds(scores, ".1f"),
            " ".join(f"{score:.1f}" for score in scores),
            over_seeds(returns, ".0f"),
            f"{np.mean(returns) / data_return:.2f}",
            str(task.published.get(case, "–")),
            over_seeds(values["q_data"], ".0f"),
            over_seeds(values["q_policy"], ".0f"),
            over_seeds(values["action_distance"], ".3f"),
            f"{np.mean([seconds(folder) for folder in folders]) / 60:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: Results, task: Task, png: Path, metric: str, label: str) -> None:
    """One panel per data set: the seeds thin, their mean thick."""
    panels = list(dict.fromkeys(data for data, _ in results))
    figure = require("matplotlib.figure", "logging").Figure(
        figsize=(4.8 * len(panels) + 2.6, 3.8), dpi=130, layout="constrained"
    )
    colours = dict(zip(task.cases, require("matplotlib", "logging").color_sequences["tab10"], strict=False))
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels, strict=True):
        for (data, case), jobs in results.items():
            curves = [curve(job.directory, metric) for job in jobs]
            if data != panel or not all(len(steps) for steps, _ in curves):
                continue
            grid = np.linspace(max(s[0] for s, _ in curves), min(s[-1] for s, _ in curves), 100)
            values = np.array([np.interp(grid, steps, found) for steps, found in curves])
            for steps, found in curves:
                axes.plot(steps, found, color=colours[case], alpha=0.3, linewidth=0.8)
            style = "--" if task.cases[case].seeds else "-"
            axes.plot(grid, values.mean(0), style, color=colours[case], linewidth=2, label=task.cases[case].title)
        axes.set_title(f"{task.env.rpartition('/')[2]}, {panel}")
        axes.set_xlabel("gradient steps")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = {text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside right center", fontsize=8)
    figure.supylabel(label)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)


def describe_data(config: ResultsConfig) -> tuple[str, float]:
    """A line for each data set, read by the project's own readers, and the mean return of the last one."""
    lines, mean = [], float("nan")
    for name, file in config.setup.data.items():
        dataset = open_dataset(config.runs / file)
        episodes = [(len(e), float(e.rewards.sum()), bool(e.terminated.any())) for e in dataset]
        lengths, returns, ended = (np.array(column) for column in zip(*episodes, strict=True))
        mean = float(returns.mean())
        lines.append(
            f"* {name} (`{file}`, {dataset.format}): {len(lengths)} episodes, {lengths.sum():,} steps, terminated (a "
            f"success here) {ended.mean():.0%}, mean return {mean:.2f}"
            if config.task == "pickcube"
            else f"* {name} (`{file}`, {dataset.format}): {len(lengths)} episodes, {lengths.sum():,} steps, return "
            f"{mean:.1f} ± {returns.std():.1f}, a score of {100 * float(normalized_score(config.setup.env, mean)):.1f}"
        )
    return "\n".join(lines), mean


def unfinished(config: ResultsConfig, results: Results) -> str:
    """A line about the runs that the tables do not have; empty where they have all."""
    there = {job for jobs in results.values() for job in jobs}
    missing = [job for job in jobs_of(config) if job not in there]
    cases = config.setup.cases
    said = "; ".join(f"{cases[job.case].title}, {job.data}, seed {job.seed}" for job in missing)
    return f"Not run, or not to the end, when this page was made: {said}." if missing else ""


def commands(config: ResultsConfig, results: Results) -> str:
    """What was run, for seed 0 of the last data set."""
    task = config.setup
    lines = [f"python -m {making.module} {making.of(config.runs)}" for making in task.making]
    firsts = {case: jobs[0] for (_, case), jobs in results.items()}
    lines += [f"python -m serl_fast.train_offline {flags_of(config, job)}" for job in firsts.values()]
    return "```\n" + "\n\n".join(lines) + "\n```"


def report(results: Results, config: ResultsConfig, argv: list[str]) -> str:
    """The page; the picture is written beside it."""
    task, cheetah = config.setup, config.task == "halfcheetah"
    assert config.output is not None
    png = config.output.with_suffix(".png")
    metric, label = ("return", "return") if cheetah else ("success_rate", "success rate")
    plot(results, task, png, f"evaluation/{metric}", label)
    data, mean = describe_data(config)
    page = [
        f"# {task.title}",
        f"```\npython -m benchmarks.offline_results {' '.join(flag for flag in argv if flag != '--no_train')}\n```",
        task.text.format(updates=f"{config.updates or task.updates:,}"),
        data,
        score_table(results, task, mean) if cheetah else success_table(results, task),
        unfinished(config, results),
        f"![learning curves]({png.name})",
        task.findings,
        "## Commands",
        "For seed 0 (of the last data set):",
        commands(config, results),
        markdown(machine()),
    ]
    text = "\n\n".join(part for part in page if part) + "\n"
    config.output.write_text(text, encoding="utf-8")
    return text


def run(argv: list[str]) -> int:
    """Train what is not there yet, then write the page; the exit status."""
    config = parse(ResultsConfig, argv, description=__doc__ or "")
    jobs = jobs_of(config)
    if config.train:
        make_data(config)
        missing = [job for job in jobs if not finished(job.directory)]
        track = require("rich.progress", "logging").track

        def train(job: Job) -> None:
            log = job.directory.with_suffix(".log")
            shutil.rmtree(job.directory, ignore_errors=True)  # of a run that was broken off
            execute("serl_fast.train_offline", flags_of(config, job), log)

        with ThreadPoolExecutor(config.parallel) as pool:
            for _ in track(pool.map(train, missing), total=len(missing), description="runs"):
                pass
    results = results_of(config)
    if config.output is not None:
        print(report(results, config, argv))
    elif config.task == "pickcube":
        print(success_table(results, config.setup))
    else:
        print(score_table(results, config.setup, describe_data(config)[1]))
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
