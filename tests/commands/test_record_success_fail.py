"""``record_success_fail`` really records: labels of the simulation and of a person at a terminal."""

import dataclasses
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from serl_fast import record_success_fail, safe_pickle
from serl_fast.cli import parse
from serl_fast.evaluate import EvaluateConfig
from serl_fast.keys import pressed_keys
from serl_fast.record_demos import RecordDemosConfig
from serl_fast.reward_flags import RewardFlags
from serl_fast.train_hybrid_config import TrainHybridConfig

TOY = ["--env", "toy/Arm-v0", "--image_keys", "front", "--image_size", "8"]
SCRIPTED = [*TOY, "--labels", "scripted", "--operator", "random"]


def act(monkeypatch, first):
    """Have whoever acts move the toy's point by 0.1 * first per step."""

    class Constant:
        def __init__(self, *arguments, **keywords): ...

        def start(self, episode): ...

        def __call__(self, observation):
            return np.array([first, 0, 0, 0, 0, 0, 0], np.float32)

    monkeypatch.setattr(record_success_fail, "DisturbedExpert", Constant)


def read(folder):
    """Successes and failures of the one recording in a folder."""
    (success,) = folder.glob("*success*.pkl")
    (failure,) = folder.glob("*failure*.pkl")
    return safe_pickle.load(success), safe_pickle.load(failure)


def test_the_environment_labels_frames_after_the_action(tmp_path, monkeypatch, capsys):
    act(monkeypatch, 1.0)
    flags = [*SCRIPTED, "--successes_needed=6", "--after_success=2", "--output_dir", str(tmp_path)]
    assert record_success_fail.run(flags) == 0
    successes, failures = read(tmp_path)
    assert re.search(r"Arm-v0_6_success_images_\d{4}-.*\.pkl", capsys.readouterr().out)
    # The point passes 1 in its 11th step or, rounded, its 10th; two more steps follow, then the next episode.
    assert len(successes) == 6
    for row in successes:
        assert row["next_observations"]["state"][0] > 1.0
        assert (row["labels"], row["rewards"]) == (1, 1.0)
    for row in failures:
        assert row["next_observations"]["state"][0] <= 1.0
        assert (row["labels"], row["rewards"], row["masks"]) == (0, 0.0, 1.0)
    for row in successes + failures:
        assert row["next_observations"]["state"][1] == row["observations"]["state"][1] + 1
    assert len({row["infos"]["episode"] for row in successes + failures}) == 2
    assert sum(row["dones"] for row in successes) == 2
    image = successes[0]["next_observations"]["front"]
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)


def test_the_other_format_reader_takes_the_files(tmp_path, monkeypatch):
    from serl_fast.data.labelled import find_recordings, read_recording

    act(monkeypatch, 1.0)
    record_success_fail.run([*SCRIPTED, "--successes_needed=2", "--output_dir", str(tmp_path)])
    names = ("failure", "success")
    frames = [
        frame
        for recording in find_recordings(tmp_path, None, ["front"], names)
        for frame in read_recording(recording, ["front"], (8, 8), names)
    ]
    assert {frame.label for frame in frames} == {0, 1}
    assert len({frame.group for frame in frames}) == 1  # success and failure of one episode belong together


def test_too_few_successes_are_kept_and_said(tmp_path, monkeypatch):
    act(monkeypatch, -1.0)
    with pytest.raises(ValueError, match="0 frames of success in 2 episodes, 1 were asked for; what there is is in"):
        record_success_fail.run([*SCRIPTED, "--successes_needed=1", "--max_episodes=2", "--output_dir", str(tmp_path)])
    (failure,) = tmp_path.iterdir()
    assert len(safe_pickle.load(failure)) == 40


def test_ctrl_c_loses_nothing(tmp_path, monkeypatch, toy_arm):
    act(monkeypatch, 0.0)
    step = toy_arm.step

    def interrupted(self, action):
        if self.episode == 2 and self.step_count == 3:
            raise KeyboardInterrupt
        return step(self, action)

    monkeypatch.setattr(toy_arm, "step", interrupted)
    assert record_success_fail.run([*SCRIPTED, "--output_dir", str(tmp_path)]) == 0
    (failure,) = tmp_path.iterdir()
    assert len(safe_pickle.load(failure)) == 23


def test_a_robot_that_hangs_at_the_end_costs_nothing(tmp_path, monkeypatch, toy_arm):
    act(monkeypatch, 0.0)

    def hang(self):
        raise KeyboardInterrupt  # what the user does about it

    monkeypatch.setattr(toy_arm, "close", hang)
    with pytest.raises(KeyboardInterrupt):
        record_success_fail.run([*SCRIPTED, "--max_episodes=1", "--output_dir", str(tmp_path)])
    (failure,) = tmp_path.iterdir()
    assert len(safe_pickle.load(failure)) == 20


