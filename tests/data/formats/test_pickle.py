"""Pickles of SERL and HIL-SERL: where episodes end, folders of dumps, extras, and files that others read."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serl_fast.data.demonstrations import load_demonstrations
from serl_fast.data.episodes import DatasetError, Episode, ReadOptions, columns_of
from serl_fast.data.fill import store_of
from serl_fast.data.formats import open_dataset, write_dataset
from serl_fast.data.formats.pickle import survey
from serl_fast.replay import ReplayStore


def image(value: int) -> np.ndarray:
    return np.full((1, 6, 8, 3), value, np.uint8)


def transition(step: int, **changes: Any) -> dict[str, Any]:
    """As HIL-SERL dumps it: a leading time axis and float64."""
    return {
        "observations": {"state": np.full((1, 3), float(step)), "front": image(step)},
        "actions": np.full(2, step / 100),
        "next_observations": {"state": np.full((1, 3), step + 1.0), "front": image(step + 1)},
        "rewards": 0.0,
        "masks": 1.0,
        "dones": False,
        **changes,
    }


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


def episodes(path: Path, **options: Any) -> list[Episode]:
    return list(open_dataset(path, ReadOptions(**options)))


def steps(path: Path, **options: Any) -> list[list[float]]:
    """The first observation of every step, by episode."""
    return [episode.observations["state"][:-1, 0].tolist() for episode in episodes(path, **options)]


ENDED = {"masks": 0.0, "dones": True, "rewards": 1.0}


def test_an_episode_goes_on_while_observations_follow_and_nothing_ended(tmp_path: Path) -> None:
    rows = [transition(step) for step in (0, 1, 2)] + [transition(3, **ENDED), transition(4)]
    rows += [transition(step) for step in (7, 8)]  # a gap, then a time-out, then one more
    rows += [transition(9, dones=True), transition(10)]
    file = write(tmp_path / "demos.pkl", rows)
    assert steps(file) == [[0, 1, 2, 3], [4], [7, 8, 9], [10]]
    first, _, third, last = episodes(file)
    assert [episode.name for episode in (first, last)] == ["transition 0", "transition 8"]
    assert first.terminated.tolist() == [False, False, False, True]
    assert not first.truncated.any()
    assert third.truncated.tolist() == [False, False, True]
    assert not (last.terminated | last.truncated).any()
    assert first.observations["front"].shape == (5, 6, 8, 3)
    assert np.array_equal(first.observations["front"][4], image(4)[0])
    assert first.rewards.tolist() == [0, 0, 0, 1]
    assert first.actions.dtype == first.rewards.dtype == first.observations["state"].dtype == np.float32
    assert not first.extras


def test_one_byte_of_a_camera_is_a_gap(tmp_path: Path) -> None:
    other = transition(1)
    other["observations"]["front"] = other["observations"]["front"].copy()
    other["observations"]["front"][0, 5, 7, 2] ^= 1
    file = write(tmp_path / "demos.pkl", [transition(0), other])
    assert steps(file) == [[0], [1]]
    assert steps(file, image_keys=()) == [[0, 1]]  # which nobody sees without the camera


def test_a_folder_of_dumps_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "buffer"
    write(folder / "transitions_10000.pkl", [transition(3), transition(4, **ENDED)])
    write(folder / "transitions_2000.pkl", [transition(1), transition(2)])
    write(folder / "transitions_900.pkl", [transition(0)])
    (folder / "notes.txt").write_text("not a pickle")
    assert steps(folder) == [[0, 1, 2, 3, 4]]
    assert episodes(folder)[0].name == "transitions_900.pkl, transition 0"
    assert steps(folder, max_episodes=1) == [[0, 1, 2, 3, 4]]


def test_options(tmp_path: Path) -> None:
    parts = {"pose": np.arange(3.0), "gripper": np.array([[7.0]]), "force": np.zeros(2), "front": image(0)}
    row = transition(0, observations=parts, next_observations=parts)
    file = write(tmp_path / "demos.pkl", [row, transition(5, observations=parts, next_observations=parts)])
    (episode,) = episodes(file, state_keys=("gripper", "pose"))
    assert episode.observations["state"][0].tolist() == [7, 0, 1, 2]
    assert set(episode.observations) == {"state", "front"}
    assert set(episodes(file, state_keys=("pose",), image_keys=())[0].observations) == {"state"}
    assert episodes(file, state_keys=(), image_size=(3, 4))[0].observations["front"].shape == (3, 3, 4, 3)
    with pytest.raises(DatasetError, match=r"transition 0, field 'observations/wrist': is missing; .*'pose'"):
        episodes(file, state_keys=("pose",), image_keys=("wrist",))
    with pytest.raises(DatasetError, match=r"field 'observations/pose': has dtype float64; accepted: uint8"):
        episodes(file)
    with pytest.raises(DatasetError, match="pickles name no selections of episodes"):
        open_dataset(file, ReadOptions(filter_key="train"))
    two = write(tmp_path / "two.pkl", [transition(0), transition(5), transition(9)])
    assert steps(two, max_episodes=2) == [[0], [5]]


def test_extras_are_kept_where_the_first_file_has_them(tmp_path: Path) -> None:
    rows = [transition(0, infos={"grasp_penalty": -0.5}, labels=2), transition(1, labels=np.array([0]))]
    (episode,) = episodes(write(tmp_path / "a.pkl", rows))
    assert episode.extras["grasp_penalty"].tolist() == [-0.5, 0]
    assert episode.extras["grasp_penalty"].dtype == np.float32
    assert episode.extras["labels"].tolist() == [2, 0]
    folder = tmp_path / "folder"
    write(folder / "1.pkl", [transition(0)])
    write(folder / "2.pkl", [transition(1, grasp_penalty=-0.1)])
    with pytest.raises(DatasetError, match=r"2\.pkl, transition 0, field 'grasp_penalty': is in this file, but not in"):
        episodes(folder)
    with pytest.raises(DatasetError, match=r"transition 1, field 'labels': is missing, and others have it"):
        episodes(write(tmp_path / "b.pkl", [transition(0, labels=1), transition(1)]))
    with pytest.raises(DatasetError, match=r"field 'labels': is 0\.5; accepted: a whole number"):
        episodes(write(tmp_path / "c.pkl", [transition(0, labels=0.5)]))


def test_actions_are_in_the_units_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "degrees.pkl", [transition(0, actions=np.array([90.0, -7.0]))])
    assert episodes(file)[0].actions.tolist() == [[90, -7]]
    with pytest.raises(DatasetError, match="is 90 at index 0"):
        load_demonstrations(file, ["front"])


def test_what_differs_between_files_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write(folder / "1.pkl", [transition(0)])
    wider = {"state": np.zeros(4), "front": image(0)}
    write(folder / "2.pkl", [transition(0, observations=wider, next_observations=wider)])
    message = r"2\.pkl, transition 0, field 'observations/state': has shape \(4,\); 1\.pkl, transition 0 has \(3,\)"
    with pytest.raises(DatasetError, match=message):
        episodes(folder)


def test_a_survey_goes_on_after_every_problem(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    bad = transition(1, rewards=np.nan, actions="left", masks=2)
    write(folder / "1.pkl", [transition(0), bad, transition(2), transition(3)])
    (folder / "2.pkl").write_bytes(b"nonsense")
    write(folder / "3.pkl", [transition(4, **ENDED)])
    found: list[str] = []
    surveyed = list(survey(folder, ReadOptions(), lambda *problem: found.append(": ".join(problem))))
    assert [episode.observations["state"][:-1, 0].tolist() for episode in surveyed] == [[0], [2, 3, 4]]
    assert [message.split("folder/")[1].split(":")[0] for message in found] == ["1.pkl, transition 1"] * 3 + ["2.pkl"]
    assert [word in text for word, text in zip(["masks", "actions", "rewards"], found, strict=False)] == [True] * 3


def given_episodes() -> list[Episode]:
    rng = np.random.default_rng(0)
    made = []
    for length, how in ((3, "terminated"), (2, "truncated"), (4, None)):
        ends = {name: np.arange(length) == (length - 1 if name == how else -1) for name in ("terminated", "truncated")}
        observations = {
            "state": rng.normal(size=(length + 1, 5)).astype(np.float32),
            "front": rng.integers(0, 256, (length + 1, 4, 6, 3), np.uint8),
        }
        extras = {"grasp_penalty": rng.normal(size=length).astype(np.float32), "labels": np.arange(length)}
        extras["infos/qpos"] = rng.normal(size=(length, 2))
        actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        made.append(Episode(observations, actions, np.ones(length, np.float32), **ends, extras=extras))
    return made


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    given, file = given_episodes(), tmp_path / "new" / "demos.pkl"
    write_dataset(file, iter(given), "pickle", {"env": "x"})
    back = episodes(file)
    assert len(back) == 3
    for ours, theirs in zip(given, back, strict=True):
        one, other = columns_of(ours), columns_of(theirs)
        for key in ("state", "front"):
            assert np.array_equal(ours.observations[key], theirs.observations[key])
        for name in ("actions", "rewards", "terminated", "truncated"):
            assert np.array_equal(one[name], other[name])
        for name in ("grasp_penalty", "labels"):
            assert np.array_equal(ours.extras[name], theirs.extras[name])
    with pytest.raises(FileExistsError):
        write_dataset(file, iter(given), "pickle")


def test_pythons_own_unpickler_and_the_store_read_what_is_written(tmp_path: Path) -> None:
    """HIL-SERL's learner inserts these dicts as they are; ``ReplayStore.append`` takes the same keys."""
    given, file = given_episodes(), tmp_path / "demos.pkl"
    write_dataset(file, iter(given), "pickle")
    rows = pickle.loads(file.read_bytes())
    assert len(rows) == 9
    assert set(rows[0]) == {
        *("observations", "actions", "next_observations", "rewards", "masks", "dones"),
        *("grasp_penalty", "labels", "infos"),
    }
    assert [(row["masks"], row["dones"]) for row in rows[:5]] == [
        (1, False),
        (1, False),
        (0, True),
        (1, False),
        (1, True),
    ]
    assert np.array_equal(rows[1]["infos"]["infos/qpos"], given[0].extras["infos/qpos"][1])
    assert rows[0]["next_observations"]["front"] is rows[1]["observations"]["front"]  # in the file once
    by_hand = ReplayStore.from_example(rows[0], 9)
    for row in rows:
        by_hand.append(row)
    ours, theirs = (store.batch_at(range(9)) for store in (store_of(open_dataset(file), progress=False), by_hand))
    for name in ("actions", "terminated", "truncated", "labels", "grasp_penalty"):
        assert np.array_equal(ours[name], theirs[name])
    assert np.array_equal(ours["next_observations"]["front"], theirs["next_observations"]["front"])
    assert b"numpy._core" not in file.read_bytes()  # which NumPy 1 does not know


