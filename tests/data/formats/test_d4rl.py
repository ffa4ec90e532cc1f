import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from serl_fast.data.episodes import DatasetError, Episode, ReadOptions
from serl_fast.data.formats import d4rl, open_dataset, write_dataset

RNG = np.random.default_rng(0)


def columns(rows, **changes):
    """The arrays of a file as D4RL writes them: float32, flags bool."""
    arrays = {
        "observations": RNG.normal(size=(rows, 4)).astype(np.float32),
        "actions": RNG.uniform(-1, 1, size=(rows, 2)).astype(np.float32),
        "rewards": RNG.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.zeros(rows, bool),
        "infos/qpos": RNG.normal(size=(rows, 3)).astype(np.float32),
        "infos/action_log_probs": RNG.normal(size=rows).astype(np.float32),
    }
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def flags(rows, *at):
    values = np.zeros(rows, bool)
    values[list(at)] = True
    return values


def save(path, arrays, **attributes):
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file.create_dataset(name, data=value, compression="gzip" if np.ndim(value) else None)
        file.attrs.update(attributes)
    return path


def transitions(episodes):
    """(observation, action, reward, next observation, terminated) of every step, one below the other."""
    rows = [
        (e.observations["state"][:-1], e.actions, e.rewards, e.observations["state"][1:], e.terminated)
        for e in episodes
    ]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def qlearning_rule(arrays, limit=None):
    """What ``d4rl.qlearning_dataset`` gives, row by row.

    Without timeouts it counts on from 1 after a terminal row, one too many; the count here is that of the environment.
    """
    rows, step, kept = len(arrays["rewards"]), 0, []
    for i in range(rows - 1):
        if arrays["timeouts"][i] if "timeouts" in arrays else step == limit - 1:
            step = 0
            continue
        step = 0 if arrays["terminals"][i] else step + 1
        kept.append(i)
    kept = np.array(kept)
    return (
        arrays["observations"][kept],
        arrays["actions"][kept],
        arrays["rewards"][kept],
        arrays["observations"][kept + 1],
        arrays["terminals"][kept],
    )


def test_every_field_of_a_file_with_timeouts(tmp_path):
    arrays = columns(12, terminals=flags(12, 3), timeouts=flags(12, 8))
    arrays |= {
        "metadata/algorithm": np.bytes_("SAC"),
        "metadata/iteration": np.array([7]),
        "metadata/w": np.ones((9, 9)),
    }
    dataset = open_dataset(save(tmp_path / "halfcheetah_medium-v2.hdf5", arrays))
    assert dataset.format == "d4rl"
    assert dataset.attributes == {"algorithm": "SAC", "iteration": [7]}

    first, second, third = list(dataset)

    assert (dataset.episodes, dataset.steps) == (3, len(first) + len(second) + len(third)) == (3, 4 + 4 + 2)
    # Rows 0 to 3 end in a terminal: all steps, and its own observation after the last.
    np.testing.assert_array_equal(first.observations["state"], arrays["observations"][[0, 1, 2, 3, 3]])
    np.testing.assert_array_equal(first.actions, arrays["actions"][:4])
    np.testing.assert_array_equal(first.rewards, arrays["rewards"][:4])
    np.testing.assert_array_equal(first.terminated, [False, False, False, True])
    assert not first.truncated.any()
    np.testing.assert_array_equal(first.extras["infos/qpos"], arrays["infos/qpos"][:4])
    np.testing.assert_array_equal(first.extras["infos/action_log_probs"], arrays["infos/action_log_probs"][:4])
    assert set(first.extras) == {"infos/qpos", "infos/action_log_probs"}
    # Rows 4 to 8 were cut: what followed row 8 is not in the file.
    np.testing.assert_array_equal(second.observations["state"], arrays["observations"][4:9])
    np.testing.assert_array_equal(second.actions, arrays["actions"][4:8])
    np.testing.assert_array_equal(second.truncated, [False, False, False, True])
    assert not second.terminated.any()
    # The file ends without a flag.
    np.testing.assert_array_equal(third.observations["state"], arrays["observations"][9:12])
    assert len(third) == 2
    assert not third.truncated.any()
    assert not third.terminated.any()


@pytest.mark.parametrize("block", [3, 64])
def test_transitions_are_those_of_qlearning_dataset(tmp_path, monkeypatch, block):
    monkeypatch.setattr(d4rl, "BLOCK", block)
    arrays = columns(60, terminals=flags(60, 4, 17, 18, 40), timeouts=flags(60, 10, 30, 50))
    found = transitions(open_dataset(save(tmp_path / "x.hdf5", arrays)))
    expected = qlearning_rule(arrays)
    for name, ours, theirs in zip("oarnd", found, expected, strict=True):
        alive = ~expected[-1] if name == "n" else slice(None)  # what follows a terminal step is never looked at
        np.testing.assert_array_equal(ours[alive], theirs[alive])


