"""LeRobotDataset v2.1 and v3.0: every field of made folders, which frame is a step, and what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'serl-fast[data]'")
pytest.importorskip("av", reason="needs PyAV: pip install 'serl-fast[data]'")
import pyarrow.parquet as pq  # noqa: E402

from serl_fast.data.episodes import Dataset, DatasetError, Episode, ReadOptions, columns_of  # noqa: E402
from serl_fast.data.formats import lerobot, open_dataset, write_dataset  # noqa: E402
from tests.data.formats.lerobot_layouts import FPS, FRONT, WRIST, encode, film, frames_of, v21, v30  # noqa: E402

TASKS = ["lift", "place", "lift"]
COLUMNS = [frames_of(7, 0, True), frames_of(5, 1, False), frames_of(9, 2, True)]
LAYOUTS = {"v2.1": v21, "v3.0": v30}


def opened(path: Path, **options: Any) -> Dataset:
    return open_dataset(path, ReadOptions(**options), format="lerobot")


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return LAYOUTS[request.param](tmp_path_factory.mktemp("lerobot") / "set", COLUMNS, TASKS)


def test_every_field(folder: Path) -> None:
    assert lerobot.matches(folder)
    dataset = opened(folder)
    assert (dataset.format, dataset.episodes, dataset.steps) == ("lerobot", None, None)  # 'next.done' tells
    assert dataset.attributes["fps"] == FPS
    assert dataset.attributes["tasks"] == ["lift", "place"]
    assert dataset.attributes["state_parts"] == {"observation.state": 3, "observation.environment_state": 2}
    assert dataset.attributes["action_names"] == ["x", "y", "z", "gripper"]
    episodes = list(dataset)
    assert [len(episode) for episode in episodes] == [7, 4, 9]  # the second was not marked as done
    for index, (episode, columns) in enumerate(zip(episodes, COLUMNS, strict=True)):
        steps, frames = len(episode), len(columns["action"])
        shown = np.minimum(np.arange(steps + 1), frames - 1)
        np.testing.assert_array_equal(episode.actions, columns["action"][:steps])
        np.testing.assert_array_equal(episode.rewards, columns["next.reward"][:steps])
        state = np.concatenate([columns["observation.state"], columns["observation.environment_state"]], 1)
        np.testing.assert_array_equal(episode.observations["state"], state[shown])
        assert episode.observations["state"].dtype == episode.actions.dtype == np.float32
        np.testing.assert_array_equal(episode.observations["wrist"], columns[WRIST][shown])  # PNG
        assert_film(episode.observations["front"], columns[FRONT], shown)
        done = bool(columns["next.done"].any())
        assert episode.terminated.tolist() == [False] * (steps - 1) + [done]
        assert episode.truncated.tolist() == [False] * (steps - 1) + [not done]
        penalty = columns["complementary_info.discrete_penalty"][:steps]
        np.testing.assert_array_equal(episode.extras["grasp_penalty"], penalty)
        np.testing.assert_allclose(episode.extras["timestamp"], np.arange(steps) / FPS)
        assert sorted(episode.extras) == ["grasp_penalty", "timestamp"]
        assert episode.attributes == {"episode_index": index, "task": TASKS[index]}


def assert_film(found: np.ndarray, written: np.ndarray, shown: np.ndarray) -> None:
    """Each frame is like the one it should be, and like no other."""
    distances = np.abs(found[:, None].astype(int) - written[None]).mean((2, 3, 4))
    np.testing.assert_array_equal(distances.argmin(1), shown)
    assert distances.min(1).max() < 6


def test_both_versions_are_the_same(tmp_path: Path) -> None:
    films = (FRONT, WRIST)
    one, other = opened(v21(tmp_path / "a", COLUMNS, TASKS, films)), opened(v30(tmp_path / "b", COLUMNS, TASKS, films))
    for ours, theirs in zip(one, other, strict=True):
        for name in ("actions", "rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        np.testing.assert_array_equal(ours.observations["state"], theirs.observations["state"])
        assert ours.attributes == theirs.attributes


@pytest.mark.parametrize(
    ("flags", "steps", "terminated", "truncated"),
    [
        ({"next.done": [0, 0, 0, 1]}, 4, [0, 0, 0, 1], [0, 0, 0, 0]),
        ({"next.done": [0, 0, 0, 0]}, 3, [0, 0, 0], [0, 0, 1]),
        ({"next.done": [0, 1, 0, 0]}, 2, [0, 1], [0, 0]),  # the third frame's step is an episode of its own
        ({"next.done": [0, 0, 0, 1], "next.truncated": [0, 0, 0, 1]}, 3, [0, 0, 0], [0, 0, 1]),
        ({"next.done": [0, 0, 1, 0], "next.truncated": [0, 0, 1, 0]}, 3, [0, 0, 0], [0, 0, 1]),
        ({"next.done": [0, 0, 0, 0], "next.truncated": [0, 0, 0, 0]}, 3, [0, 0, 0], [0, 0, 0]),
        ({"next.done": None, "next.success": [0, 0, 0, 1]}, 4, [0, 0, 0, 1], [0, 0, 0, 0]),
        ({"next.done": None, "next.success": [0, 0, 0, 0]}, 3, [0, 0, 0], [0, 0, 1]),
        ({"next.done": None, "next.reward": [0, 0, 0, 1]}, 4, [0, 0, 0, 1], [0, 0, 0, 0]),
        ({"next.done": None, "next.reward": [1, 0, 0, 1]}, 3, [0, 0, 0], [0, 0, 1]),
        ({"next.done": None, "next.reward": None}, 3, [0, 0, 0], [0, 0, 1]),
    ],
)
def test_which_frames_are_steps(
    tmp_path: Path, flags: dict[str, Any], steps: int, terminated: list[int], truncated: list[int]
) -> None:
    columns = {name: value for name, value in frames_of(4, 0, False).items() if value.ndim < 4}
    for name, values in flags.items():
        columns.pop(name, None)
        if values is not None:
            columns[name] = np.array(values, np.float32 if name == "next.reward" else bool)
    rewards = columns.get("next.reward", np.zeros(4))
    dataset = opened(v30(tmp_path / "set", [columns, columns], ["", ""], ()))
    episode = next(iter(dataset))
    assert len(episode) == steps
    assert episode.terminated.tolist() == [bool(flag) for flag in terminated]
    assert episode.truncated.tolist() == [bool(flag) for flag in truncated]
    np.testing.assert_array_equal(episode.rewards, rewards[:steps])
    assert dataset.steps == (6 if flags.get("next.reward", ()) is None else None)
    assert dataset.episodes == (None if flags["next.done"] else 2)
    if "next.success" in flags:
        assert episode.attributes["success"] == any(flags["next.success"])
        assert episode.extras["success"].tolist() == [bool(flag) for flag in flags["next.success"][:steps]]


def test_a_recording_that_goes_on_after_an_end_is_several_episodes(tmp_path: Path) -> None:
    columns = frames_of(9, 0, True)
    columns["next.done"] = np.arange(9) % 4 == 3
    root = v21(tmp_path / "set", [columns, columns], ["", ""])
    episodes = list(opened(root))
    assert [len(episode) for episode in episodes] == [4, 4, 4, 4]  # the ninth frame is the observation after the eighth
    assert [episode.name for episode in episodes[:2]] == ["episode 0", "episode 0, from step 4"]
    assert all(episode.terminated.tolist() == [False, False, False, True] for episode in episodes)
    np.testing.assert_array_equal(episodes[1].observations["wrist"], columns[WRIST][4:9])
    assert len(list(opened(root, max_episodes=3))) == 3


def test_transitions_follow_one_another(folder: Path) -> None:
    episode = list(opened(folder))[1]
    columns = columns_of(episode, ["grasp_penalty"])
    np.testing.assert_array_equal(columns["observations"]["state"][1:], columns["next_observations"]["state"][:-1])
    assert columns["grasp_penalty"].shape == (4,)


def test_options(folder: Path) -> None:
    episode = next(iter(opened(folder, image_keys=("wrist", FRONT), image_size=(12, 16))))
    assert list(episode.observations) == ["state", "wrist", "front"]
    assert episode.observations["front"].shape == episode.observations["wrist"].shape == (8, 12, 16, 3)
    only = next(iter(opened(folder, image_keys=(), state_keys=("environment_state", "next.reward"))))
    assert list(only.observations) == ["state"]
    assert only.observations["state"].shape == (8, 3)
    assert "observation.state" in only.extras
    assert [episode.name for episode in opened(folder, filter_key="test")] == ["episode 2"]
    assert [episode.name for episode in opened(folder, max_episodes=2)] == ["episode 0", "episode 1"]
    for option, message in (
        ({"image_keys": ("side",)}, "no camera 'side'; choose from front, wrist"),
        ({"state_keys": ("velocity",)}, "no feature 'velocity' of numbers; choose from observation.state, "),
        ({"filter_key": "val"}, r"'val' is no split FROM:TO; choose from train \(0:2\), test \(2:3\)"),
    ):
        with pytest.raises(DatasetError, match=message):
            opened(folder, **option)


def test_the_row_decides_where_an_episode_is_not_the_file_number(tmp_path: Path) -> None:
    """LeRobot's converter gives the first episode of a file the number of the file before, the last even no file."""
    root = v30(tmp_path / "set", COLUMNS, TASKS)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[2]["data/file_index"] = 0
    pq.write_table(pa.Table.from_pylist(rows), path)
    np.testing.assert_array_equal(list(opened(root))[2].actions, COLUMNS[2]["action"])


