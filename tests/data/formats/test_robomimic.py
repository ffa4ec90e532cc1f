import json
import os
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

from serl_fast.data.episodes import DatasetError, Episode, ReadOptions
from serl_fast.data.formats import open_dataset, write_dataset

RNG = np.random.default_rng(0)
ENV = {"env_name": "Lift", "env_version": "1.5.1", "type": 1, "env_kwargs": {"robots": "Panda", "control_freq": 20}}
PARTS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
LENGTHS = {"demo_0": 5, "demo_2": 3, "demo_10": 4}
CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def save(path, next_obs=True, cameras=(), arms=1, done_mode=2, **names):
    """A file as robomimic's dataset_states_to_obs.py writes it: doubles, a step's obs and the next one's, masks."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for demo, steps in reversed(LENGTHS.items()):
            group = data.create_group(demo)
            parts = dict(PARTS)
            if arms == 2:
                parts |= {"robot1_eef_pos": 3, "robot1_eef_quat": 4, "robot1_gripper_qpos": 2}
            parts |= {"robot0_joint_pos": 7}
            values = {name: RNG.normal(size=(steps + 1, width)) for name, width in parts.items()}
            values |= {name: RNG.integers(0, 256, (steps + 1, 16, 16, 3), np.uint8) for name in cameras}
            for name, value in values.items():
                group.create_dataset(f"obs/{name}", data=value[:-1])
                if next_obs:
                    group.create_dataset(f"next_obs/{name}", data=value[1:])
            group.create_dataset("actions", data=RNG.uniform(-1, 1, size=(steps, 7 * arms)))
            rewards = np.zeros(steps)
            rewards[-2:] = 1
            group.create_dataset("rewards", data=rewards)
            group.create_dataset("dones", data=(rewards * (done_mode == 2)).astype(np.int64))
            group.create_dataset("states", data=RNG.normal(size=(steps, 32)))
            group.create_dataset("action_dict/rel_pos", data=RNG.normal(size=(steps, 3)))
            group.attrs["num_samples"] = steps
            group.attrs["model_file"] = "<mujoco>" + "x" * 100_000
        data.attrs["total"] = sum(LENGTHS.values())
        data.attrs["env_args"] = json.dumps(ENV, indent=4)
        file["mask/train"] = np.array([b"demo_10", b"demo_0"])
        file["mask/valid"] = np.array([b"demo_2"])
        file["mask/better"] = np.array([b"demo_0"])
    return path


@pytest.mark.parametrize("next_obs", [True, False])
def test_every_field_of_a_low_dimensional_file(tmp_path, next_obs):
    path = save(tmp_path / "low_dim_v15.hdf5", next_obs)
    dataset = open_dataset(path)
    assert dataset.format == "robomimic"
    assert dataset.attributes == {
        "env_args": ENV,
        "env": "Lift",
        "state_parts": PARTS,
        "filter_keys": ["better", "train", "valid"],
    }
    episodes = list(dataset)
    assert dataset.steps == sum(map(len, episodes)) == 12 - 3 * (not next_obs)
    # Every step in the goal is done, the last two of each demonstration.
    assert [e.name for e in episodes if "from" not in e.name] == ["data/demo_0", "data/demo_2", "data/demo_10"]
    assert [len(e) for e in episodes] == ([4, 1, 2, 1, 3, 1] if next_obs else [4, 2, 3])
    with h5py.File(path) as file:
        for demo, steps in LENGTHS.items():
            group, kept = file["data"][demo], steps - (not next_obs)
            own = [e for e in episodes if e.attributes["demo"] == demo]
            state, after = (
                np.concatenate([group[obs][name][:] for name in PARTS], 1)[:kept].astype(np.float32)
                for obs in ("obs", "next_obs" if next_obs else "obs")
            )
            found = np.concatenate([e.observations["state"][:-1] for e in own])
            np.testing.assert_array_equal(found, state)
            found = np.concatenate([e.observations["state"][1:] for e in own])
            if next_obs:
                np.testing.assert_array_equal(found, after)
            else:
                np.testing.assert_array_equal(found[:-1], state[1:])
            for name, key in (("actions", "actions"), ("rewards", "rewards"), ("terminated", "dones")):
                found = np.concatenate([getattr(e, name) for e in own])
                np.testing.assert_array_equal(found, group[key][:kept].astype(found.dtype))
            assert not any(e.truncated.any() for e in own)
            for name in ("states", "action_dict/rel_pos"):
                np.testing.assert_array_equal(np.concatenate([e.extras[name] for e in own]), group[name][:kept])
            assert set(own[0].extras) == {"states", "action_dict/rel_pos"}
            assert len(own[0].attributes["model_file"]) == 100_008
    assert [e.attributes["split"] for e in episodes if "from" not in e.name] == [["better", "train"], "valid", "train"]


def test_demonstrations_that_are_never_done_are_truncated(tmp_path):
    episodes = list(open_dataset(save(tmp_path / "x.hdf5", done_mode=0)))
    assert [len(e) for e in episodes] == [5, 3, 4]
    for episode in episodes:
        assert not episode.terminated.any()
        np.testing.assert_array_equal(np.flatnonzero(episode.truncated), [len(episode) - 1])


def test_images(tmp_path):
    path = save(tmp_path / "image_v15.hdf5", cameras=CAMERAS, done_mode=0)
    with h5py.File(path) as file:
        for episode in open_dataset(path):
            group = file[episode.name]
            for name in CAMERAS:
                expected = np.concatenate([group["obs"][name][:], group["next_obs"][name][-1:]])
                np.testing.assert_array_equal(episode.observations[name], expected)
            assert set(episode.observations) == {"state", *CAMERAS}
    options = ReadOptions(image_keys=CAMERAS[1:], image_size=(8, 4), state_keys=("robot0_joint_pos", "object"))
    dataset = open_dataset(path, options)
    small = next(iter(dataset))
    assert dataset.attributes["state_parts"] == {"robot0_joint_pos": 7, "object": 10}
    assert small.observations["robot0_eye_in_hand_image"].shape == (6, 8, 4, 3)
    assert small.observations["state"].shape == (6, 17)
    assert set(small.observations) == {"state", "robot0_eye_in_hand_image"}
    assert set(next(iter(open_dataset(path, ReadOptions(image_keys=())))).observations) == {"state"}


def test_two_arms(tmp_path):
    dataset = open_dataset(save(tmp_path / "x.hdf5", arms=2))
    assert list(dataset.attributes["state_parts"]) == [
        "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos",
        "robot1_eef_pos", "robot1_eef_quat", "robot1_gripper_qpos", "object",
    ]  # fmt: skip
    assert next(iter(dataset)).observations["state"].shape[1] == 28


def test_selections(tmp_path):
    path = save(tmp_path / "x.hdf5", done_mode=0)
    names = lambda **options: [e.name for e in open_dataset(path, ReadOptions(**options))]  # noqa: E731
    assert names(filter_key="train") == ["data/demo_0", "data/demo_10"]
    assert names(filter_key="valid") == ["data/demo_2"]
    assert names(max_episodes=2) == ["data/demo_0", "data/demo_2"]
    with pytest.raises(DatasetError, match=r"no selection 'mask/test'; it has better, train, valid"):
        names(filter_key="test")
    for options, message in (
        ({"image_keys": ("front",)}, "no camera 'obs/front'; it has none"),
        ({"state_keys": ("speed",)}, "no array 'obs/speed'"),
    ):
        with pytest.raises(DatasetError, match=message):
            names(**options)


def test_a_file_without_the_usual_keys(tmp_path):
    path = save(tmp_path / "x.hdf5", done_mode=0)
    with h5py.File(path, "a") as file:
        for group in file["data"].values():
            for obs in ("obs", "next_obs"):
                for name in PARTS:
                    group[obs].move(name, f"my_{name}")
    assert list(open_dataset(path).attributes["state_parts"]) == sorted(
        ["robot0_joint_pos", *(f"my_{n}" for n in PARTS)]
    )


def episode(steps, terminated=False, truncated=False, **attributes):
    end = np.arange(steps) == steps - 1
    return Episode(
        {
            "state": RNG.normal(size=(steps + 1, 19)).astype(np.float32),
            "front": RNG.integers(0, 256, (steps + 1, 16, 16, 3), np.uint8),
        },
        RNG.uniform(-1, 1, size=(steps, 7)).astype(np.float32),
        RNG.normal(size=steps).astype(np.float32),
        end & terminated,
        end & truncated,
        {"states": RNG.normal(size=(steps, 32)), "grasp_penalty": RNG.normal(size=steps).astype(np.float32)},
        attributes=attributes,
    )


def same(ours, theirs):
    for name in ("actions", "rewards", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype
    for name in ("observations", "extras"):
        assert set(getattr(ours, name)) == set(getattr(theirs, name))
        for key, value in getattr(theirs, name).items():
            np.testing.assert_array_equal(getattr(ours, name)[key], value)
            assert getattr(ours, name)[key].dtype == value.dtype


ATTRIBUTES = {"env_args": ENV, "env": "Lift", "fps": 20.0, "state_parts": PARTS, "task": {"goal": [1, 2]}}


def written(path, attributes=ATTRIBUTES):
    episodes = [
        episode(5, terminated=True, seed=3, split="train", tags=["a"]),
        episode(1, truncated=True, split=["train", "better"]),
        *(episode(2) for _ in range(9)),
    ]
    write_dataset(path, episodes, "robomimic", attributes)
    return episodes


@pytest.mark.parametrize("parts", [True, False])
def test_what_is_written_comes_back(tmp_path, parts):
    attributes = {key: value for key, value in ATTRIBUTES.items() if parts or key != "state_parts"}
    episodes = written(tmp_path / "x.hdf5", attributes)
    dataset = open_dataset(tmp_path / "x.hdf5")
    assert dataset.attributes == {"state_parts": {"state": 19}, **attributes, "filter_keys": ["better", "train"]}
    back = list(dataset)
    for ours, theirs in zip(back, episodes, strict=True):
        same(ours, theirs)
    assert back[0].attributes == {"seed": 3, "split": "train", "tags": ["a"], "demo": "demo_0"}
    assert sorted(back[1].attributes["split"]) == ["better", "train"]
    assert [e.attributes["demo"] for e in back] == [f"demo_{i}" for i in range(11)]


def test_conversion_of_a_file_of_robomimics_gives_its_arrays_again(tmp_path):
    """The steps in the goal, which are episodes of their own here, are one demonstration again."""
    original = save(tmp_path / "x.hdf5", cameras=CAMERAS)
    keys = tuple([*PARTS, "robot0_joint_pos"])
    dataset = open_dataset(original, ReadOptions(state_keys=keys))
    write_dataset(tmp_path / "y.hdf5", dataset, "robomimic", dataset.attributes)
    with h5py.File(original) as old, h5py.File(tmp_path / "y.hdf5") as new:
        assert set(new["data"]) == {"demo_0", "demo_1", "demo_2"}
        for number, demo in enumerate(LENGTHS):
            theirs, ours = old["data"][demo], new[f"data/demo_{number}"]
            names = []
            theirs.visititems(lambda name, item, names=names: isinstance(item, h5py.Dataset) and names.append(name))
            for name in names:
                exact = theirs[name].dtype.kind != "f" or name in ("states", "action_dict/rel_pos")
                np.testing.assert_array_equal(ours[name][:], theirs[name][:] if exact else theirs[name][:].astype("f4"))
            assert dict(ours.attrs) == dict(theirs.attrs)
        assert json.loads(new["data"].attrs["env_args"]) == ENV
        assert new["data"].attrs["total"] == 12
        assert [name.decode() for name in new["mask/train"]] == ["demo_0", "demo_2"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    for attributes, episodes, message in (
        ({"state_parts": {"a": 3}}, [episode(2)], "do not make it up"),
        ({}, [], "no episodes"),
        ({}, [episode(2), replace(episode(2), rewards=np.zeros(3, np.float32))], "rewards"),
    ):
        with pytest.raises(DatasetError, match=message):
            write_dataset(tmp_path / "x.hdf5", episodes, "robomimic", attributes)
    assert list(tmp_path.iterdir()) == []


LOADER = """
import sys
import numpy as np
import robomimic.utils.obs_utils as observations
from robomimic.utils.dataset import SequenceDataset