@pytest.mark.parametrize("block", [7, 4096])
def test_without_timeouts_steps_are_counted(tmp_path, monkeypatch, block):
    monkeypatch.setattr(d4rl, "BLOCK", block)
    arrays = columns(350, timeouts=None, terminals=flags(350, 20, 130))
    path = save(tmp_path / "pen-demos-v0-bc-combined.hdf5", arrays)
    found, expected = transitions(open_dataset(path)), qlearning_rule(arrays, limit=100)
    for name, ours, theirs in zip("oarnd", found, expected, strict=True):
        alive = ~expected[-1] if name == "n" else slice(None)
        np.testing.assert_array_equal(ours[alive], theirs[alive])
    episodes = list(open_dataset(path))
    assert [len(e) for e in episodes] == [21, 99, 10, 99, 99, 18]
    assert [bool(e.truncated[-1]) for e in episodes] == [False, True, False, True, True, False]
    dataset = open_dataset(path)
    assert (dataset.episodes, dataset.steps) == (6, sum(map(len, episodes)))


def test_an_attribute_names_the_task(tmp_path):
    arrays = columns(150, timeouts=None)
    assert len(list(open_dataset(save(tmp_path / "a.hdf5", arrays, env="pen-human-v1")))) == 2
    with pytest.raises(DatasetError, match="neither 'timeouts' nor 'next_observations'"):
        open_dataset(save(tmp_path / "b.hdf5", arrays))


@pytest.mark.parametrize("timeouts", [True, False])
@pytest.mark.parametrize("block", [4, 64])
def test_next_observations_keep_every_step(tmp_path, monkeypatch, timeouts, block):
    monkeypatch.setattr(d4rl, "BLOCK", block)
    arrays = columns(20, terminals=flags(20, 4))
    following = np.concatenate([arrays["observations"][1:], arrays["observations"][:1]])
    for row in (4, 11, 15, 19):  # the end of an episode: what followed is no row of the file
        following[row] = RNG.normal(size=4)
    arrays["next_observations"] = following
    arrays["timeouts"] = flags(20, 11, 19) if timeouts else None
    dataset = open_dataset(save(tmp_path / "x.hdf5", {k: v for k, v in arrays.items() if v is not None}))
    episodes = list(dataset)
    assert dataset.steps == 20
    assert [len(e) for e in episodes] == [5, 7, 4, 4]
    found = transitions(episodes)
    for ours, name in zip(found, ("observations", "actions", "rewards", "next_observations", "terminals"), strict=True):
        np.testing.assert_array_equal(ours, arrays[name])
    # Row 15 is cut without a flag. Without timeouts the cuts are all that there is; of the end nothing is known.
    cut = [bool(e.truncated[-1]) for e in episodes]
    assert cut == ([False, True, False, True] if timeouts else [False, True, True, False])
    assert sum(e.truncated.sum() for e in episodes) == 2


def test_antmaze_goes_on_after_the_goal(tmp_path):
    arrays = columns(10, terminals=flags(10, 3, 4), timeouts=flags(10, 9))
    dataset = open_dataset(save(tmp_path / "Ant_maze_u-maze_noisy_multistart_False_sparse_fixed.hdf5", arrays))
    episodes = list(dataset)
    assert [len(e) for e in episodes] == [4, 1, 4]
    assert [bool(e.terminated[-1]) for e in episodes] == [True, True, False]
    assert [bool(e.truncated[-1]) for e in episodes] == [False, False, True]
    observations, _, _, following, _ = transitions(episodes)
    np.testing.assert_array_equal(observations, arrays["observations"][:9])
    np.testing.assert_array_equal(following, arrays["observations"][1:])


def test_columns_of_one_and_double_precision(tmp_path):
    arrays = columns(6, timeouts=flags(6, 5))
    wide = {
        name: value[:, None] if name in ("rewards", "terminals", "timeouts") else value
        for name, value in arrays.items()
    }
    wide |= {name: wide[name].astype(np.float64) for name in ("observations", "actions", "rewards")}
    (narrow,) = open_dataset(save(tmp_path / "a.hdf5", arrays))
    (episode,) = open_dataset(save(tmp_path / "b.hdf5", wide))
    assert episode.rewards.shape == (5,)
    for name in ("actions", "rewards", "terminated", "truncated"):
        value = getattr(episode, name)
        np.testing.assert_array_equal(value, getattr(narrow, name))
        assert value.dtype == getattr(narrow, name).dtype


