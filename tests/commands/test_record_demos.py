"""``record_demos``: what ends a recording costs none of its demonstrations."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from serl_fast import record_demos
from serl_fast.data import demonstrations
from serl_fast.data.demonstrations import load_demonstrations
from serl_fast.record_demos import RecordDemosConfig

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
STEPS = 13  # of an episode of Helped


class Helped(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A person who always moves on; at a step of the recording a signal comes."""

    steps, at, number = 0, -1, signal.SIGINT

    def step(self, action: Any) -> Any:
        Helped.steps += 1
        if Helped.steps == Helped.at:
            signal.raise_signal(Helped.number)
        action = np.full(7, 0.8, np.float32)
        *step, info = self.env.step(action)
        return (*step, {**info, "intervene_action": action})


@pytest.fixture
def record(toy_arm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(at: int = -1, number: int = signal.SIGINT, **flags: Any) -> Path:
        for name, value in {"steps": 0, "at": at, "number": number}.items():
            monkeypatch.setattr(Helped, name, value)
        given = {"num_demos": 9, "output": tmp_path / "demos.pkl", **flags}
        return record_demos.record(RecordDemosConfig(env="toy/Arm-v0", operator=f"{__name__}:Helped", **given))

    monkeypatch.setattr(record_demos, "load_operator", lambda name: Helped)
    return run


def test_as_many_as_were_asked_for(record: Any) -> None:
    assert len(load_demonstrations(record(), ())) == 9 * STEPS


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_it_and_keeps_what_is_complete(record: Any, number: int) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    assert len(load_demonstrations(record(2 * STEPS + 3, number), ())) == 2 * STEPS
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_it_saves_changes_nothing(record: Any, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(path: Path, transitions: Any) -> None:
        signal.raise_signal(number)
        demonstrations.save_demonstrations(path, transitions)

    monkeypatch.setattr(record_demos, "save_demonstrations", save)
    assert len(load_demonstrations(record(2 * STEPS + 3), ())) == 2 * STEPS


def test_before_the_first_demonstration_there_is_nothing_to_keep(record: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        record(3)
    assert not list(tmp_path.iterdir())


def test_nohup_is_respected(record: Any) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert len(load_demonstrations(record(2 * STEPS + 3, signal.SIGHUP), ())) == 9 * STEPS
    finally:
        signal.signal(signal.SIGHUP, before)


def test_more_demonstrations_than_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_episodes is 10, num_demos 11; .* give more"):
        RecordDemosConfig(num_demos=11, max_episodes=10)
