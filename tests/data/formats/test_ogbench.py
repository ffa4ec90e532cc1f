import zipfile

import numpy as np
import ogbench.utils
import pytest

from serl_fast.data.episodes import DatasetError, ReadOptions
from serl_fast.data.formats import ogbench as reader
from serl_fast.data.formats import open_dataset

RNG = np.random.default_rng(0)
LENGTHS = (5, 3, 8)


def columns(lengths=LENGTHS, visual=False, **changes):
    """The arrays that OGBench's data_gen_scripts save: a row for the final state of every trajectory."""
    rows = sum(lengths)
    ends = np.zeros(rows, bool)
    ends[np.cumsum(lengths) - 1] = True
    state = RNG.normal(size=(rows, 4)).astype(np.float32)
    arrays = {
        "observations": RNG.integers(0, 256, (rows, 64, 64, 3), np.uint8) if visual else state,
        "actions": RNG.uniform(-1, 1, size=(rows, 2)).astype(np.float32),
        "terminals": ends,
        "qpos": RNG.normal(size=(rows, 6)).astype(np.float32),
        "qvel": RNG.normal(size=(rows, 5)).astype(np.float32),
        "button_states": RNG.integers(0, 2, (rows, 2)),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def save(path, arrays, compressed=True):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def joined(episodes):
    return {
        "observations": np.concatenate([e.observations["state"][:-1] for e in episodes]),
        "next_observations": np.concatenate([e.observations["state"][1:] for e in episodes]),
        "actions": np.concatenate([e.actions for e in episodes]),
        "terminals": np.concatenate([e.terminated | e.truncated for e in episodes]),
        **{name: np.concatenate([e.extras[name] for e in episodes]) for name in episodes[0].extras},
    }


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("block", [1, 4, 4096])
def test_every_field_is_that_of_ogbenchs_own_loader(tmp_path, monkeypatch, compressed, block):
    monkeypatch.setattr(reader, "BLOCK", block)
    path = save(tmp_path / "cube-single-play-v0.npz", columns(), compressed)
    expected = ogbench.utils.load_dataset(str(path), add_info=True)

    dataset = open_dataset(path)
    episodes = list(dataset)

    assert (dataset.format, dataset.episodes, dataset.steps) == ("ogbench", 3, 13)
    assert [len(e) for e in episodes] == [4, 2, 7]
    found = joined(episodes)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, name)
        assert found[name].dtype == value.dtype or name == "terminals"
    for episode in episodes:
        assert not episode.terminated.any()
        assert episode.truncated[-1]
        np.testing.assert_array_equal(episode.rewards, np.zeros(len(episode), np.float32))
    assert dataset.attributes == {
        "dataset": "cube-single-play-v0",
        "env": "cube-single-v0",
        "split": "train",
        "state_parts": {"observations": 4},
        "rewards": "none in the file; 0 everywhere",
    }


@pytest.mark.parametrize("compact", [False, True])
def test_a_file_saved_from_a_loaded_data_set_gives_the_same(tmp_path, compact):
    raw = save(tmp_path / "a-b-v0.npz", columns())
    loaded = ogbench.utils.load_dataset(str(raw), compact_dataset=compact, add_info=True)
    again = joined(list(open_dataset(save(tmp_path / "again.npz", loaded))))
    for name, value in joined(list(open_dataset(raw))).items():
        np.testing.assert_array_equal(again[name], value, name)


def test_images(tmp_path):
    arrays = columns(visual=True)
    path = save(tmp_path / "visual-cube-single-play-v0-val.npz", arrays)
    dataset = open_dataset(path)
    episodes = list(dataset)
    assert (dataset.attributes["env"], dataset.attributes["split"]) == ("visual-cube-single-v0", "val")
    np.testing.assert_array_equal(np.concatenate([e.observations["image"] for e in episodes]), arrays["observations"])
    assert set(episodes[0].observations) == {"image"}

    small = next(iter(open_dataset(path, ReadOptions(image_size=(32, 16), state_keys=("qpos", "button_states")))))
    # Each new pixel is the mean of those that it covers, rounded after each axis.
    means = arrays["observations"][:5].reshape(5, 32, 2, 16, 4, 3).mean((2, 4))
    assert np.abs(small.observations["image"] - means).max() <= 1
    np.testing.assert_array_equal(
        small.observations["state"], np.concatenate([arrays["qpos"][:5], arrays["button_states"][:5]], 1)
    )
    assert "image" not in next(iter(open_dataset(path, ReadOptions(image_keys=(), state_keys=("qpos",))))).observations