def test_one_file_that_can_not_be_written_does_not_cost_the_other(tmp_path, monkeypatch):
    act(monkeypatch, 1.0)
    save = record_success_fail.save_demonstrations

    def full(path, transitions):
        if "success" in path.name:
            raise OSError("no space left on device")
        save(path, transitions)

    monkeypatch.setattr(record_success_fail, "save_demonstrations", full)
    with pytest.raises(OSError, match=r"success_images.*no space left on device; written: .*failure_images"):
        record_success_fail.run([*SCRIPTED, "--successes_needed=1", "--output_dir", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir() if "failure" in path.name]


def test_a_robot_that_fails_loses_nothing(tmp_path, monkeypatch, toy_arm):
    act(monkeypatch, 0.0)

    def fails(self):
        raise OSError("the camera is gone")

    step = toy_arm.step
    monkeypatch.setattr(toy_arm, "step", lambda self, action: fails(self) if self.total == 7 else step(self, action))
    with pytest.raises(OSError, match="the camera is gone"):
        record_success_fail.run([*SCRIPTED, "--output_dir", str(tmp_path)])
    (failure,) = tmp_path.iterdir()
    assert len(safe_pickle.load(failure)) == 7


@pytest.fixture
def terminal(monkeypatch):
    """A terminal as standard input; what is written to the descriptor are keys."""
    pty = pytest.importorskip("pty")
    keys, descriptor = pty.openpty()
    with os.fdopen(descriptor) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield keys
    os.close(keys)


def press(terminal, keys):
    """Type keys, and wait until they have arrived: a pseudo-terminal hands them over when it comes to it."""
    import fcntl  # where there is a pseudo-terminal
    import termios

    def waiting():
        return int.from_bytes(fcntl.ioctl(sys.stdin, termios.FIONREAD, bytes(4)), sys.byteorder)

    wanted, patience = waiting() + len(keys), time.monotonic() + 60
    os.write(terminal, keys)
    while waiting() < wanted and time.monotonic() < patience:
        time.sleep(0.001)


def test_keys_are_those_since_the_last_look(terminal):
    with pressed_keys() as pressed:
        assert pressed() == ""
        press(terminal, b" x")
        assert pressed() == " x"
        assert pressed() == ""


@pytest.mark.parametrize(("held", "labelled"), [(0.0, [2, 4]), (60.0, [2, 3, 4])])
def test_a_person_labels_by_the_space_bar(held, labelled, tmp_path, monkeypatch, terminal, toy_arm):
    act(monkeypatch, 1.0)
    monkeypatch.setattr(record_success_fail, "HELD", held)
    script = {2: b"x ", 4: b" ", 6: b"n", 9: b"q"}  # by steps of the environment's life
    step = toy_arm.step

    def pressing(self, action):
        result = step(self, action)
        press(terminal, script.get(self.total, b""))
        return result

    monkeypatch.setattr(toy_arm, "step", pressing)
    flags = [*TOY, "--operator", "random", "--frequency=1000", "--after_success=10", "--output_dir", str(tmp_path)]
    assert record_success_fail.run(flags) == 0
    successes, failures = read(tmp_path)
    assert [int(row["next_observations"]["state"][1]) for row in successes] == labelled
    assert all((row["labels"], row["rewards"]) == (1, 1) for row in successes)
    episodes = [row["infos"]["episode"] for row in failures]
    assert [episodes.count(name) for name in dict.fromkeys(episodes)] == [6 - len(labelled), 3]


def test_keys_pressed_during_a_reset_are_not_for_the_next_episode(tmp_path, monkeypatch, terminal, toy_arm):
    act(monkeypatch, 0.0)
    reset = toy_arm.reset

    def pressing(self, **given):
        press(terminal, b" n" if self.episode < 2 else b" q")
        return reset(self, **given)

    monkeypatch.setattr(toy_arm, "reset", pressing)
    assert (
        record_success_fail.run([*TOY, "--operator", "random", "--frequency=1000", "--output_dir", str(tmp_path)]) == 0
    )
    (failure,) = tmp_path.iterdir()
    assert len(safe_pickle.load(failure)) == 40  # two whole episodes


def test_a_person_is_given_time(tmp_path, monkeypatch, terminal, toy_arm):
    act(monkeypatch, 0.0)
    step, began = toy_arm.step, []

    def pressing(self, action):
        began.append(time.monotonic())
        press(terminal, b"q" if len(began) == 6 else b"")
        return step(self, action)

    monkeypatch.setattr(toy_arm, "step", pressing)
    flags = [*TOY, "--operator", "random", "--frequency=50", "--output_dir", str(tmp_path)]
    assert record_success_fail.run(flags) == 0
    (failure,) = tmp_path.iterdir()
    assert len(safe_pickle.load(failure)) == 6
    assert began[-1] - began[0] >= 5 / 50 - 0.01


def test_what_can_not_work_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(ValueError, match=r"read from a terminal.*--labels scripted"):
            record_success_fail.run([*TOY, "--operator", "random"])
    config = record_success_fail.RecordSuccessFailConfig
    with pytest.raises(ValueError, match="image_keys is empty"):
        config(image_keys=())
    with pytest.raises(ValueError, match="successes_needed is 0; it must be at least 1"):
        config(successes_needed=0)
    with pytest.raises(ValueError, match="frequency is 0"):
        config(frequency=0)
    with pytest.raises(ValueError, match="no camera"):
        record_success_fail.run(["--env", "Pendulum-v1", "--labels", "scripted", "--operator", "none"])
    with pytest.raises(ValueError, match="there is no expert"):
        record_success_fail.run([*TOY, "--labels", "scripted"])
    assert not list(tmp_path.iterdir())


def test_the_guide():
    """Its commands parse, and its tables name every flag."""
    text = (Path(__file__).parents[2] / "docs" / "guides" / "classifier_reward.md").read_text()
    commands = {
        "record_success_fail": record_success_fail.RecordSuccessFailConfig,
        "record_demos": RecordDemosConfig,
        "train_hybrid": TrainHybridConfig,
        "evaluate": EvaluateConfig,
    }
    lines = re.findall(r"^python -m serl_fast\.(\w+) (.*)$", text, re.MULTILINE)
    assert [command for command, _ in lines] == list(commands)
    for command, flags in lines:
        parse(commands[command], flags.split(), description="")
    tables = set(re.findall(r"^\| `--(\w+)`", text, re.MULTILINE))
    flags = (record_success_fail.RecordSuccessFailConfig, RewardFlags)
    assert tables == {field.name for config in flags for field in dataclasses.fields(config)}