def test_films_longer_than_the_data_and_faster(tmp_path: Path) -> None:
    """Frames are found by time: a film with three frames for each of the data gives every third."""
    root = v21(tmp_path / "set", COLUMNS, TASKS)
    fast = film(30, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.data.formats.lerobot_layouts.FPS", 3 * FPS)
        encode(root / f"videos/chunk-000/{FRONT}/episode_000000.mp4", fast)
    episode = next(iter(opened(root, image_keys=("front",))))
    assert_film(episode.observations["front"], fast, np.minimum(3 * np.arange(8), 18))


def episode_of(index: int, steps: int, end: str, size: tuple[int, int] = (32, 48)) -> Episode:
    rng = np.random.default_rng(index)
    ends = {kind: np.arange(steps) == (steps - 1 if end == kind else -1) for kind in ("terminated", "truncated")}
    return Episode(
        {"state": rng.normal(size=(steps + 1, 3)).astype(np.float32), "front": film(steps + 1, index, *size)},
        rng.normal(size=(steps, 4)).astype(np.float32),
        ends["terminated"].astype(np.float32),
        ends["terminated"],
        ends["truncated"],
        {
            "grasp_penalty": rng.normal(size=steps).astype(np.float32),
            "success": ends["terminated"],
            "infos/qpos": rng.normal(size=(steps, 2)),
            "labels": rng.integers(0, 3, steps),
        },
        f"demo_{index}",
        {"task": TASKS[index % 3]},
    )


EPISODES = [
    episode_of(0, 7, "terminated"),
    episode_of(1, 9, "truncated"),
    episode_of(2, 4, ""),
    episode_of(3, 3, "terminated"),
]
LIMITS = {"data_files_size_in_mb": 0.003, "video_files_size_in_mb": 0.001}


@pytest.mark.parametrize("video", [True, False])
def test_what_is_written_is_read_back(tmp_path: Path, video: bool) -> None:
    path = tmp_path / "sub" / "set"
    attributes = {"fps": 15, "robot_type": "toy", "video": video, "action_names": list("xyzg"), **LIMITS}
    write_dataset(path, EPISODES, "lerobot", attributes)
    assert [child.name for child in path.parent.iterdir()] == ["set"]
    dataset = opened(path)
    assert (dataset.attributes["fps"], dataset.attributes["robot_type"]) == (15, "toy")
    assert dataset.attributes["action_names"] == list("xyzg")
    for ours, found in zip(EPISODES, dataset, strict=True):
        for name in ("actions", "rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(found, name), getattr(ours, name))
        shown = np.arange(len(ours) + 1)
        if ours.terminated[-1]:  # LeRobot has no place for the observation after the last step
            shown[-1] -= 1
        np.testing.assert_array_equal(found.observations["state"], ours.observations["state"][shown])
        if video:
            assert_film(found.observations["front"], ours.observations["front"], shown)
        else:
            np.testing.assert_array_equal(found.observations["front"], ours.observations["front"][shown])
        assert list(found.extras) == ["grasp_penalty", "success", "infos.qpos", "labels", "timestamp"]
        for name, value in ours.extras.items():
            np.testing.assert_array_equal(found.extras[name.replace("/", ".")], value)
        assert found.attributes["task"] == ours.attributes["task"]


def test_files_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "set"
    write_dataset(path, EPISODES, "lerobot", LIMITS)
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*.*") if file.is_file())
    places = [f"chunk-000/file-{number:03d}" for number in range(4)]
    films = [name for name in names if name.endswith(".mp4")]
    assert [f"data/{place}.parquet" for place in places[:2]] == [name for name in names if name.startswith("data")][:2]
    assert films == [f"videos/{FRONT}/{place}.mp4" for place in places[: len(films)]]
    assert 1 < len(films) < 4  # some episodes share a film
    rows = [row for file in sorted(path.glob("meta/episodes/*/*")) for row in pq.read_table(file).to_pylist()]
    assert [row["episode_index"] for row in rows] == [0, 1, 2, 3]
    assert [row["length"] for row in rows] == [7, 10, 5, 3]  # one frame more where the episode goes on
    assert [row["dataset_to_index"] for row in rows] == [7, 17, 22, 25]


def test_headers_as_lerobot_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "set"
    write_dataset(path, EPISODES, "lerobot", {"state_names": ["a", "b", "c"]})
    info = json.loads((path / "meta/info.json").read_text())
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    assert {name: value for name, value in info.items() if name != "features"} == {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": 4,
        "total_frames": 25,
        "total_tasks": 2,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 10,
        "splits": {"train": "0:4"},
        "data_path": f"data/{place}.parquet",
        "video_path": "videos/{video_key}/" + place + ".mp4",
    }
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [3], "names": ["a", "b", "c"]}
    assert info["features"]["next.done"] == {"dtype": "bool", "shape": [1], "names": None}
    assert info["features"][FRONT]["info"]["video.codec"] == "h264"
    stats = json.loads((path / "meta/stats.json").read_text())
    actions = np.concatenate(
        [np.append(e.actions, e.actions[-1:], 0) if not e.terminated[-1] else e.actions for e in EPISODES]
    )
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), atol=1e-6)
    np.testing.assert_array_equal(stats["action"]["max"], actions.max(0))
    frames = np.concatenate([e.observations["front"][: len(e) + (not e.terminated[-1])] for e in EPISODES])
    np.testing.assert_allclose(np.squeeze(stats[FRONT]["mean"]), frames.mean((0, 1, 2)) / 255)
    np.testing.assert_allclose(np.squeeze(stats[FRONT]["std"]), frames.std((0, 1, 2)) / 255)
    assert np.shape(stats[FRONT]["q50"]) == (3, 1, 1)
    assert stats["action"]["count"] == stats[FRONT]["count"] == [25]


