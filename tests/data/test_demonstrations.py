"""Reading and writing demonstration files: the formats that are read, and each message of what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serl_fast.data.demonstrations import (
    DemonstrationError,
    demonstrations_to_store,
    fill_with_demonstrations,
    load_demonstrations,
    save_demonstrations,
)
from serl_fast.data.formats import open_dataset, write_dataset
from serl_fast.replay import ReplayStore

CAMERAS = ("front", "wrist_1")


def image(value: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def transition(step: int = 0, last: bool = False, **changes: Any) -> dict[str, Any]:
    """As the manuals describe it."""
    return {
        "observations": {
            "state": np.full(5, step, np.float32),
            "front": image(step),
            "wrist_1": image(100 + step),
        },
        "actions": np.array([0.5, -1, 1, 0, 0, 0, 1], np.float32),
        "next_observations": {
            "state": np.full(5, step + 1, np.float32),
            "front": image(step + 1),
            "wrist_1": image(101 + step),
        },
        "rewards": float(last),
        "masks": float(not last),
        "dones": last,
        **changes,
    }


def hil_serl_transition(step: int) -> dict[str, Any]:
    """As HIL-SERL records it: a leading time axis, float64 actions, the penalty in infos, further cameras."""
    row = transition(step)
    for part in ("observations", "next_observations"):
        row[part] = {key: value[None] for key, value in row[part].items()} | {"classifier": image(0)[None]}
    row["actions"] = row["actions"].astype(np.float64)
    row["rewards"], row["dones"] = np.int64(0), np.bool_(False)
    return row | {"infos": {"grasp_penalty": -0.02, "succeed": False, "left": True}}


def write(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "demo.pkl"


def test_the_format_of_the_manuals(file: Path) -> None:
    write(file, [transition(0), transition(1, last=True)])
    first, last = load_demonstrations([file], CAMERAS, action_dim=7)
    assert set(first) == {
        "observations",
        "actions",
        "next_observations",
        "rewards",
        "terminated",
        "truncated",
        "grasp_penalty",
    }
    assert list(first["observations"]) == ["state", "front", "wrist_1"]
    assert first["observations"]["state"].dtype == first["actions"].dtype == np.float32
    assert first["observations"]["front"].shape == (8, 8, 3)
    assert np.array_equal(first["next_observations"]["wrist_1"], image(101))
    assert (first["rewards"], last["rewards"]) == (0.0, 1.0)
    assert (first["terminated"], last["terminated"]) == (False, True)
    assert type(first["rewards"]) is type(first["grasp_penalty"]) is np.float32
    assert first["grasp_penalty"] == 0.0


def test_a_file_of_hil_serl(file: Path) -> None:
    write(file, [hil_serl_transition(0), hil_serl_transition(1)])
    first, _ = load_demonstrations(file, CAMERAS, action_dim=7)
    assert list(first["observations"]) == ["state", "front", "wrist_1"]
    assert first["observations"]["state"].shape == (5,)
    assert first["observations"]["front"].shape == (8, 8, 3)
    assert first["grasp_penalty"] == np.float32(-0.02)
    assert first["actions"].dtype == np.float32
    assert first["actions"][-1] == 1.0  # the gripper's choice stays as it is


def test_a_plain_array_is_the_state(file: Path) -> None:
    write(file, [transition(0, observations=np.zeros(3), next_observations=np.ones((1, 3)))])
    (row,) = load_demonstrations([file])
    assert np.array_equal(row["next_observations"]["state"], np.ones(3, np.float32))


def test_pixels_without_a_state(file: Path) -> None:
    row = transition(0)
    del row["observations"]["state"], row["next_observations"]["state"]
    write(file, [row])
    assert list(load_demonstrations([file], ["front"])[0]["observations"]) == ["front"]


@pytest.mark.parametrize(
    ("masks", "dones", "terminated", "truncated"),
    [
        (1.0, False, False, False),
        (0.0, True, True, False),
        (1.0, True, False, True),
        (0.0, False, True, False),
    ],
)
def test_ends_of_episodes(file: Path, masks: float, dones: bool, terminated: bool, truncated: bool) -> None:
    write(file, [transition(0, masks=masks, dones=dones)])
    (row,) = load_demonstrations([file])
    assert (row["terminated"], row["truncated"]) == (terminated, truncated)


def test_penalty_beside_the_fields_goes_first(file: Path) -> None:
    write(file, [transition(0, grasp_penalty=-0.1, infos={"grasp_penalty": -0.02})])
    assert load_demonstrations([file])[0]["grasp_penalty"] == np.float32(-0.1)


def test_rounding_beyond_the_box_is_clipped(file: Path) -> None:
    write(file, [transition(0, actions=np.full(7, 1 + 1e-7))])
    assert load_demonstrations([file])[0]["actions"].max() == 1.0


def test_files_follow_each_other(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.pkl", [transition(i)]) for i in range(3)]
    rows = load_demonstrations(paths, CAMERAS)
    assert [row["observations"]["state"][0] for row in rows] == [0, 1, 2]


def changed(part: str, key: str, value: Any) -> dict[str, Any]:
    row = transition(1)
    row[part] = row[part] | {key: value}
    return row


def without(key: str, part: str | None = None) -> dict[str, Any]:
    row = transition(1)
    del (row if part is None else row[part])[key]
    return row


WRONG: dict[str, tuple[Any, str, str]] = {
    "missing field": (without("masks"), "masks", r"is missing; the transition has 'observations', 'actions'"),
    "missing camera": (
        without("front", "observations"),
        "observations/front",
        r"is missing; the observation has 'state', 'wrist_1'",
    ),
    "missing next camera": (
        without("wrist_1", "next_observations"),
        "next_observations/wrist_1",
        r"is missing",
    ),
    "missing state": (without("state", "next_observations"), "next_observations/state", r"has shape None"),
    "no dict": ([1, 2], "", r"is a list; accepted: a dict with observations"),
    "image of floats": (
        changed("observations", "front", image(1) / 255),
        "observations/front",
        r"has dtype float64; accepted: uint8",
    ),
    "channels first": (
        changed("observations", "front", image(1).transpose(2, 0, 1)),
        "observations/front",
        r"has shape \(3, 8, 8\).*channels come last",
    ),
    "stacked frames": (
        changed("observations", "front", np.zeros((2, 8, 8, 3), np.uint8)),
        "observations/front",
        r"has shape \(2, 8, 8, 3\)",
    ),
    "another image size": (
        changed("observations", "front", image(1, 9)) | {},
        "next_observations/front",
        r"has shape \(8, 8, 3\); in observations it has \(9, 9, 3\)",
    ),
    "another state width": (
        transition(1, observations={**transition(1)["observations"], "state": np.zeros(4)})
        | {"next_observations": {**transition(1)["next_observations"], "state": np.zeros(4)}},
        "observations/state",
        r"has shape \(4,\); .*transition 0 has \(5,\)",
    ),
    "state of text": (changed("observations", "state", "home"), "observations/state", r"is of type str"),
    "ragged state": (changed("observations", "state", [[1], [1, 2]]), "observations/state", r"is no array"),
    "state with nan": (
        changed("observations", "state", np.array([0, np.nan, 0, 0, 0])),
        "observations/state",
        r"is nan at index 1; accepted: finite",
    ),
    "state beyond float32": (
        changed("observations", "state", np.full(5, 1e300)),
        "observations/state",
        r"is 1e\+300",
    ),
    "another action width": (transition(1, actions=np.zeros(6)), "actions", r"has 6 values; accepted: 7"),
    "action outside": (
        transition(1, actions=np.array([0, 0, -1.5, 0, 0, 0, 0])),
        "actions",
        r"is -1\.5 at index 2; accepted: values in \[-1, 1\]",
    ),
    "action with infinity": (transition(1, actions=np.full(7, np.inf)), "actions", r"is inf at index 0"),
    "action chunk": (transition(1, actions=np.zeros((4, 7))), "actions", r"has shape \(4, 7\)"),
    "boolean action": (transition(1, actions=np.zeros(7, bool)), "actions", r"is of type bool"),
    "reward of nan": (transition(1, rewards=float("nan")), "rewards", r"is nan; accepted: one finite number"),
    "vector of rewards": (transition(1, rewards=np.zeros(2)), "rewards", r"has shape \(2,\)"),
    "mask between": (transition(1, masks=0.5), "masks", r"is 0\.5; accepted: 0 or 1"),
    "done of text": (transition(1, dones="yes"), "dones", r"is of type str"),
    "penalty of nan": (transition(1, grasp_penalty=np.nan), "grasp_penalty", r"is nan"),
    "penalty in infos": (
        transition(1, infos={"grasp_penalty": "none"}),
        "infos/grasp_penalty",
        r"is of type str",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_messages_name_file_transition_and_field(name: str, file: Path) -> None:
    row, field, message = WRONG[name]
    write(file, [transition(0), row])
    with pytest.raises(DemonstrationError, match=message) as caught:
        load_demonstrations([file], CAMERAS, action_dim=7)
    assert f"{file}, transition 1, field '{field}'" in str(caught.value)


def test_shapes_must_agree_between_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.pkl", [transition(0)])]
    paths.append(write(tmp_path / "b.pkl", [transition(0, actions=np.zeros(6))]))
    with pytest.raises(DemonstrationError, match=r"b\.pkl, .*'actions': has shape \(6,\); .*a\.pkl"):
        load_demonstrations(paths)


def test_nothing_to_learn_from(file: Path) -> None:
    write(file, [{**transition(0), "observations": {"front": image(0)}}])
    with pytest.raises(DemonstrationError, match=r"no 'state' and no image_keys .* has 'front'"):
        load_demonstrations([file])


@pytest.mark.parametrize(
    ("content", "message"), [({"a": 1}, "holds a dict; expected a list"), ([], "holds no transitions")]
)
def test_files_of_something_else(file: Path, content: Any, message: str) -> None:
    write(file, content)
    with pytest.raises(DemonstrationError, match=message):
        load_demonstrations([file])


def test_hostile_file(file: Path) -> None:
    class Call:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(file.parent / "executed"),)

    write(file, [transition(0, infos={"x": Call()})])
    with pytest.raises(DemonstrationError, match=r"demo\.pkl: refused the global"):
        load_demonstrations([file])
    assert not (file.parent / "executed").exists()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_demonstrations([tmp_path / "absent.pkl"])


def test_round_trip(file: Path) -> None:
    truncated = transition(2, masks=1.0, dones=True)
    write(file, [hil_serl_transition(0), transition(1), truncated, transition(3, last=True)])
    rows = load_demonstrations([file], CAMERAS)
    again = file.with_name("again.pkl")
    save_demonstrations(again, rows)
    for a, b in zip(rows, load_demonstrations([again], CAMERAS), strict=True):
        for part in ("observations", "next_observations"):
            assert all(np.array_equal(a[part][key], b[part][key]) for key in a[part])
        for key in ("actions", "rewards", "terminated", "truncated", "grasp_penalty"):
            assert np.array_equal(a[key], b[key])
    assert b"numpy._core" not in again.read_bytes()  # which NumPy 1 does not know
    saved = pickle.loads(again.read_bytes())
    assert set(saved[0]) >= {"observations", "actions", "next_observations", "rewards", "masks", "dones"}
    assert [(row["masks"], row["dones"]) for row in saved] == [(1, False), (1, False), (1, True), (0, True)]


def test_saving_keeps_plain_infos_and_accepts_the_keys_of_the_file(file: Path) -> None:
    infos = {"succeed": True, "robot": object(), "grasp_penalty": -0.5}
    save_demonstrations(file, [transition(0, infos=infos)])
    assert pickle.loads(file.read_bytes())[0]["infos"] == {"succeed": True, "grasp_penalty": -0.5}
    assert load_demonstrations([file])[0]["grasp_penalty"] == -0.5


def test_saving_what_can_not_be_read_changes_nothing(file: Path) -> None:
    save_demonstrations(file, [transition(0)])
    before = file.read_bytes()
    with pytest.raises(DemonstrationError, match="transition 1, field 'actions': is 2 at index 0"):
        save_demonstrations(file, [transition(0), transition(1, actions=np.full(7, 2.0))])
    with pytest.raises(DemonstrationError, match="no transitions"):
        save_demonstrations(file, [])
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["demo.pkl"]


def test_to_store() -> None:
    class Store:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def append(self, row: Any) -> None:
            self.rows.append(row)

    store = Store()
    rows = [transition(0), transition(1)]
    demonstrations_to_store(rows, store)
    assert store.rows == rows


ENVIRONMENT = {
    "observations": {"state": np.zeros(5, np.float32), "front": image(0)},
    "next_observations": {"state": np.zeros(5, np.float32), "front": image(0)},
    **{"actions": np.zeros(7, np.float32), "rewards": 0.0, "terminated": False, "truncated": False},
    "grasp_penalty": np.float32(0),
}


def environment_store(capacity: int = 20) -> ReplayStore:
    return ReplayStore.from_example(ENVIRONMENT, capacity)


def test_every_format_fills_an_environments_store_alike(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    write(file, [transition(0), transition(1, last=True), transition(5), transition(6, last=True)])
    write_dataset(tmp_path / "demo.hdf5", open_dataset(file), "robomimic")
    by_hand = environment_store()
    demonstrations_to_store(load_demonstrations(file, ["front"]), by_hand)
    for path in (file, tmp_path / "demo.hdf5"):
        store = environment_store()
        assert fill_with_demonstrations([path, path], store, ["front"]) == 8
        ours, theirs = store.batch_at([0, 1, 2, 3]), by_hand.batch_at([0, 1, 2, 3])
        for key in ("state", "front"):
            assert np.array_equal(ours["next_observations"][key], theirs["next_observations"][key])
        for key in ("actions", "rewards", "terminated", "truncated", "grasp_penalty"):
            assert np.array_equal(ours[key], theirs[key])
        assert [len(one) for one in store.episodes()] == [2, 2, 2, 2]


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "range": (
        {"actions": np.array([0, 0, -1.5, 0, 0, 0, 0])},
        r"'actions': is -1\.5 at step 0, index 2; accepted: values in",
    ),
    "width": ({"actions": np.zeros(6)}, r"'actions': has 6 values; accepted: 7"),
    "state": (
        {part: {"state": np.zeros(4), "front": image(0)} for part in ("observations", "next_observations")},
        r"'observations/state': has shape \(4,\); the environment has \(5,\)",
    ),
    "no state": (
        {part: {"front": image(0)} for part in ("observations", "next_observations")},
        r"'observations/state': is missing; the environment has it, with shape \(5,\)",
    ),
    "size": (
        {part: {"state": np.zeros(5), "front": image(0, 9)} for part in ("observations", "next_observations")},
        r"'observations/front': has shape \(9, 9, 3\); the environment has \(8, 8, 3\)",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_the_environment_is_named(name: str, file: Path) -> None:
    changes, message = UNFIT[name]
    write(file, [transition(0, **changes)])
    store = environment_store()
    with pytest.raises(DemonstrationError, match=rf"demo\.pkl, transition 0, field {message}"):
        fill_with_demonstrations([file], store, ["front"])
    assert len(store) == 0


def test_actions_beyond_the_range_by_rounding_are_clipped(file: Path) -> None:
    write(file, [transition(0, actions=np.full(7, 1 + 1e-7))])
    store = environment_store()
    fill_with_demonstrations([file], store, ["front"])
    assert store.batch_at([0])["actions"].max() == 1.0
