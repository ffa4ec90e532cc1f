"""``record_demos``: what it records, and that what ends a recording costs none of its demonstrations."""

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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_demos": 11, "max_episodes": 10}, r"max_episodes is 10, num_demos 11; .* give more"),
        ({"num_demos": 0}, "num_demos is 0"),
        ({"noise": -1.0}, "noise is -1"),
    ],
)
def test_mistakes(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecordDemosConfig(**flags)


def test_recorded_demonstrations_succeed_and_keep_the_executed_action(tmp_path: Path) -> None:
    path = tmp_path / "pick.pkl"
    assert record_demos.run(["--num_demos", "2", "--output", str(path), "--seed", "3"]) == 0
    transitions = load_demonstrations(path)
    assert sum(t["terminated"] for t in transitions) == 2
    assert sum(float(t["rewards"]) for t in transitions) == 2
    other = tmp_path / "operator.pkl"
    flags = ["--operator", "serl_robots.operators:ScriptedOperator", "--num_demos", "1", "--output", str(other)]
    assert record_demos.run([*flags, "--max_episodes", "3"]) == 0
    actions = np.array([t["actions"] for t in load_demonstrations(other)])
    assert (actions == 0).all(axis=1).any()  # nobody acted until the operator did
    assert (actions != 0).any()


def test_actions_are_kept_as_they_were_executed(tmp_path: Path, toy_arm: Any) -> None:
    class Eager(toy_arm):
        """Succeeds with an operator who asks for more than the arm can do, and fails in the third episode."""

        def step(self, action):
            if self.episode == 3:
                raise KeyboardInterrupt
            *rest, info = super().step(np.ones_like(action))
            return *rest, info | {"intervene_action": 1.2 * np.ones_like(action)}

    if "toy/Eager-v0" not in gymnasium.registry:
        gymnasium.register("toy/Eager-v0", entry_point=Eager)
    output = tmp_path / "kept.pkl"
    flags = ["--env", "toy/Eager-v0", "--operator", "none", "--output", str(output), "--num_demos", "5"]
    assert record_demos.run(flags) == 0
    transitions = load_demonstrations(output)
    assert sum(t["terminated"] for t in transitions) == 2
    assert max(t["actions"].max() for t in transitions) == 1.0  # what was executed


def test_a_fixed_gripper_is_recorded_with_six_numbers(tmp_path: Path) -> None:
    flags = ["--setup_mode", "single-arm-fixed-gripper", "--num_demos=1", "--max_episodes=1"]
    with pytest.raises(ValueError, match="0 of 1 episodes succeeded"):  # the cube can not be picked without closing
        record_demos.run([*flags, "--output", str(tmp_path / "x.pkl")])


def test_recording_that_never_succeeds_says_so(tmp_path: Path) -> None:
    flags = ["--operator", "none", "--num_demos", "1", "--max_episodes", "1", "--output", str(tmp_path / "x.pkl")]
    with pytest.raises(ValueError, match="0 of 1 episodes succeeded, 1 were asked for"):
        record_demos.run(flags)
    assert not (tmp_path / "x.pkl").exists()


def test_default_output_names_are_the_manuals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record_demos.run(["--num_demos", "1", "--image_keys", "--setup_mode", "single-arm-learned-gripper"])
    assert list(Path("runs/demonstrations").glob("PickCube-v0_1_demos_*.pkl"))