def episode(steps, terminated=False, truncated=False, width=4):
    end = np.arange(steps) == steps - 1
    return Episode(
        {"state": RNG.normal(size=(steps + 1, width)).astype(np.float32)},
        RNG.uniform(-1, 1, size=(steps, 2)).astype(np.float32),
        RNG.normal(size=steps).astype(np.float32),
        end & terminated,
        end & truncated,
        {"infos/qpos": RNG.normal(size=(steps, 3)), "grasp_penalty": RNG.normal(size=steps).astype(np.float32)},
    )


def test_what_is_written_comes_back(tmp_path):
    episodes = [episode(5, terminated=True), episode(1, truncated=True), episode(7), episode(3, terminated=True)]
    attributes = {
        "env": "HalfCheetah-v4",
        "fps": 20.5,
        "state_parts": {"a": 1, "b": 3},
        "names": ["x", "y"],
        "none": None,
    }
    path = tmp_path / "x.hdf5"
    write_dataset(path, episodes, "d4rl", attributes)
    dataset = open_dataset(path)
    assert dataset.attributes == {name: value for name, value in attributes.items() if value is not None}
    back = list(dataset)
    assert [len(e) for e in back] == [5, 1, 7, 3]
    for ours, theirs in zip(back, episodes, strict=True):
        for name in ("actions", "rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("observations", "extras"):
            assert set(getattr(ours, name)) == set(getattr(theirs, name))
            for key, value in getattr(theirs, name).items():
                np.testing.assert_array_equal(getattr(ours, name)[key], value)
                assert getattr(ours, name)[key].dtype == value.dtype


def test_the_file_is_what_d4rl_expects(tmp_path):
    """Names, shapes and dtypes that ``OfflineEnv.get_dataset`` checks, and gzip as in its own files."""
    write_dataset(
        tmp_path / "x.hdf5", [episode(5, terminated=True), episode(4, truncated=True)], "d4rl", {"algorithm": "SAC"}
    )
    with h5py.File(tmp_path / "x.hdf5") as file:
        for name, shape, dtype in (
            ("observations", (9, 4), "f4"), ("next_observations", (9, 4), "f4"), ("actions", (9, 2), "f4"),
            ("rewards", (9,), "f4"), ("terminals", (9,), "?"), ("timeouts", (9,), "?"), ("infos/qpos", (9, 3), "f8"),
        ):  # fmt: skip
            assert (file[name].shape, file[name].dtype, file[name].compression) == (shape, np.dtype(dtype), "gzip")
        np.testing.assert_array_equal(np.flatnonzero(file["terminals"]), [4])
        np.testing.assert_array_equal(np.flatnonzero(file["timeouts"]), [8])
        assert file["metadata/algorithm"][()] == b"SAC"
    d4rl.write(tmp_path / "y.hdf5", [episode(2)], {}, compression=None)
    with h5py.File(tmp_path / "y.hdf5") as file:
        assert file["observations"].compression is None


def test_a_write_that_fails_leaves_nothing(tmp_path):
    pictures = Episode({"front": np.zeros((3, 8, 8, 3), np.uint8)}, *[getattr(episode(2), n) for n in
                       ("actions", "rewards", "terminated", "truncated")])  # fmt: skip
    for episodes, message in (
        ([pictures], "a state alone"),
        ([], "no episodes"),
        ([episode(2), episode(2, width=5)], "episode 1 .*state"),
    ):
        with pytest.raises(DatasetError, match=message):
            write_dataset(tmp_path / "x.hdf5", episodes, "d4rl")
    assert list(tmp_path.iterdir()) == []


def test_options(tmp_path):
    path = save(tmp_path / "x.hdf5", columns(12, timeouts=flags(12, 3, 7, 11)))
    dataset = open_dataset(path, ReadOptions(max_episodes=2, image_keys=()))
    assert len(list(dataset)) == dataset.episodes == 2
    for options in (
        ReadOptions(image_keys=("front",)),
        ReadOptions(filter_key="train"),
        ReadOptions(state_keys=("a",)),
    ):
        with pytest.raises(DatasetError, match="leave out"):
            open_dataset(path, options)


def external(path, name):
    other = path.with_name("other.hdf5")
    shutil.move(path, other)
    with h5py.File(path, "w") as file, h5py.File(other) as source:
        for key in source:
            if key != name:
                source.copy(key, file)
        file[name] = h5py.ExternalLink("other.hdf5", name)


def soft_loop(path, name):
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = h5py.SoftLink("/loop")
        file["loop"] = h5py.SoftLink(f"/{name}")


def hard_loop(path, name):
    with h5py.File(path, "a") as file:
        file["infos/again"] = file["infos"]


def virtual(path, name):
    with h5py.File(path, "a") as file:
        shape = file[name].shape
        del file[name]
        layout = h5py.VirtualLayout(shape, "f4")
        layout[:] = h5py.VirtualSource("elsewhere.hdf5", name, shape)
        file.create_virtual_dataset(name, layout)


def elsewhere(path, name):
    with h5py.File(path, "a") as file:
        shape = file[name].shape
        del file[name]
        file.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def objects(path, name):
    with h5py.File(path, "a") as file:
        rows = len(file[name])
        del file[name]
        file.create_dataset(name, data=["text"] * rows)


def ragged(path, name):
    with h5py.File(path, "a") as file:
        rows = len(file[name])
        del file[name]
        file.create_dataset(name, (rows,), h5py.vlen_dtype(np.uint8))


def huge(path, name):
    with h5py.File(path, "a") as file:
        del file[name]
        file.create_dataset(name, (10**12, 4), "f4", chunks=(1024, 4))


def damaged(path, name):
    with h5py.File(path) as file:
        where = file[name].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[where.byte_offset : where.byte_offset + where.size] = b"\xff" * where.size
    path.write_bytes(content)


def cut_off(path, name):
    path.write_bytes(path.read_bytes()[:-500])


def magic_alone(path, name):
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 200)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (external, "link to elsewhere"),
        (soft_loop, "link to elsewhere"),
        (hard_loop, "without end"),
        (virtual, "other files"),
        (elsewhere, "other files"),
        (objects, "'observations': is missing"),
        (ragged, "'observations': is missing"),
        (huge, "was not written completely"),
        (damaged, "'observations': rows .* can not be read"),
        (cut_off, "can not be opened as HDF5"),
        (magic_alone, "can not be opened as HDF5"),
    ],
)
def test_bad_files(tmp_path, harm, message):
    path = save(tmp_path / "x.hdf5", columns(10, timeouts=flags(10, 9)))
    harm(path, "observations")
    with pytest.raises(DatasetError, match=message) as caught:
        list(open_dataset(path, format="d4rl"))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminals": None}, "'terminals': is missing"),
        ({"rewards": None}, "'rewards': is missing"),
        ({"actions": None}, "'actions': is missing"),
        ({"actions": np.zeros(10, np.int64)}, "'actions': has shape"),
        ({"actions": np.zeros((10, 1), np.int64)}, "discrete"),
        ({"rewards": np.zeros((10, 2))}, "'rewards': has shape"),
        ({"timeouts": np.zeros(9, bool)}, "'timeouts': has shape"),
        ({"observations": np.zeros((10, 8, 8, 3), np.uint8)}, "'observations': has shape"),
        ({"next_observations": np.zeros((10, 5))}, "'next_observations': must have the shape"),
        ({"observations": np.full((10, 4), np.nan)}, "not finite at step 0"),
        ({"observations": np.full((10, 4), 1e300)}, "not finite at step 0"),
        ({"actions": np.zeros((0, 2), np.float32)}, "shape"),
    ],
)
def test_bad_fields(tmp_path, changes, message):
    path = save(tmp_path / "x.hdf5", columns(10, **({"timeouts": flags(10, 9)} | changes)))
    with pytest.raises(DatasetError, match=message) as caught:
        list(open_dataset(path))
    assert str(path) in str(caught.value)


def test_random_damage_is_an_error_or_nothing(tmp_path):
    """Whatever is wrong with a file, only DatasetError comes out."""
    original = save(tmp_path / "x.hdf5", columns(40, timeouts=flags(40, 19, 39))).read_bytes()
    rng = np.random.default_rng(1)
    errors = 0
    for _ in range(150):
        content = bytearray(original)
        for at in rng.integers(8, len(content), rng.integers(1, 6)):
            content[at] = rng.integers(256)
        path = Path(tmp_path / "y.hdf5")
        path.write_bytes(content)
        try:
            list(open_dataset(path, format="d4rl"))
        except DatasetError:
            errors += 1
    assert errors


def test_metadata_that_is_no_json_is_text(tmp_path):
    arrays = columns(4, timeouts=flags(4, 3))
    arrays |= {"metadata/a": np.bytes_("{no"), "metadata/b": np.bytes_(json.dumps({"x": 1}))}
    assert open_dataset(save(tmp_path / "x.hdf5", arrays)).attributes == {"a": "{no", "b": {"x": 1}}