def test_odd_images_are_png(tmp_path: Path) -> None:
    episode = episode_of(0, 3, "terminated", (31, 48))
    write_dataset(tmp_path / "set", [episode], "lerobot")
    found = next(iter(opened(tmp_path / "set")))
    np.testing.assert_array_equal(found.observations["front"][:3], episode.observations["front"][:3])
    assert not (tmp_path / "set/videos").exists()


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def breaks() -> Iterator[Episode]:
        yield EPISODES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", breaks(), "lerobot")
    four = episode_of(0, 3, "")
    four.observations["front"] = np.zeros((4, 8, 8, 4), np.uint8)
    for episodes, attributes, message in (
        ([], {}, "no episodes"),
        ([EPISODES[0], episode_of(1, 3, "", (16, 16))], {}, "demo_1: field 'observations/front' is uint8 "),
        ([four], {}, "camera 'front' has 4 channels; LeRobot takes 3"),
        ([EPISODES[0]], {"fps": 0}, "attribute 'fps' is 0; accepted: a number above 0"),
        ([EPISODES[0]], {"video_codec": "mpeg9"}, "no video can be written with 'mpeg9'"),
    ):
        with pytest.raises(DatasetError, match=message):
            write_dataset(tmp_path / "set", episodes, "lerobot", attributes)
    assert list(tmp_path.iterdir()) == []


