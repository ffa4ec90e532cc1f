"""The examples of VICE in the simulation run from end to end; at full length they reach what the page says."""

import importlib
from pathlib import Path

import pytest

pytest.importorskip("serl_robots", reason="serl-robots is not installed (extra sim)")
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports an example by name, from its folder as Python does when it runs one."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_a_short_run_of_the_reward(example, capsys):
    result = example("vice_reach").main(["--goals", "15", "--episodes", "8", "--updates", "20", "--batch_size", "16"])
    assert 0 <= result["relabelled"] <= 1
    assert 0 <= result["auc"] <= 1
    printed = capsys.readouterr().out
    assert "update 20:" in printed
    assert "relabelled as success" in printed


def test_a_short_run_of_the_policy(example):
    short = ["--goals", "5", "--updates", "3", "--steps", "130", "--execution", "eager"]
    assert 0 <= example("vice_policy").main(short) <= 1


@pytest.mark.slow
def test_the_reward_separates_success_from_failure(example):
    result = example("vice_reach").main([])
    assert result["auc"] > 0.9
    assert result["accuracy"] > 0.85
    assert result["rewarded_distance"] < 0.03  # m; success is below 0.02
    assert result["other_distance"] > 0.08


@pytest.mark.slow
def test_a_policy_learns_from_it(example):
    assert example("vice_policy").main([]) >= 0.7