def test_rewards_and_masks_of_a_single_task(tmp_path):
    rewards, masks = RNG.normal(size=16), np.ones(16)
    masks[[1, 2, 7]] = 0  # row 7 is the last of a trajectory, and no step
    arrays = columns(rewards=rewards, masks=masks)
    episodes = list(open_dataset(save(tmp_path / "x.npz", arrays)))
    assert [len(e) for e in episodes] == [2, 1, 1, 2, 7]
    assert [bool(e.terminated[-1]) for e in episodes] == [True, True, False, False, False]
    assert [bool(e.truncated[-1]) for e in episodes] == [False, False, True, True, True]
    steps = ~arrays["terminals"]
    np.testing.assert_array_equal(np.concatenate([e.rewards for e in episodes]), rewards[steps].astype(np.float32))
    found = joined(episodes)
    np.testing.assert_array_equal(found["observations"], arrays["observations"][steps])
    np.testing.assert_array_equal(found["next_observations"], arrays["observations"][np.flatnonzero(steps) + 1])


def test_a_file_without_a_last_terminal(tmp_path):
    arrays = columns()
    arrays["terminals"][-1] = False
    *_, last = open_dataset(save(tmp_path / "x.npz", arrays))
    assert len(last) == 7
    assert not last.truncated.any()


def test_options(tmp_path):
    path = save(tmp_path / "x-play-v0.npz", columns())
    dataset = open_dataset(path, ReadOptions(max_episodes=2))
    assert (len(list(dataset)), dataset.episodes, dataset.steps) == (2, 2, 6)
    for options, message in (
        (ReadOptions(filter_key="val"), "x-play-v0-val.npz"),
        (ReadOptions(image_keys=("front",)), "no camera"),
        (ReadOptions(state_keys=("speed",)), "'speed'; it has observations"),
    ):
        with pytest.raises(DatasetError, match=message):
            open_dataset(path, options)


def test_one_trajectory_at_a_time_is_in_memory(tmp_path):
    """A file that holds far more than is ever asked for at once."""
    path = save(tmp_path / "x.npz", columns(lengths=(3,) * 2000))
    sizes = []
    original = reader._Member.take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            reader._Member, "take", lambda self, rows: sizes.append((self.where, rows)) or original(self, rows)
        )
        assert sum(map(len, open_dataset(path))) == 4000
    assert max(rows for where, rows in sizes if "terminals" not in where) == 3


def npy(path, name, content):
    """Replace a member by bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    members[f"{name}.npy"] = content(members[f"{name}.npy"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, value in members.items():
            archive.writestr(entry, value)


def objects(path):
    np.savez(path, **(columns() | {"actions": np.array([{"a": 1}] * 16, object)}))


def claims_more(path):
    npy(path, "observations", lambda c: c.replace(b"(16, 4), }        ", b"(16, 40000000), } "))


def cut_member(path):
    npy(path, "observations", lambda c: c[:-10])


def bad_header(path):
    npy(path, "observations", lambda c: c[:10] + b"x" * 40 + c[50:])


def no_member(path):
    npy(path, "terminals", lambda c: b"")


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def damaged(path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("observations.npy")
        start = entry.header_offset + 30 + len(entry.filename) + 150
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (objects, "'actions': (can not be opened|is object)"),
        (claims_more, "'observations': is float32 .* was not written completely"),
        (cut_member, "'observations': is float32 .* was not written completely"),
        (bad_header, "'observations': can not be opened"),
        (no_member, "'terminals': can not be opened"),
        (cut_off, "can not be opened as npz"),
        (damaged, "'observations': can not be"),
        (empty, "can not be opened as npz"),
    ],
)
def test_bad_files(tmp_path, harm, message):
    path = save(tmp_path / "x.npz", columns())
    harm(path)
    with pytest.raises(DatasetError, match=message) as caught:
        list(open_dataset(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminals": None}, "'terminals': is missing; the file has"),
        ({"actions": np.zeros(16, np.int32)}, "'actions': is int32"),
        ({"actions": np.zeros((15, 2), np.float32)}, "'actions': has shape"),
        ({"observations": np.zeros((16, 4), np.int64)}, "'observations': is int64"),
        ({"observations": np.zeros((16, 3, 4), np.float32)}, "'observations': is float32"),
        ({"observations": np.asfortranarray(np.zeros((16, 4), np.float32))}, "columns first"),
        ({"observations": np.full((16, 4), np.inf, np.float32)}, "not finite at step 0"),
        ({"rewards": np.zeros(9)}, "'rewards': has shape"),
        ({"terminals": np.ones(16, bool)}, "no trajectory"),
    ],
)
def test_bad_fields(tmp_path, changes, message):
    path = save(tmp_path / "x.npz", columns(**changes))
    with pytest.raises(DatasetError, match=message) as caught:
        list(open_dataset(path))
    assert str(path) in str(caught.value)


def test_random_damage_is_an_error_or_nothing(tmp_path):
    original = save(tmp_path / "x.npz", columns()).read_bytes()
    rng = np.random.default_rng(1)
    errors = 0
    for _ in range(200):
        content = bytearray(original)
        for at in rng.integers(0, len(content), rng.integers(1, 6)):
            content[at] = rng.integers(256)
        path = tmp_path / "y.npz"
        path.write_bytes(content)
        try:
            list(open_dataset(path))
        except DatasetError:
            errors += 1
    assert errors > 100