NO_LEROBOT = "needs LeRobot's own library: pip install lerobot==0.4.4"


@pytest.mark.parametrize("video", [True, False])
def test_lerobot_reads_what_is_written_here(tmp_path: Path, video: bool) -> None:
    theirs = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason=NO_LEROBOT)
    write_dataset(tmp_path / "set", EPISODES, "lerobot", {"fps": 15, "video": video, **LIMITS})
    dataset = theirs.LeRobotDataset("local/set", root=tmp_path / "set", video_backend="pyav")
    assert (len(dataset), dataset.num_episodes) == (25, 4)
    row = 0
    for index, episode in enumerate(EPISODES):
        for frame in range(len(episode) + (not episode.terminated[-1])):
            item = {name: np.asarray(value) for name, value in dataset[row].items()}
            step, real = min(frame, len(episode) - 1), frame < len(episode)
            assert (item["episode_index"], item["frame_index"], item["index"]) == (index, frame, row)
            assert item["task"] == episode.attributes["task"]
            np.testing.assert_allclose(item["timestamp"], frame / 15)
            np.testing.assert_array_equal(item["observation.state"], episode.observations["state"][frame])
            np.testing.assert_array_equal(item["action"], episode.actions[step])
            assert item["next.reward"] == (episode.rewards[step] if real else 0)
            assert bool(item["next.done"]) == (real and bool(episode.terminated[step]))
            assert bool(item["next.truncated"]) == (real and bool(episode.truncated[step]))
            np.testing.assert_array_equal(
                item["complementary_info.discrete_penalty"], episode.extras["grasp_penalty"][step]
            )
            np.testing.assert_allclose(
                item["complementary_info.infos.qpos"], episode.extras["infos/qpos"][step], rtol=1e-6
            )
            image = np.round(item[FRONT].transpose(1, 2, 0) * 255).astype(np.uint8)
            assert_film(image[None], episode.observations["front"], np.array([frame]))
            row += 1


