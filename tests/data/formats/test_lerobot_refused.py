"""LeRobotDataset folders that are refused: each with one error that says what is wrong and where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'serl-fast[data]'")
pytest.importorskip("av", reason="needs PyAV: pip install 'serl-fast[data]'")
import pyarrow.parquet as pq  # noqa: E402

from serl_fast.data.episodes import Dataset, DatasetError, ReadOptions  # noqa: E402
from serl_fast.data.formats import open_dataset  # noqa: E402
from tests.data.formats.lerobot_layouts import FRONT, WRIST, encode, film, frames_of, v21, v30  # noqa: E402

TASKS = ["lift", "place", "lift"]
COLUMNS = [frames_of(7, 0, True), frames_of(5, 1, False), frames_of(9, 2, True)]
Harm = Callable[[Path], Any]


def opened(path: Path, **options: Any) -> Dataset:
    return open_dataset(path, ReadOptions(**options), format="lerobot")


def change_info(**changes: Any) -> Harm:
    def change(root: Path) -> None:
        path = root / "meta/info.json"
        info = json.loads(path.read_text())
        for name, value in changes.items():
            part, (*above, last) = info, name.split("/")
            for key in above:
                part = part[key]
            part[last] = value
        path.write_text(json.dumps(info))

    return change


def change_table(path: str, column: str, values: Any) -> Harm:
    def change(root: Path) -> None:
        table = pq.read_table(root / path)
        array = values(table[column].to_pylist()) if callable(values) else values
        index = table.schema.get_field_index(column)
        pq.write_table(table.set_column(index, column, pa.array(array)), root / path)

    return change


def cut(path: str, part: float) -> Harm:
    def change(root: Path) -> None:
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: int(part * len(content))])

    return change


def text(path: str, content: str) -> Harm:
    return lambda root: (root / path).write_text(content)


def table(change: Callable[[Any], Any]) -> Harm:
    return lambda root: pq.write_table(change(pq.read_table(root / V2_DATA)), root / V2_DATA)


def remove(path: str) -> Harm:
    return lambda root: (root / path).unlink()


V2_DATA, V2_FILM = "data/chunk-000/episode_000001.parquet", f"videos/chunk-000/{FRONT}/episode_000001.mp4"
V3_DATA, V3_FILM = "data/chunk-000/file-001.parquet", f"videos/{FRONT}/chunk-000/file-001.mp4"
V3_LIST = "meta/episodes/chunk-000/file-000.parquet"
PLAYLIST = "#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"
REFUSED: list[tuple[str, Harm, str]] = [
    ("v2.1", text("meta/info.json", ""), "info.json is missing or empty"),
    ("v2.1", text("meta/info.json", "[" * 100_000), "info.json is no JSON"),
    ("v2.1", text("meta/info.json", "[]"), "holds a list; accepted: named values"),
    ("v2.1", change_info(codebase_version="v1.6"), "'codebase_version' is 'v1.6'; accepted: v2.0, v2.1 and v3.0"),
    ("v2.1", change_info(fps="fast"), "field 'fps' is 'fast'; accepted: int or float"),
    ("v2.1", change_info(fps=0), "'fps' is 0"),
    ("v2.1", change_info(total_episodes=5), "'total_episodes' is 5; the list of episodes has 3"),
    ("v2.1", change_info(total_frames=1), "'total_frames' is 1; the list of episodes has 21"),
    ("v2.1", change_info(data_path="../../{episode_index}.parquet"), "leads out of the data set"),
    ("v2.1", change_info(data_path="/etc/{episode_index}"), "leads out of the data set"),
    ("v2.1", change_info(data_path="{episode_index.__class__}"), "accepted: a path with the fields"),
    ("v2.1", change_info(data_path="{episode_index:999999999d}"), "accepted: a path with the fields"),
    ("v2.1", change_info(data_path="{secret}"), "accepted: a path with the fields"),
    ("v2.1", change_info(**{"features/action/shape": [10**9]}), r"features/action: 'shape' is \[1000000000\]"),
    ("v2.1", change_info(**{"features/action/shape": [5]}), r"episode 0: field 'action' has shape \(4,\); .* \(5,\)"),
    ("v2.1", change_info(**{f"features/{WRIST}/shape": [9, 9, 3]}), "'wrist': image 0 .*24 x 24 px; expected 9 x 9"),
    ("v2.1", change_info(features={}), "there is no feature 'action'"),
    ("v2.1", change_info(**{"features/a": {"dtype": "video", "shape": [3]}}), "accepted: height, width, channels"),
    ("v2.1", change_info(features={"a/../b": {"dtype": "video", "shape": [1]}}), "names without a slash"),
    ("v2.1", text("meta/episodes.jsonl", '{"episode_index": 0'), "episodes.jsonl, line 1 is no JSON"),
    ("v2.1", text("meta/episodes.jsonl", '{"episode_index": 0, "length": -3}'), "'length' is -3; accepted: at least 1"),
    ("v2.1", text("meta/episodes.jsonl", ""), "there are no episodes"),
    ("v2.1", remove("meta/tasks.jsonl"), "tasks.jsonl is missing"),
    ("v2.1", remove(V2_DATA), "episode_000001.parquet is missing"),
    ("v2.1", cut(V2_DATA, 0.7), "episode_000001.parquet is no complete parquet file"),
    ("v2.1", remove(V2_FILM), "episode 1: camera 'front': .*episode_000001.mp4 is missing"),
    ("v2.1", cut(V2_FILM, 0.7), "episode 1: camera 'front': .*damaged or cut short"),
    ("v2.1", text(V2_FILM, PLAYLIST), "episode 1: camera 'front': .*damaged or cut short after 0 decoded frames"),
    ("v2.1", lambda root: encode(root / V2_FILM, film(3, 0)), r"frame 3 of 5 is wanted at 0.3000 s .* is at 0.2000 s"),
    ("v2.1", change_table(V2_DATA, "action", ["a"] * 5), "episode 1: field 'action' holds string"),
    ("v2.1", change_table(V2_DATA, "action", [[1.0] * 4] * 4 + [[1.0] * 3]), "'action' has rows of different lengths"),
    ("v2.1", change_table(V2_DATA, "action", [[1.0] * 4] * 4 + [None]), "'action' has (gaps|rows of diff)"),
    ("v2.1", change_table(V2_DATA, "next.reward", [0.0, None, 0, 0, 0]), "episode 1: field 'next.reward' has gaps"),
    ("v2.1", change_table(V2_DATA, "next.reward", [0.0, np.nan, 0, 0, 0]), "'rewards' is not finite at step 1"),
    ("v2.1", change_table(V2_DATA, "timestamp", [0.0, 0.1, 0.0, 0.3, 0.4]), "field 'timestamp' is not in order"),
    ("v2.1", change_table(V2_DATA, "episode_index", [0] * 5), r"field 'episode_index' is \[0, 0, 0\]"),
    ("v2.1", change_table(V2_DATA, WRIST, [{"bytes": b"\x89PNG\r\n", "path": ""}] * 5), "image 0 can not be"),
    ("v2.1", change_table(V2_DATA, WRIST, [{"bytes": None, "path": "/etc/passwd"}] * 5), "is not in the table"),
    ("v2.1", table(lambda rows: rows.drop_columns(["action"])), "no column 'action'"),
    ("v2.1", table(lambda rows: rows.slice(0, 3)), "ends at row 3; wanted are 5 from 0 on"),
    ("v3.0", remove(V3_DATA), "data/chunk-000/file-001.parquet is missing"),
    ("v3.0", cut(V3_DATA, 0.9), "file-001.parquet is no complete parquet file"),
    ("v3.0", remove(V3_LIST), "holds no list of episodes"),
    ("v3.0", cut(V3_LIST, 0.5), "is no complete parquet file"),
    ("v3.0", remove("meta/tasks.parquet"), "tasks.parquet is missing"),
    ("v3.0", lambda root: pq.write_table(pa.table({"x": [1]}), root / "meta/tasks.parquet"), r"columns \['x'\]"),
    ("v3.0", change_info(total_frames=20), "holds 21 frames; .* says 'total_frames' is 20"),
    ("v3.0", change_info(video_path="../{video_key}/{file_index}"), "leads out of the data set"),
    ("v3.0", change_info(video_path=None), "field 'video_path' is 'None'; accepted: str"),
    ("v3.0", change_table(V3_LIST, "length", [7, 5, 8]), "frames 12 to 21 are not 8 of the 21 that there are"),
    ("v3.0", change_table(V3_LIST, "dataset_from_index", [-7, 7, 12]), "frames -7 to 7 are not"),
    ("v3.0", change_table(V3_LIST, "episode_index", [0, 2, 1]), r"episode 2: field 'episode_index' is \[1, 1, 1\]"),
    ("v3.0", change_table(V3_LIST, f"videos/{FRONT}/from_timestamp", [0.0, np.nan, 0.0]), "from_timestamp' is nan"),
    ("v3.0", change_table(V3_LIST, f"videos/{FRONT}/from_timestamp", [0.0, 9.0, 0.0]), "episode 1: .* at 9.0000 s"),
    ("v3.0", remove(V3_FILM), "episode 2: camera 'front': .*file-001.mp4 is missing"),
]  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    return {version: layout(root / version, COLUMNS, TASKS) for version, layout in (("v2.1", v21), ("v3.0", v30))}


@pytest.mark.parametrize(("version", "harm", "message"), REFUSED, ids=[message[:40] for _, _, message in REFUSED])
def test_what_is_refused(tmp_path: Path, originals: dict[str, Path], version: str, harm: Harm, message: str) -> None:
    root = shutil.copytree(originals[version], tmp_path / "set")
    list(opened(root))
    harm(root)
    with pytest.raises(DatasetError, match=message):
        list(opened(root))


def test_only_what_is_wanted_is_opened(tmp_path: Path, originals: dict[str, Path]) -> None:
    root = shutil.copytree(originals["v2.1"], tmp_path / "set")
    (root / V2_FILM).unlink()
    assert len(list(opened(root, max_episodes=1))) == 1
    assert len(list(opened(root, image_keys=("wrist",)))) == 3


def test_one_frame_alone_is_no_step(tmp_path: Path) -> None:
    columns = {name: value[:1] for name, value in COLUMNS[1].items() if value.ndim < 4}
    with pytest.raises(DatasetError, match=r"episode 1: it has one frame and 'next.done' is not set"):
        list(opened(v21(tmp_path / "set", [columns | {"next.done": np.array([True])}, columns], ["", ""], ())))