def test_hil_serls_leading_axis_is_written_where_asked_for(tmp_path: Path) -> None:
    given, file = given_episodes(), tmp_path / "demos.pkl"
    write_dataset(file, iter(given), "pickle", {"time_axis": True})
    row = pickle.loads(file.read_bytes())[0]
    for part in ("observations", "next_observations"):
        assert (row[part]["state"].shape, row[part]["front"].shape) == ((1, 5), (1, 4, 6, 3))
    assert row["actions"].shape == (2,)
    assert np.array_equal(episodes(file)[2].observations["front"], given[2].observations["front"])


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    good, bad = given_episodes()[:2]
    bad.rewards[1] = np.inf
    with pytest.raises(DatasetError, match="'rewards' is not finite at step 1"):
        write_dataset(tmp_path / "demos.pkl", iter([good, bad]), "pickle")
    with pytest.raises(DatasetError, match="there are no episodes to write"):
        write_dataset(tmp_path / "demos.pkl", iter([]), "pickle")
    assert not list(tmp_path.iterdir())


def test_reading_a_folder_takes_the_memory_of_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "big"
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 1, 64, 64, 3), np.uint8)
    size = 0
    for number, part in enumerate(frames):
        rows = [
            {**transition(step), "observations": {"front": frame}, "next_observations": {"front": frame}}
            for step, frame in enumerate(part)
        ]
        size = write(folder / f"transitions_{number}.pkl", rows).stat().st_size
    dataset = open_dataset(folder)
    tracemalloc.start()
    assert sum(len(episode) for episode in dataset) == 128
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size


def test_writing_takes_the_memory_of_an_episode(tmp_path: Path) -> None:
    size = 16 * 64 * 64 * 3

    def given() -> Any:
        for number in range(12):
            frames = np.full((16, 64, 64, 3), number, np.uint8)
            flags = np.arange(15) == 14
            rewards = np.zeros(15, np.float32)
            yield Episode({"front": frames}, np.zeros((15, 2), np.float32), rewards, flags, np.zeros(15, bool))

    tracemalloc.start()
    write_dataset(tmp_path / "demos.pkl", given(), "pickle")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size
    assert (tmp_path / "demos.pkl").stat().st_size < 12.5 * size