@pytest.mark.parametrize("codec", ["libsvtav1", "h264", "png"])
def test_what_lerobot_writes_is_read_here(tmp_path: Path, codec: str) -> None:
    theirs = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason=NO_LEROBOT)
    kind = "image" if codec == "png" else "video"
    features = {
        name: {"dtype": kind, "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
        if value.ndim == 4
        else {"dtype": str(value.dtype), "shape": value.shape[1:] or (1,), "names": None}
        for name, value in COLUMNS[0].items()
    }
    writer = theirs.LeRobotDataset.create(
        "local/set", FPS, features, root=tmp_path / "set", use_videos=kind == "video", video_backend="pyav",
        vcodec="h264" if codec == "png" else codec,
    )  # fmt: skip
    made = [columns | {key: film(len(columns["action"]), 5, 64, 64) for key in (FRONT, WRIST)} for columns in COLUMNS]
    for columns, task in zip(made, TASKS, strict=True):
        for frame in range(len(columns["action"])):
            writer.add_frame({name: np.atleast_1d(value[frame]) for name, value in columns.items()} | {"task": task})
        writer.save_episode(parallel_encoding=False)
    writer.finalize()
    for found, columns, task in zip(opened(tmp_path / "set"), made, TASKS, strict=True):
        frames = len(columns["action"])
        shown = np.minimum(np.arange(len(found) + 1), frames - 1)
        np.testing.assert_array_equal(found.actions, columns["action"][: len(found)])
        np.testing.assert_array_equal(found.rewards, columns["next.reward"][: len(found)])
        np.testing.assert_array_equal(found.observations["state"][:, :3], columns["observation.state"][shown])
        assert len(found) == (frames if columns["next.done"].any() else frames - 1)
        assert found.attributes["task"] == task
        for name, key in (("front", FRONT), ("wrist", WRIST)):
            assert_film(found.observations[name], columns[key], shown)


def test_lerobots_converter_from_v21_to_v30(tmp_path: Path) -> None:
    converter = pytest.importorskip("lerobot.datasets.v30.convert_dataset_v21_to_v30", reason=NO_LEROBOT)
    v21(tmp_path / "local/set", COLUMNS, TASKS)
    converter.convert_dataset(
        "local/set", root=tmp_path, push_to_hub=False, data_file_size_in_mb=0.006, video_file_size_in_mb=0.005
    )
    assert len(list((tmp_path / "local/set/data/chunk-000").iterdir())) > 1
    for before, after in zip(opened(tmp_path / "local/set_old"), opened(tmp_path / "local/set"), strict=True):
        assert before.attributes == after.attributes
        for name in ("actions", "rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        for name in ("observations", "extras"):
            ours, theirs = getattr(before, name), getattr(after, name)
            assert list(ours) == list(theirs)
            for key, value in ours.items():
                np.testing.assert_array_equal(value, theirs[key])
