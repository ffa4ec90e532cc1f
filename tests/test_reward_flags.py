"""``--reward classifier=FOLDER``: which judge the flags make, and that the commands act by it."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from serl_fast import evaluate, record_demos, reward_flags, train_hybrid
from serl_fast.checkpoint import CheckpointError
from serl_fast.data.demonstrations import load_demonstrations
from serl_fast.reward_flags import RewardFlags, probability_of
from serl_fast.rewards.classifier import ClassifierConfig, reward_classifier
from serl_fast.rewards.files import save_classifier

SMALL = {"encoder": "small", "image_size": (32, 32), "hidden": 8, "encoder_dropout": 0.0}
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def saved(folder, **settings):
    torch.manual_seed(0)
    save_classifier(folder, reward_classifier(["front"], ClassifierConfig(**SMALL, **settings)))
    return f"classifier={folder}"


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("binary"), threshold=0.7)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("three"), classes=3)


def test_the_environment_judges_itself_by_default():
    assert RewardFlags().judge() is None


def test_flags_make_a_judge(binary, capsys):
    judge = RewardFlags(reward=binary).judge()
    assert (judge.image_keys, judge.threshold, judge.consecutive, judge.condition) == (("front",), 0.7, 1, None)
    flags = RewardFlags(
        reward=binary, reward_threshold=0.9, reward_consecutive=3, reward_condition="state[0]>1 and state[1]<0"
    )
    judge = flags.judge()
    assert (judge.threshold, judge.consecutive, len(judge.condition.comparisons)) == (0.9, 3, 2)
    assert "success from 0.9 in 3 frame(s) in a row; condition: state[0]>1 and state[1]<0" in capsys.readouterr().out


def test_the_probability_is_the_classifiers(binary, three):
    for reward, chosen in ((binary, None), (three, 2)):
        judge = RewardFlags(reward=reward, reward_class=chosen).judge()
        classifier = reward_flags.load_classifier(reward.partition("=")[2])
        expected = classifier.probabilities({"front": IMAGE[None]}).numpy().reshape(-1)
        assert judge.probability({"front": IMAGE}) == pytest.approx(expected[chosen or 0], abs=1e-6)


def test_it_runs_on_one_thread_and_leaves_the_learner_its_own():
    counts = []

    def predict(observation, success_class):
        counts.append(torch.get_num_threads())
        return 0.5, True

    torch.set_num_threads(3)
    probability_of(SimpleNamespace(predict_success=predict))({})
    assert (counts, torch.get_num_threads()) == ([1], 3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"reward": "human"}, "reward is 'human'; accepted: env, classifier=FOLDER"),
        ({"reward": "classifier="}, "accepted: env, classifier=FOLDER"),
        ({"reward_consecutive": 2}, "reward_consecutive is 2, but reward is 'env'; give --reward classifier=FOLDER"),
        ({"reward": "classifier=x", "reward_threshold": 1.0}, "reward_threshold is 1.0; it must be between 0 and 1"),
        ({"reward": "classifier=x", "reward_consecutive": 0}, "reward_consecutive is 0; it must be at least 1"),
        ({"reward": "classifier=x", "reward_condition": "state>1"}, "'state>1' is no comparison"),
    ],
)
def test_flags_that_can_not_work_are_refused(flags, said):
    with pytest.raises(ValueError, match=said):
        RewardFlags(**flags)


def test_classifiers_that_can_not_judge_are_refused(tmp_path, binary, three):
    with pytest.raises(CheckpointError, match="no such classifier"):
        RewardFlags(reward=f"classifier={tmp_path / 'none'}").judge()
    with pytest.raises(ValueError, match=r"has 3 classes: which of 0 to 2 means success"):
        RewardFlags(reward=three).judge()
    with pytest.raises(ValueError, match=r"reward_class is 3; .* has 3 classes"):
        RewardFlags(reward=three, reward_class=3).judge()
    with pytest.raises(ValueError, match=r"reward_class is 1, but .* knows success and failure alone"):
        RewardFlags(reward=binary, reward_class=1).judge()


def test_training_recording_and_evaluation_take_it(tmp_path, binary, monkeypatch, toy_arm, capsys):
    """The stand-in for a classifier sees success where the toy's picture shows step 6; the toy itself never does."""

    class Sees6:
        image_keys, classes, success_class, threshold = ("front",), 1, None, 0.5
        encoder = SimpleNamespace(frames=1)

        def predict_success(self, observation, success_class):
            assert set(observation) == {"front"}
            return float(observation["front"][0, 0, 0] == 6), True

    monkeypatch.setattr(reward_flags, "load_classifier", lambda folder: Sees6())
    step = toy_arm.step

    def with_verdict(self, action):
        *values, info = step(self, action)
        return *values, {**info, "succeed": False}

    monkeypatch.setattr(toy_arm, "step", with_verdict)
    shared = ["--env", "toy/Arm-v0", "--reward", binary]
    demos = tmp_path / "demos.pkl"
    record_demos.run([*shared, "--operator", "none", "--num_demos=2", "--output", str(demos)])
    transitions = load_demonstrations([demos])
    assert [float(row["rewards"]) for row in transitions] == 2 * [0, 0, 0, 0, 0, 1]
    assert set(transitions[0]["observations"]) == {"state"}

    folder = tmp_path / "run"
    train_hybrid.run([
        *shared, "--demo_paths", str(demos), "--max_steps=6", "--batch_size=4", "--training_starts=4",
        "--random_steps=4", "--execution=eager", "--hidden_widths", "8", "--eval_interval=3", "--eval_episodes=1",
        "--stop_success_rate=0", "--final_eval_episodes=2", "--video_episodes=0", "--synchronous", "--threads=1",
        "--save_dir", str(folder),
    ])  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["reward"] == binary
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    rates = [(row["evaluation/success_rate"], row["evaluation/true_success_rate"]) for row in rows]
    assert {pair for pair in rates if pair[0]} == {("1.0", "0.0")}
    assert "100% by the classifier, 0% by the environment itself" in capsys.readouterr().out

    checkpoint = ["--checkpoint", str(folder / "final_model.pth"), "--episodes", "2"]
    evaluate.run([*checkpoint, "--reward", binary])
    said = capsys.readouterr().out
    assert "success rate  100.0%" in said
    assert "true success  0.0%" in said
    evaluate.run(checkpoint)
    said = capsys.readouterr().out
    assert "success rate  0.0%" in said
    assert "true success" not in said
