"""``python -m serl_fast.data`` as a user runs it: what it prints, writes and returns."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serl_fast.data.commands import COMMANDS, run
from serl_fast.data.episodes import DatasetError, Episode
from serl_fast.data.formats import open_dataset, write_dataset
from serl_fast.data.inspection import SHEET_COLUMNS, SHEET_ROWS, summarize
from serl_fast.data.validation import validate


def episode(number: int, steps: int = 4, **changes: Any) -> Episode:
    rng = np.random.default_rng(number)
    ends = np.arange(steps) == steps - 1
    state = rng.normal(size=(steps + 1, 3)).astype(np.float32)
    state[:, 2] = 7
    observations = {"state": state, "front": rng.integers(0, 256, (steps + 1, 8, 8, 3), np.uint8)}
    values: dict[str, Any] = {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": ends.astype(np.float32),
        "terminated": ends,
        "truncated": np.zeros(steps, bool),
        "name": f"episode {number}",
    }
    return Episode(**(values | changes))


def write(path: Path, *episodes: Episode) -> str:
    write_dataset(path, iter(episodes), "pickle")
    return str(path)


def firsts(path: Any) -> list[float]:
    return [float(e.observations["state"][0, 0]) for e in open_dataset(path)]


def test_inspect_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = episode(1, 6, rewards=np.zeros(6, np.float32), terminated=np.zeros(6, bool), truncated=np.arange(6) == 5)
    idle = episode(2, 3, actions=np.zeros((3, 2), np.float32), terminated=np.zeros(3, bool))
    file = write(tmp_path / "demos.pkl", episode(0), failed, idle)
    assert run(["inspect", file]) == 0
    out = capsys.readouterr().out
    for line in (
        "format      pickle",
        "episodes    3: 1 terminated, 1 truncated, 1 open",
        "steps       13; 3 … 6 an episode, median 4",
        "success     2 of 3 (the last reward is positive)",
        "returns     0 … 1, mean 0.666667",
        "idle steps  3 with an action of zeros",
        "observations/front  uint8    (8, 8, 3)",
        "actions             float32  (2,)",
    ):
        assert line in out, out
    low, high = open_dataset(file), np.concatenate([e.actions for e in open_dataset(file)])
    assert f"  1          {high[:, 1].min():g}" in out
    assert summarize(low).ranges["actions"].high.tolist() == high.max(0).tolist()


def test_success_is_what_the_attributes_say(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "demos.pkl", episode(0)))
    given = [episode(0, attributes={"success": False}), episode(1, attributes={"success": True})]
    summary = summarize(dataset, given)
    assert (summary.successes, summary.told_by) == (1, "their attribute 'success'")


def test_the_contact_sheet_shows_episodes_from_beginning_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    numbers = [np.full((5, 8, 8, 3), 9 * n, np.uint8) for n in range(25)]
    for n, frames in enumerate(numbers):
        frames[-1] = 255 - n
    given = [episode(n, observations={"front": frames}) for n, frames in enumerate(numbers)]
    dataset = open_dataset(write(tmp_path / "demos.pkl", *given))
    kept = summarize(dataset, given, pictures=True).pictures
    assert SHEET_ROWS <= len(kept) < 2 * SHEET_ROWS
    assert [number for number, _ in kept] == list(range(0, 25, 4))
    for number, cameras in kept:
        assert cameras["front"].shape == (SHEET_COLUMNS, 8, 8, 3)
        assert cameras["front"][:, 0, 0, 0].tolist() == [9 * number] * (SHEET_COLUMNS - 1) + [255 - number]
    sheet = tmp_path / "new" / "sheet.png"
    assert run(["inspect", str(dataset.path), "--contact_sheet", str(sheet)]) == 0
    picture = np.asarray(pillow.open(sheet).convert("RGB"))
    assert ((picture == 9 * 24).all(2)).sum() > 1000  # the last row
    states = write(tmp_path / "states.pkl", episode(0, observations={"state": np.zeros((5, 3), np.float32)}))
    with pytest.raises(ValueError, match="has no cameras"):
        run(["inspect", states, "--contact_sheet", str(sheet)])
    with pytest.raises(SystemExit):
        run(["inspect", states, states, "--contact_sheet", str(sheet)])
    assert "a contact sheet is of one data set; 2 are given" in capsys.readouterr().err


def test_validate_lists_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "demos.pkl"
    write(file, episode(0), episode(1))
    assert run(["validate", str(file), str(file)]) == 0
    assert capsys.readouterr().out.endswith("0 errors, 2 warnings in 2 data sets\n")  # the state's constant dimension
    rows = pickle.loads(file.read_bytes())
    rows[1]["rewards"], rows[1]["masks"] = float("nan"), 3
    rows[6]["actions"] = "left"
    file.write_bytes(pickle.dumps(rows))
    other = tmp_path / "other.pkl"
    other.write_bytes(b"nonsense")
    assert run(["validate", str(file), str(other)]) == 1
    out = capsys.readouterr().out
    for line in (
        f"error   {file}, transition 1: field 'masks': is 3; accepted: 0 or 1\n",
        f"error   {file}, transition 1: field 'rewards': is nan",
        f"error   {file}, transition 6: field 'actions': is of type str",
        f"error   {other}: this is no pickle of protocol 2 to 5\n",
        f"warning {file}, transition 0: it has no end",
        "4 errors, ",
    ):
        assert line in out, out


ODD = {
    "actions": (
        {"actions": np.array([[0, 0.5], [0, -90], [0, 1.5], [0, 0.1]], np.float32)},
        r"actions beyond \[-1, 1\], up to -90, at steps 1-2 \(2 in all\)",
    ),
    "idle": (
        {"actions": np.array([[0, 0], [1, 0], [0, 0], [0, 0]], np.float32)},
        r"zero at steps 0, 2-3 \(3 in all\), 75% of the episode",
    ),
    "frames": (
        {"observations": {"front": np.array([0, 1, 1, 2, 3], np.uint8).repeat(12).reshape(5, 2, 2, 3)}},
        "camera 'front' shows the same frame before and after step 1",
    ),
    "open": ({"terminated": np.zeros(4, bool)}, "it has no end: its last step is neither terminated nor truncated"),
    "constant": ({"rewards": np.full(4, 2.5, np.float32)}, "field 'rewards' never changes: it is 2.5"),
    "dimension": ({}, "field 'observations/state' never changes in dimension 2"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_a_warning(name: str, tmp_path: Path) -> None:
    changes, message = ODD[name]
    findings = list(validate(write(tmp_path / "demos.pkl", episode(0, **changes))))
    assert not any(finding.is_error for finding in findings)
    assert [finding for finding in findings if re.search(message, finding.message)], findings


def test_errors_of_any_format_are_collected_by_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serl_fast.data import validation
    from serl_fast.data.episodes import Dataset

    nan = episode(1, rewards=np.full(4, np.nan, np.float32), actions=np.full((4, 2), np.inf, np.float32))
    narrow = episode(2, actions=np.zeros((4, 1), np.float32))
    late = episode(3, terminated=np.array([False, True, False, True]))

    def read() -> Any:
        yield from (episode(0), nan, narrow, late)
        raise DatasetError("somewhere: the fifth can not be read")

    monkeypatch.setattr(validation, "open_dataset", lambda *_: Dataset(Path("somewhere"), "d4rl", read))
    errors = [str(finding) for finding in validate("somewhere") if finding.is_error]
    assert [error.partition(": ")[0].removeprefix("error   somewhere") for error in errors] == [
        *(", episode 1", ", episode 1", ", episode 2", ", episode 3", "")
    ]
    assert "'actions' is not finite at step 0, and at 3 more" in errors[0]
    assert "it ends at step 1, and 2 more follow" in errors[3]
    assert errors[4].endswith("the fifth can not be read (nothing behind that was looked at)")


def test_merge_convert_and_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one.pkl", *(episode(n) for n in range(3)))
    two = write(tmp_path / "two.pkl", *(episode(n) for n in range(3, 10)))
    both, again = str(tmp_path / "both.pkl"), str(tmp_path / "again")
    assert run(["merge", one, two, both]) == 0
    assert f"{both}: 10 episodes, 40 steps" in capsys.readouterr().out
    assert firsts(both) == firsts(one) + firsts(two)
    assert run(["convert", both, again, "--format", "pickle", "--max_episodes", "2", "--image_size", "4", "6"]) == 0
    assert firsts(again) == firsts(one)[:2]
    assert next(iter(open_dataset(again))).observations["front"].shape == (5, 4, 6, 3)
    assert run(["convert", one, str(tmp_path / "hil.pkl"), "--time_axis"]) == 0
    assert pickle.loads((tmp_path / "hil.pkl").read_bytes())[0]["observations"]["front"].shape == (1, 8, 8, 3)
    parts = [str(tmp_path / f"{name}.pkl") for name in "abcd"]
    assert run(["split", both, *parts[:2], "--fraction", "0.7", "--seed", "1"]) == 0
    a, b = firsts(parts[0]), firsts(parts[1])
    assert (len(a), len(b)) == (7, 3)
    assert sorted(a + b) == sorted(firsts(both))
    assert a == [value for value in firsts(both) if value in a]  # their order stays
    assert run(["split", both, *parts[2:], "--fraction", "0.7", "--seed", "2"]) == 0
    assert firsts(parts[2]) != a


def test_pieces_of_one_recording_stay_together(tmp_path: Path) -> None:
    whole = tmp_path / "demos.hdf5"
    pieces = [
        dataclasses.replace(episode(number), terminated=np.arange(4) == 3, attributes={"demo": f"demo_{number // 2}"})
        for number in range(8)
    ]
    for first, second in itertools.pairwise(pieces):  # one goes on where the other ended
        for name, value in first.observations.items():
            second.observations[name][0] = value[-1]
    write_dataset(whole, pieces, "robomimic")
    parts = [tmp_path / "a.pkl", tmp_path / "b.pkl"]
    assert len(list(open_dataset(whole))) == 8
    assert run(["split", str(whole), *map(str, parts), "--fraction", "0.5"]) == 0
    assert [len(list(open_dataset(part))) for part in parts] == [4, 4]
    found = [{float(e.actions[0, 0]) for e in open_dataset(part)} for part in parts]
    values = [float(piece.actions[0, 0]) for piece in pieces]
    for first, second in zip(values[::2], values[1::2], strict=True):
        assert (first in found[0]) == (second in found[0])


def test_a_field_without_values_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extras = {"empty": np.zeros((4, 0), np.float32), "more/empty": np.zeros((4, 0, 3), np.float32)}
    write_dataset(tmp_path / "a.hdf5", [episode(0, extras=extras)], "robomimic")
    assert run(["inspect", str(tmp_path / "a.hdf5")]) == 0
    shown = capsys.readouterr().out
    assert "extras/empty" in shown
    assert "extras/more/empty" in shown


def test_a_field_without_values_does_not_keep_others_from_lerobot(tmp_path: Path) -> None:
    extras = {"empty": np.zeros((4, 0), np.float32), "labels": np.arange(4)}
    write_dataset(tmp_path / "out", [episode(0, extras=extras)], "lerobot")
    (found,) = open_dataset(tmp_path / "out")
    assert "empty" not in found.extras
    assert found.extras["labels"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["out.pkl", "out.hdf5", "out"])
def test_folders_above_the_output_are_made(name: str, tmp_path: Path) -> None:
    assert run(["convert", write(tmp_path / "one.pkl", episode(0)), str(tmp_path / "new" / "er" / name)]) == 0
    assert len(list(open_dataset(tmp_path / "new" / "er" / name))) == 1


@pytest.mark.parametrize("format", ["robomimic", "d4rl", "lerobot"])
def test_a_full_disk_is_an_error_before_a_library_meets_it(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 and FFmpeg may crash when they close a file that could not be written."""
    free = iter([2**30, 2**20])
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=next(free)))
    episodes = [dataclasses.replace(episode(n), observations={"state": np.zeros((5, 3), np.float32)}) for n in range(2)]
    with pytest.raises(OSError, match=r"No space left on device: 1,048,576 bytes are free, .* needs up to 16,777,"):
        write_dataset(tmp_path / "out", episodes, format)
    assert list(tmp_path.iterdir()) == []


