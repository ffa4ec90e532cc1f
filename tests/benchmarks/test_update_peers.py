"""A package is only compared when it does the same work, and one that is missing gets no number."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from benchmarks.children import Child, built_children, in_turns
from benchmarks.interleaved import Rate
from benchmarks.peers import ours, task
from benchmarks.peers.learner import Learner, same_work
from benchmarks.peers.worker import LEARNERS, LEAST_GFLOP, Worker, make
from benchmarks.update_peers import OURS, Results, UpdatePeersConfig, table


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

    monkeypatch.setattr(ours, "Eager", NoOperation)
    with pytest.raises(Exception, match="not the same work"):
        Worker("serl_fast, eager", "4").build()


def test_stable_baselines3_is_the_same_work():
    pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed")
    assert same_work(make("Stable-Baselines3"), LEAST_GFLOP).wrong == ()


def test_a_package_that_is_missing_is_a_reason():
    missing = [("SBX", "sbx"), ("TorchRL", "torchrl"), ("minimal JAX", "jax")]
    names = [name for name, package in missing if importlib.util.find_spec(package) is None]
    if not names:
        pytest.skip("every package is installed")
    child = Child(names[0], "benchmarks.peers.worker", [names[0], "1"], sys.executable)
    alive, why = built_children([child], 60.0)
    assert not alive
    assert "not installed" in why[names[0]]
    text = table(Results(1, {OURS: {}}, {OURS: Rate(2.0, 1.0, 3.0)}, why))
    assert f"* {names[0]}: not installed" in text
    assert f"| {names[0]} |" not in text


def test_turns_alternate_and_a_failure_is_a_reason():
    asked = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def ask(self, do, **_):
            asked.append(self.name)
            return {"missing": "broke"} if self.name == "b" and len(asked) > 2 else {"rate": float(len(asked))}

    why = {}
    found = in_turns([Fake("a"), Fake("b")], {"do": "rate"}, 3, why, "rate")
    assert asked == ["a", "b", "b", "a", "a"]
    assert why == {"b, rate": "broke"}
    assert found["a"]["rate"].median == 4.0
    assert "b" not in found


def test_unknown_learners_are_refused():
    with pytest.raises(ValueError, match="choose from"):
        UpdatePeersConfig(only=("nonsense",))
    with pytest.raises(ValueError, match="no program"):
        UpdatePeersConfig(peers_python="/nowhere/python")


def test_every_learner_has_a_module():
    for target in LEARNERS.values():
        module, _, kind = target.partition(":")
        source = importlib.util.find_spec(f"benchmarks.peers.{module}")
        assert source is not None
        assert f"class {kind}(" in source.loader.get_source(source.name)
