"""The chain from labelled frames to true success: its commands parse, and its table says what the runs logged."""

import shlex
from pathlib import Path

import pytest

from benchmarks import classifier_reward
from benchmarks.classifier_reward import ClassifierRewardConfig, preparation, table, training
from serl_fast.cli import parse
from serl_fast.record_demos import RecordDemosConfig
from serl_fast.record_success_fail import RecordSuccessFailConfig
from serl_fast.train_classifier_config import TrainClassifierConfig
from serl_fast.train_hybrid_config import TrainHybridConfig

CONFIGS = {
    "record_success_fail": RecordSuccessFailConfig,
    "train_classifier": TrainClassifierConfig,
    "record_demos": RecordDemosConfig,
}


def test_every_command_parses_and_only_the_classifier_gives_the_reward():
    config = ClassifierRewardConfig(variants=tuple(classifier_reward.VARIANTS), contrasts=(), seeds=(3,))
    parsed = {}
    for place, (command, flags, done) in preparation(config).items():
        parsed[place.name] = parse(CONFIGS[command], shlex.split(flags), description="")
        assert not done(place / "absent")
    assert parsed["data"].output_dir == parsed["classifier"].labelled_data[0]
    for variant in config.variants:
        directory, flags = training(config, variant, 3)
        run = parse(TrainHybridConfig, shlex.split(flags), description="")
        demos = parsed[f"demos_{variant}.pkl"]
        assert (run.save_dir, run.seed, run.demo_paths[0]) == (directory, 3, demos.output)
        for name in ("reward", "reward_consecutive", "reward_condition"):
            assert getattr(run, name) == getattr(demos, name)
        assert run.reward == ("env" if variant == "env" else f"classifier={parsed['classifier'].output_dir}")
        assert not run.image_keys


def test_contrasts_take_the_first_seed():
    config = ClassifierRewardConfig(variants=("height",), contrasts=("frames2", "height"), seeds=(4, 5))
    assert config.seeds_of() == {"frames2": (4,), "height": (4, 5)}
    with pytest.raises(ValueError, match=r"variants \['rgb'\] are not known"):
        ClassifierRewardConfig(contrasts=("rgb",))


def test_the_table_tells_the_rewards_word_from_the_truth(tmp_path):
    config = ClassifierRewardConfig(variants=("height",), contrasts=(), seeds=(0,), runs=tmp_path)
    folder = tmp_path / "height_seed0"
    folder.mkdir()
    names = ("evaluation/success_rate", "evaluation/true_success_rate")
    rows = [
        ["step", "environment_steps", *names, *(f"final_{name}" for name in names)],
        ["1", "10", "1.0", "0.9", "", ""],
        ["2", "20", "1.0", "0.4", "", ""],
        ["3", "30", "1.0", "0.95", "", ""],
        ["4", "40", "1.0", "0.9", "1.0", "0.92"],
    ]
    Path(folder / "metrics.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    said = "episodes      200\nsuccess rate  100.0%\ntrue success  91.5% (the environment's own verdict)\n"
    classifier_reward.evaluation(folder).write_text(said)
    title = classifier_reward.VARIANTS["height"][0]
    assert table(config).splitlines()[-1] == f"| {title} | 0 | 100.0% | 91.5% | 30 | 21% |"
    assert classifier_reward.finished(folder)
    assert not classifier_reward.finished(tmp_path / "height_seed1")
