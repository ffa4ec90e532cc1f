"""The critics' values beside what the data achieved, on networks whose values are known."""

import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serl_fast.core import Agent
from serl_fast.data.offline import MC_RETURNS, Summary
from serl_fast.offline_diagnostics import SETTLED, Diagnostics
from serl_fast.replay import ReplayStore

CPU = torch.device("cpu")


class Sum(nn.Module):
    """Members Q_e(s, a) = scale * sum(a) + e."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        q = self.scale * actions.sum(-1)
        return torch.stack([q, q + 1])


class State(nn.Module):
    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        return observations["state"]


def agent(action: list[float], scale: float = 1.0, critic: bool = True, **settings: Any) -> Agent:
    networks = nn.ModuleDict({"encoder": State(), **({"critic": Sum(scale)} if critic else {})})

    def policy(networks, observations, noise):
        return torch.tensor(action).expand(len(observations["state"]), -1)

    return Agent(networks, (), lambda *_: {}, policy=policy, settings=settings)


def store(actions: list[list[float]], returns: list[float]) -> ReplayStore:
    observation = {"state": np.zeros(2, np.float32)}
    made = None
    for action, value in zip(actions, returns, strict=True):
        row = {
            "observations": observation,
            "next_observations": observation,
            "actions": np.array(action, np.float32),
            "rewards": np.float32(0),
            "terminated": False,
            "truncated": True,
            MC_RETURNS: np.float32(value),
        }
        made = made or ReplayStore.from_example(row, 10)
        made.append(row)
    assert made is not None
    return made


DATA = [[0.5, -0.5], [1.0, 0.0]], [2.0, 4.0]
SUMMARY = Summary(known=1, mc_lowest=0.0, mc_highest=10.0)


def test_one_batch_at_a_time_is_in_memory(monkeypatch):
    made = store(*DATA)
    blocks, alive = [], []

    def batch_at(rows):
        """As the store makes large batches: every column is a view of one block."""
        batch = type(made).batch_at(made, rows)
        block = np.array(batch["mc_returns"])
        batch["mc_returns"] = block[:]
        alive.append(sum(ref() is not None for ref in blocks))
        blocks.append(weakref.ref(block))
        return batch

    source = SimpleNamespace(batch_at=batch_at)
    monkeypatch.setattr("serl_fast.offline_diagnostics.CHUNK", 1)
    diagnostics = Diagnostics(agent([1.0, 0.5]), made, SUMMARY, CPU, 0)
    monkeypatch.setattr(diagnostics, "_store", source)
    assert diagnostics.measure(0)["offline/mc_return"] == 3.0
    assert alive == [0, 0]


def test_values_by_hand():
    means = Diagnostics(agent([1.0, 0.5]), store(*DATA), SUMMARY, CPU, 0).measure(0)
    assert means == pytest.approx(
        {
            "offline/mc_return": 3.0,
            "offline/q_data": 0.5 + 0.5,  # mean of 0 and 1, and 0.5 for the second member
            "offline/q_policy": 1.5 + 0.5,
            "offline/q_gap": 1.0,
            "offline/q_error": 1.0 - 3.0,
            "offline/action_distance": (0.25 + 1.0 + 0.0 + 0.25) / 4,
            "offline/saturated": 0.5,
            "offline/saturated_data": 0.25,
        }
    )


def test_an_agent_without_critics_is_measured_by_its_actions():
    means = Diagnostics(agent([1.0, 0.5], critic=False), store(*DATA), SUMMARY, CPU, 0).measure(0)
    assert set(means) == {f"offline/{name}" for name in ("mc_return", "action_distance", "saturated", "saturated_data")}


def test_grippers_are_no_part_of_the_critics_actions():
    actions = [[0.5] * 6 + [1.0], [0.5] * 6 + [1.0]]
    means = Diagnostics(agent([0.5] * 6 + [0.0], grippers=1), store(actions, [0, 0]), SUMMARY, CPU, 0).measure(0)
    assert means["offline/q_data"] == means["offline/q_policy"] == 3.5


@pytest.mark.parametrize(
    ("action", "scale", "crossed"),
    [
        ([1.0, 0.5], 1.0, ["per dimension"]),  # far, and valued by 10 % of the range more
        ([1.0, 0.5], 0.1, []),  # far, and valued by 1 %
        ([1.0, 0.5], -1.0, []),  # far, and valued less
        ([0.8, -0.1], 1.0, []),  # near
        ([1.0, 0.5], 8.0, ["per dimension", "no transition of the data returned more than 10"]),  # 12.5 > 11
    ],
)
def test_thresholds(action, scale, crossed):
    diagnostics = Diagnostics(agent(action, scale), store(*DATA), SUMMARY, CPU, 0)
    found = diagnostics.crossed(diagnostics.measure(0))
    assert len(found) == len(crossed)
    assert all(words in text for words, text in zip(crossed, found, strict=True))


def test_one_warning_when_two_measurements_agree_and_the_networks_are_not_fresh():
    diagnostics = Diagnostics(agent([1.0, 0.5]), store(*DATA), SUMMARY, CPU, 0)
    for updates in (0, SETTLED - 1, SETTLED):
        diagnostics.measure(updates)
        assert diagnostics.warning() is None
    diagnostics.measure(SETTLED + 1)
    assert "docs/guides/offline.md" in (diagnostics.warning() or "")
    diagnostics.measure(SETTLED + 2)
    assert diagnostics.warning() is None
