"""The tables of the offline results, from runs that were made up."""

import numpy as np
import pytest

from benchmarks import offline_results
from benchmarks.offline_cases import HALFCHEETAH, PICKCUBE, TASKS
from benchmarks.offline_results import ResultsConfig, curve, flags_of, jobs_of, over_seeds, results_of
from serl_fast.cli import parse
from serl_fast.data.episodes import Episode
from serl_fast.data.formats import write_dataset
from serl_fast.logging import RunLogger
from serl_fast.train_offline_config import TrainOfflineConfig


def fake_run(directory, success, q=0.5, returns=0.0, done=True):
    logger = RunLogger(directory)
    for step, rate in ((10, 0.1), (20, 0.9), (30, 0.2)):
        logger.log({"evaluation/success_rate": rate, "evaluation/return": 10 * rate}, step=step)
        offline = {"q_data": q, "q_policy": 2 * q, "mc_return": 0.1, "action_distance": 0.04}
        logger.log({f"offline/{name}": value for name, value in offline.items()}, step=step)
    if done:
        logger.log({"final_evaluation/success_rate": success, "final_evaluation/return": returns}, step=30)
    logger.close()


def write_data(path, kind, rewards):
    steps = len(rewards)
    zeros = np.zeros(steps, bool)
    episode = Episode(
        {"state": np.random.default_rng(0).normal(size=(steps + 1, 2)).astype(np.float32)},
        np.zeros((steps, 1), np.float32),
        np.array(rewards, np.float32),
        zeros,
        np.arange(steps) == steps - 1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dataset(path, [episode, episode], kind)


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_success_table(tmp_path):
    config = ResultsConfig(runs=tmp_path, cases=("bc_one",), seeds=(0, 1, 2, 3))
    for seed, success in enumerate((0.2, 0.4, 0.6)):
        fake_run(tmp_path / f"pickcube_mixed_50_bc_one_seed{seed}", success)
    fake_run(tmp_path / "pickcube_mixed_50_bc_one_seed3", 1.0, done=False)  # not finished: left out
    results = results_of(config)
    (row,) = cells(offline_results.success_table(results, PICKCUBE))
    assert row[:6] == ["50 episodes", "BC, one learned std", "3", "40 ± 20", "20 40 60", "90 ± 0"]
    assert row[6:10] == ["0.50 ± 0.00", "1.00 ± 0.00", "0.10", "0.040 ± 0.000"]
    said = offline_results.unfinished(config, results)
    assert "BC, one learned std, 50 episodes, seed 3" in said
    assert "50 episodes, seed 2" not in said
    assert not offline_results.unfinished(ResultsConfig(runs=tmp_path, cases=("bc_one",), seeds=()), {})


def test_the_score_table(tmp_path):
    config = ResultsConfig("halfcheetah", runs=tmp_path, cases=("td3bc",), seeds=(0,))
    # half way from a random policy to an expert
    fake_run(tmp_path / "halfcheetah_medium_td3bc_seed0", 0.0, returns=5927.410524)
    (row,) = cells(offline_results.score_table(results_of(config), HALFCHEETAH, 2963.705262))
    assert row[:7] == ["TD3+BC", "1", "50.0", "50.0", "5927", "2.00", "48.1"]


def test_of_several_values_at_a_step_the_last_counts(tmp_path):
    logger = RunLogger(tmp_path)
    for value in (1.0, 2.0):
        logger.log({"evaluation/return": value}, step=5)
    logger.close()
    steps, values = curve(tmp_path, "evaluation/return")
    assert (list(steps), list(values)) == ([5], [2])
    assert len(curve(tmp_path, "not/there")[0]) == 0


def test_a_metric_that_an_algorithm_does_not_have_is_a_dash():
    assert over_seeds([float("nan"), float("nan")], ".1f") == "–"
    assert over_seeds([3.0], ".1f") == "3.0"


@pytest.mark.parametrize("task", list(TASKS))
def test_every_command_parses(task, tmp_path):
    config = ResultsConfig(task, runs=tmp_path, seeds=(0, 1))
    jobs = jobs_of(config)
    assert len({job.directory for job in jobs}) == len(jobs)
    seeds = [case.seeds or 2 for case in config.setup.cases.values()]
    assert len(jobs) == sum(seeds) * len(config.setup.data)
    assert all(job.seed == 0 for job in jobs if config.setup.cases[job.case].seeds == 1)
    for job in jobs:
        flags = parse(TrainOfflineConfig, flags_of(config, job).split(), description="")
        assert flags.max_steps == config.setup.updates
        assert flags.save_dir == job.directory


def test_unknown_cases_are_refused():
    with pytest.raises(ValueError, match="choose from td3bc"):
        ResultsConfig(cases=("nothing",))


@pytest.mark.parametrize("task", list(TASKS))
def test_a_page_is_made_of_finished_runs_without_training(tmp_path, monkeypatch, capsys, task):
    pytest.importorskip("matplotlib")
    config = ResultsConfig(task, runs=tmp_path, seeds=(0, 1))
    for file in config.setup.data.values():
        kind = "pickle" if file.endswith("pkl") else pytest.importorskip("h5py") and "d4rl"
        write_data(tmp_path / file, kind, [1.0, 2.0])
    monkeypatch.setattr(offline_results, "execute", lambda *arguments: pytest.fail("a run was started"))
    for job in jobs_of(config)[:3]:
        fake_run(job.directory, 1.0, returns=100.0)
    output = tmp_path / "page.md"
    flags = f"--task {task} --runs {tmp_path} --seeds 0 1 --no_train --output {output}"
    assert offline_results.run(flags.split()) == 0
    text = output.read_text()
    assert output.with_suffix(".png").stat().st_size > 1000
    assert "python -m serl_fast.train_offline" in text
    assert "Not run" in text
    assert "--no_train" not in text
    assert "2 episodes, 4 steps" in text
    assert text in capsys.readouterr().out