def test_flags_of_a_format_are_heeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, out = write(tmp_path / "one.pkl", episode(0)), str(tmp_path / "out")
    assert run(["convert", one, out, "--fps", "15", "--task", "lift the cube", "--video=False"]) == 0
    dataset = open_dataset(out)
    assert dataset.attributes["fps"] == 15
    assert next(iter(dataset)).attributes["task"] == "lift the cube"
    assert not list(Path(out).rglob("*.mp4"))
    with pytest.raises(ValueError, match=r"x\.pkl is written as pickle; fps is of lerobot"):
        run(["convert", one, str(tmp_path / "x.pkl"), "--fps", "15"])


def test_what_can_not_be_done_is_said_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one.pkl", episode(0))
    other = write(tmp_path / "other.pkl", episode(1, actions=np.zeros((4, 3), np.float32)))
    out = str(tmp_path / "out.pkl")
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        (["merge", one, other, out], r"other\.pkl, transition 0: field 'actions' is float32 \(3,\) .*one\.pkl"),
        (["split", one, out, str(tmp_path / "x.pkl")], r"one\.pkl has 1 episode; a split needs two"),
        (["split", one, out, out], "both outputs are"),
        (["split", one, out, other], r"other\.pkl exists; give another name"),
        (["split", one, out, out, "--fraction", "1"], "fraction is 1.0; it lies between 0 and 1"),
        (["convert", one, other], r"other\.pkl exists; give another name"),
        (["convert", one, str(tmp_path / "out.zip")], r"its name does not say the format; give --format"),
        (["convert", one, str(tmp_path / "out"), "--time_axis"], "out is written as lerobot; time_axis is of pickle"),
        (["convert", one], "1 paths are given; give IN and OUT"),
        (["inspect", str(tmp_path / "absent")], "absent is not there"),
        (["inspect", one, "--max_episodes", "0"], "max_episodes is 0"),
        (["throw"], "command 'throw' is not known; choose from inspect, validate, convert, merge, split"),
    ):
        with pytest.raises((ValueError, OSError, SystemExit)) as error:
            run(arguments)
        said = capsys.readouterr().err if error.type is SystemExit else str(error.value)
        assert re.search(message, " ".join(said.split())), said
        assert sorted(tmp_path.iterdir()) == before


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == run(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            run([name, "--help"])
        assert ended.value.code == 0
        assert f"python -m serl_fast.data {name}" in capsys.readouterr().out


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serl_fast.data", "convert", str(tmp_path / "absent.pkl"), str(tmp_path / "x.pkl")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, f"error: {tmp_path / 'absent.pkl'} is not there\n")


def test_tables_are_drawn_by_rich_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    file = write(tmp_path / "demos.pkl", episode(0))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(["inspect", file]) == 0
    assert "━" in capsys.readouterr().out


def test_attributes_go_along_where_all_have_the_same(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    files = [str(tmp_path / f"{name}.hdf5") for name in ("one", "two", "both", "again")]
    for number, file in enumerate(files[:2]):
        given = episode(number, observations={"state": np.full((5, 2), number, np.float32)})
        write_dataset(file, iter([given]), "d4rl", {"env": "arm", "seed": number})
    assert run(["merge", *files[:3], "--format", "d4rl"]) == 0
    assert run(["convert", files[1], files[3], "--format", "d4rl"]) == 0
    assert open_dataset(files[2]).attributes == {"env": "arm"}
    assert open_dataset(files[3]).attributes == {"env": "arm", "seed": 1}
    assert run(["validate", *files, "--input_format", "d4rl"]) == 0
    assert run(["validate", files[0], "--input_format", "robomimic"]) == 1
