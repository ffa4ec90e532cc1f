"""A package is only compared when it does the same work, and one that is missing gets no number."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks.children import Unsupported
from benchmarks.peers import settings
from benchmarks.peers.lerobot_parts import lerobot_module
from benchmarks.peers.update import LEARNERS, LIMIT, ONEDNN, learner_kind, ours, task, worker
from benchmarks.peers.update.learner import Learner, same_work
from benchmarks.peers.update.worker import LEAST_GFLOP, Worker


class Reference(Learner):
    """The update in NumPy; ``fault`` plants a mistake."""

    def __init__(self, fault=""):
        self.fault = fault

    def fill(self, rows):
        pass

    def load(self, weights):
        self.now = {name: np.array(value, np.float64) for name, value in weights.items()}

    def weights(self):
        return {name: value.copy() for name, value in self.now.items()}

    def critic_loss(self):
        return self.loss * (2 if self.fault == "loss" else 1)

    def gflop(self):
        return 0.15 if self.fault == "a quarter of the batch" else 0.61

    def call(self):
        expected = task.expected(self.now)
        self.loss = expected.critic_loss
        if self.fault == "nothing":
            return
        before = self.weights()
        for name in self.now:
            if name.startswith(("actor", "log_temperature")) and self.fault != "no actor":
                self.now[name] -= task.LEARNING_RATE
        self.now |= expected.critics
        if self.fault == "no last layer":
            self.now["critic/2/weight"] = before["critic/2/weight"]
        if self.fault == "learning rate":
            self.now = {name: value + 0.3 * (value - before[name]) for name, value in self.now.items()}
        tau = {"tau": 0.01, "no targets": 0.0}.get(self.fault, task.TAU)
        for name in expected.critics:
            self.now[f"target_{name}"] += tau * (self.now[name] - self.now[f"target_{name}"])


def test_the_reference_is_the_same_work():
    assert same_work(Reference(), LEAST_GFLOP).wrong == ()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nothing", "actor/0/weight moved by 0 "),
        ("loss", "critic loss"),
        ("no actor", "actor/mean/weight moved by 0 "),
        ("no last layer", "critic/2/weight"),
        ("learning rate", "1.3 learning rates"),
        ("tau", "not the average"),
        ("no targets", "not the average"),
        ("a quarter of the batch", "0.15 GFLOP"),
    ],
)
def test_other_work_is_noticed(fault, said):
    wrong = same_work(Reference(fault), LEAST_GFLOP).wrong
    assert any(said in line for line in wrong), wrong


def test_ours_is_the_same_work():
    check = same_work(ours.Eager(), LEAST_GFLOP)
    assert check.wrong == ()
    assert check.gflop == pytest.approx(0.609, rel=2e-3)


def test_a_learner_that_does_nothing_is_refused(monkeypatch):
    class NoOperation(ours.Eager):
        def call(self):
            pass

        def critic_loss(self):
            return None

    monkeypatch.setattr(worker, "learner_kind", lambda _: NoOperation)
    with pytest.raises(Unsupported, match="not the same work"):
        Worker("serl_fast, eager", "4").build()


def test_stable_baselines3_is_the_same_work():
    pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed")
    assert same_work(learner_kind("Stable-Baselines3")(), LEAST_GFLOP).wrong == ()


def test_lerobot_is_imported_without_what_it_only_annotates_with(tmp_path, monkeypatch):
    package = tmp_path / "lerobot"
    (package / "policies" / "sac").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "policies" / "__init__.py").write_text("import surely_not_installed\n")
    (package / "policies" / "sac" / "__init__.py").write_text("")
    said = "from lerobot.datasets.utils import write_json\n\ndef save(what: write_json): ...\n"
    (package / "policies" / "sac" / "modeling_sac.py").write_text(said)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lerobot"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert callable(lerobot_module("lerobot.policies.sac.modeling_sac").save)
        with pytest.raises(ImportError):
            lerobot_module("lerobot.rl.buffer")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lerobot"]:
            del sys.modules[name]


def test_every_learner_says_how_it_is_set():
    for name in LEARNERS:
        kind = learner_kind(name)
        assert settings(kind).lower().startswith("" if name in (LIMIT, ONEDNN) else name.lower())
        assert len(settings(kind)) > 20
        assert kind.modules
        assert kind.package