path, expected = sys.argv[1], np.load(sys.argv[2])
keys = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
observations.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": keys, "rgb": ["front"]}})
for mode in (None, "low_dim"):
    data = SequenceDataset(path, obs_keys=keys + ["front"], dataset_keys=("actions", "rewards", "dones"), frame_stack=1,
                           seq_length=1, hdf5_cache_mode=mode, hdf5_use_swmr=False, load_next_obs=True)
    assert len(data) == len(expected["actions"]), len(data)
    for i in range(len(data)):
        item = data[i]
        for name in ("actions", "rewards", "dones"):
            np.testing.assert_array_equal(np.ravel(item[name]), np.ravel(expected[name][i]))
        for part in ("obs", "next_obs"):
            state = np.concatenate([np.ravel(item[part][key]) for key in keys])
            np.testing.assert_array_equal(state, expected[part + "/state"][i])
            np.testing.assert_array_equal(item[part]["front"][0], expected[part + "/front"][i])
train = SequenceDataset(path, keys, ("actions",), hdf5_use_swmr=False, filter_by_attribute="train")
assert train.demos == ["demo_0", "demo_1"], train.demos
"""


def test_robomimics_own_loader_reads_it(tmp_path):
    """Needs an interpreter with robomimic: SERL_FAST_ROBOMIMIC_PYTHON, or this one."""
    python = os.environ.get("SERL_FAST_ROBOMIMIC_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import robomimic.utils.dataset"], capture_output=True).returncode:
        pytest.skip("robomimic is not installed; name an interpreter that has it in SERL_FAST_ROBOMIMIC_PYTHON")
    episodes = written(tmp_path / "x.hdf5")
    np.savez(
        tmp_path / "expected.npz",
        actions=np.concatenate([e.actions for e in episodes]),
        rewards=np.concatenate([e.rewards for e in episodes]),
        dones=np.concatenate([e.terminated for e in episodes]),
        **{f"obs/{key}": np.concatenate([e.observations[key][:-1] for e in episodes]) for key in ("state", "front")},
        **{
            f"next_obs/{key}": np.concatenate([e.observations[key][1:] for e in episodes]) for key in ("state", "front")
        },
    )
    command = [python, "-c", LOADER, str(tmp_path / "x.hdf5"), str(tmp_path / "expected.npz")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def edit(change):
    def harm(path):
        with h5py.File(path, "a") as file:
            change(file)

    return harm


def remove(name):
    return edit(lambda file: file.__delitem__(name))


def put(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return edit(change)


def external(file):
    del file["data/demo_0/obs"]
    file["data/demo_0/obs"] = h5py.ExternalLink("elsewhere.hdf5", "/obs")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove("data/demo_2/actions"), "data/demo_2, field 'actions': is missing"),
        (remove("data/demo_2/rewards"), "field 'rewards': is missing"),
        (remove("data/demo_2/dones"), "field 'dones': is missing"),
        (remove("data/demo_2/obs/object"), "data/demo_2, field 'obs/object': is missing"),
        (remove("data/demo_2/next_obs/object"), "field 'next_obs/object': is missing"),
        (remove("data/demo_0/obs"), "dataset_states_to_obs"),
        (put("data/demo_2/actions", np.zeros((2, 7))), r"demo_2/actions': has shape \(2, 7\); accepted: \(3, ...\)"),
        (put("data/demo_2/actions", np.zeros((3, 7), int)), "accepted: floating point"),
        (put("data/demo_2/actions", ["a"] * 3), "'actions': is missing"),
        (put("data/demo_2/obs/object", np.full((3, 10), np.nan)), "is not what 'obs/object' has|not finite"),
        (put("data/demo_2/next_obs/object", np.zeros((3, 10))), "is not what 'obs/object' has in the row after"),
        (edit(lambda file: file["data/demo_2"].attrs.__delitem__("num_samples")), "'num_samples' is None"),
        (edit(lambda file: file["data/demo_2"].attrs.__setitem__("num_samples", 10**15)), "'num_samples'|accepted"),
        (edit(lambda file: file["data"].attrs.__setitem__("env_args", "{")), "'env_args' is no JSON"),
        (edit(lambda file: [file["data"].__delitem__(d) for d in LENGTHS]), "no demonstrations"),
        (edit(external), "link to elsewhere"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "can not be opened as HDF5"),
    ],
)
def test_bad_files(tmp_path, harm, message):
    path = save(tmp_path / "x.hdf5")
    harm(path)
    with pytest.raises(DatasetError, match=message) as caught:
        list(open_dataset(path, format="robomimic"))
    assert str(path) in str(caught.value)


def test_a_selection_of_what_is_not_there(tmp_path):
    path = save(tmp_path / "x.hdf5")
    put("mask/train", np.array([b"demo_99"]))(path)
    with pytest.raises(DatasetError, match="'mask/train' names demo_99"):
        open_dataset(path, ReadOptions(filter_key="train"))


def test_random_damage_is_an_error_or_nothing(tmp_path):
    path = save(tmp_path / "x.hdf5")
    original = path.read_bytes()
    rng = np.random.default_rng(1)
    errors = 0
    for _ in range(40):
        content = bytearray(original)
        for at in rng.integers(8, len(content), 40):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            list(open_dataset(path, format="robomimic"))
        except DatasetError:
            errors += 1
    assert errors
