import json

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from serl_fast.data.episodes import DatasetError, ReadOptions
from serl_fast.data.formats import open_dataset
from serl_fast.envs.make import FlatObservations

pytestmark = pytest.mark.filterwarnings("ignore:.*(is set to None|env_spec is None)")
RNG = np.random.default_rng(0)
FORMATS = ("hdf5", "arrow", "parquet")
ACTION = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (40, 48, 3), np.uint8)
DICT = spaces.Dict(
    {
        "zeta": spaces.Box(-np.inf, np.inf, (3,), np.float64),
        "alpha": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
        "count": spaces.Discrete(5),
        "front": IMAGE,
        "map": spaces.Box(0, 255, (4, 4, 1), np.uint8),  # too small for a JPEG
        "inner": spaces.Dict({"depth": spaces.Box(-1, 1, (2,), np.float32)}),
    }
)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def smooth(rows, shape):
    """Images that JPEG keeps nearly as they are."""
    ramp = np.linspace(0, 200, shape[0])[:, None, None] + np.zeros(shape)
    return (ramp + RNG.uniform(0, 50, (rows, 1, 1, 1))).astype(np.uint8)


def sample(space, rows):
    if isinstance(space, spaces.Dict):
        return {name: sample(part, rows) for name, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(sample(part, rows) for part in space)
    if isinstance(space, spaces.Discrete):
        return RNG.integers(0, space.n, rows)
    if space.dtype == np.uint8:
        return (
            smooth(rows, space.shape) if len(space.shape) == 3 else RNG.integers(0, 256, (rows, *space.shape), np.uint8)
        )
    return RNG.uniform(-1, 1, (rows, *space.shape)).astype(space.dtype)


def buffers(observation, action=ACTION, lengths=(4, 6, 3)):
    made = []
    for index, steps in enumerate(lengths):
        end = np.arange(steps) == steps - 1
        made.append(
            EpisodeBuffer(
                id=index,
                seed=10 + index,
                options={"level": index},
                observations=sample(observation, steps + 1),
                actions=sample(action, steps),
                rewards=RNG.normal(size=steps).tolist(),
                terminations=(end & (index == 0)).tolist(),
                truncations=(end & (index == 1)).tolist(),
                infos={
                    "qpos": RNG.normal(size=(steps + 1, 3)),
                    "inner": {"speed": RNG.normal(size=(steps + 1, 2))},
                    "success": [bool(i % 2) for i in range(steps + 1)],
                    "text": ["a"] * (steps + 1),
                },
            )
        )
    return made


def create(observation, data_format, name="test/x-v0", action=ACTION, **changes):
    made = buffers(observation, action)
    minari.create_dataset_from_buffers(
        name, made, observation_space=observation, action_space=action, data_format=data_format,
        algorithm_name="SAC", **changes,
    )  # fmt: skip
    return made


@pytest.mark.parametrize("data_format", FORMATS)
def test_every_field_is_that_of_minaris_own_loader(root, data_format):
    space = spaces.Box(-np.inf, np.inf, (5,), np.float64)
    made = create(space, data_format)
    dataset = open_dataset(root / "test" / "x-v0")
    assert (dataset.format, dataset.episodes, dataset.steps) == ("minari", 3, 13)
    assert dataset.attributes["dataset_id"] == "test/x-v0"
    assert dataset.attributes["algorithm_name"] == "SAC"
    assert dataset.attributes["state_parts"] == {"state": 5}
    json.dumps(dataset.attributes)

    episodes = list(dataset)

    theirs = list(minari.load_dataset("test/x-v0").iterate_episodes())
    for episode, expected, buffer in zip(episodes, theirs, made, strict=True):
        np.testing.assert_array_equal(episode.observations["state"], expected.observations.astype(np.float32))
        np.testing.assert_array_equal(episode.actions, expected.actions)
        np.testing.assert_array_equal(episode.rewards, expected.rewards.astype(np.float32))
        np.testing.assert_array_equal(episode.terminated, expected.terminations)
        np.testing.assert_array_equal(episode.truncated, expected.truncations)
        # A step's own information is that of the row after it.
        np.testing.assert_array_equal(episode.extras["infos/qpos"], buffer.infos["qpos"][1:])
        np.testing.assert_array_equal(episode.extras["infos/inner/speed"], buffer.infos["inner"]["speed"][1:])
        np.testing.assert_array_equal(episode.extras["infos/success"], buffer.infos["success"][1:])
        assert set(episode.extras) == {"infos/qpos", "infos/inner/speed", "infos/success"}
        assert episode.attributes["seed"] == buffer.seed
        assert episode.attributes["id"] == buffer.id
        json.dumps(episode.attributes)
    assert [bool(e.terminated[-1]) for e in episodes] == [True, False, False]
    assert [bool(e.truncated[-1]) for e in episodes] == [False, True, False]


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("jpeg", [True, False])
def test_dicts_are_flattened_as_environments_are(root, data_format, jpeg):
    made = create(DICT, data_format, jpeg_encoding=jpeg)
    dataset = open_dataset(root / "test/x-v0/data")
    assert dataset.attributes["state_parts"] == {"alpha": 4, "zeta": 3}

    flat = FlatObservations(minimal(DICT), ("front", "map"))
    for episode, buffer in zip(dataset, made, strict=True):
        assert set(episode.observations) == {"state", "front", "map"}
        for row in range(len(episode) + 1):
            expected = flat.observation({name: take(value, row) for name, value in buffer.observations.items()})
            np.testing.assert_array_equal(episode.observations["state"][row], expected["state"])
            np.testing.assert_array_equal(episode.observations["map"][row], expected["map"])
            apart = np.abs(episode.observations["front"][row].astype(int) - expected["front"]).max()
            assert apart <= (6 if jpeg else 0)
    theirs = next(minari.load_dataset("test/x-v0").iterate_episodes()).observations["front"]
    np.testing.assert_array_equal(next(iter(dataset)).observations["front"], theirs)


def take(value, row):
    return {name: part[row] for name, part in value.items()} if isinstance(value, dict) else value[row]


def minimal(space):
    class Env(gymnasium.Env):
        observation_space = space
        action_space = ACTION

    return Env()


@pytest.mark.parametrize("data_format", FORMATS)
def test_tuples_and_images_alone(root, data_format):
    pair = spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32)] * 11 + [IMAGE])
    made = create(pair, data_format)
    for episode, buffer in zip(open_dataset(root / "test/x-v0"), made, strict=True):
        np.testing.assert_array_equal(episode.observations["state"], np.concatenate(buffer.observations[:11], 1))
        assert set(episode.observations) == {"state", "11"}
    made = create(IMAGE, data_format, "test/y-v0", jpeg_encoding=False)
    for episode, buffer in zip(open_dataset(root / "test/y-v0"), made, strict=True):
        assert set(episode.observations) == {"image"}
        np.testing.assert_array_equal(episode.observations["image"], buffer.observations)


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_state_within_is_the_state(root, data_format):
    inner = spaces.Dict({"b": spaces.Box(-1, 1, (1,), np.float32), "a": spaces.Box(-1, 1, (2,), np.float32)})
    space = spaces.Dict({"state": inner, "other": spaces.Box(-1, 1, (3,), np.float32)})
    made = create(space, data_format)
    for episode, buffer in zip(open_dataset(root / "test/x-v0"), made, strict=True):
        state = buffer.observations["state"]
        np.testing.assert_array_equal(episode.observations["state"], np.concatenate([state["a"], state["b"]], 1))


def test_the_order_of_names_does_not_matter(root):
    create(DICT, "hdf5")
    before = [e.observations["state"] for e in open_dataset(root / "test/x-v0")]
    space = json.loads(minari.serialization.serialize_space(DICT))
    space["subspaces"] = dict(reversed(space["subspaces"].items()))
    change(root / "test/x-v0/data", observation_space=json.dumps(space))
    dataset = open_dataset(root / "test/x-v0")
    assert dataset.attributes["state_parts"] == {"alpha": 4, "zeta": 3}
    for ours, expected in zip(dataset, before, strict=True):
        np.testing.assert_array_equal(ours.observations["state"], expected)


def test_the_environment_is_named(root):
    space = spaces.Box(-1, 1, (3,), np.float32)
    action = spaces.Box(-2, 2, (1,), np.float32)
    minari.create_dataset_from_buffers("test/x-v0", buffers(space, action), env="Pendulum-v1")
    attributes = open_dataset(root / "test/x-v0").attributes
    assert (attributes["env"], attributes["env_spec"]["max_episode_steps"]) == ("Pendulum-v1", 200)


def test_options(root):
    made = create(DICT, "hdf5")
    path = root / "test/x-v0"
    options = ReadOptions(("front",), (20, 24), ("zeta", "inner/depth"), max_episodes=1)
    dataset = open_dataset(path, options)
    (episode,) = dataset
    assert (dataset.episodes, dataset.steps) == (1, None)
    assert episode.observations["front"].shape == (5, 20, 24, 3)
    expected = np.concatenate([made[0].observations["zeta"], made[0].observations["inner"]["depth"]], 1)
    np.testing.assert_array_equal(episode.observations["state"], expected.astype(np.float32))
    for bad, message in (
        (ReadOptions(image_keys=("back",)), "no camera 'back'; they have front, map"),
        (ReadOptions(state_keys=("count",)), "no vector 'count'"),
        (ReadOptions(filter_key="train"), "leave out filter_key"),
    ):
        with pytest.raises(DatasetError, match=message):
            open_dataset(path, bad)


@pytest.mark.parametrize("action", [spaces.Discrete(3), spaces.MultiDiscrete([2, 2]), spaces.Dict({"a": ACTION})])
def test_other_actions_are_refused(root, action):
    space = spaces.Box(-1, 1, (2,), np.float32)
    made = buffers(space, spaces.Discrete(2)) if not isinstance(action, spaces.Dict) else buffers(space, action)
    if isinstance(action, spaces.MultiDiscrete):
        for buffer in made:
            object.__setattr__(buffer, "actions", np.zeros((len(buffer.rewards), 2), np.int64))
    minari.create_dataset_from_buffers("test/x-v0", made, observation_space=space, action_space=action)
    with pytest.raises(DatasetError, match=r"the action space is .*; accepted: one Box of floating point"):
        open_dataset(root / "test/x-v0")


@pytest.mark.parametrize("data_format", FORMATS)
def test_an_episode_that_goes_on_after_an_end(root, data_format):
    space = spaces.Box(-1, 1, (2,), np.float32)
    (buffer,) = buffers(space, lengths=(5,))
    buffer.terminations[2] = True
    minari.create_dataset_from_buffers(
        "test/x-v0", [buffer], observation_space=space, action_space=ACTION, data_format=data_format
    )
    first, second = open_dataset(root / "test/x-v0")
    assert (len(first), len(second)) == (3, 2)
    np.testing.assert_array_equal(first.observations["state"], buffer.observations[:4])
    np.testing.assert_array_equal(second.observations["state"], buffer.observations[3:])


def change(folder, **values):
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in metadata.items() if value is not None}))


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.suffix in (".hdf5", ".arrow", ".parquet"))


def cut_off(folder):
    path = files(folder)[-1]
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])


def empty(folder):
    files(folder)[-1].write_bytes(b"")


def gone(folder):
    files(folder)[-1].unlink()


def more_episodes(folder):
    change(folder, total_episodes=4)


def other_shape(folder):
    change(folder, observation_space=minari.serialization.serialize_space(spaces.Box(-1, 1, (3,), np.float32)))


def other_fields(folder):
    space = spaces.Dict({"a": spaces.Box(-1, 1, (3,), np.float32)})
    change(folder, observation_space=minari.serialization.serialize_space(space))


def not_jpeg(folder):
    change(folder, observation_space=minari.serialization.serialize_space(IMAGE), jpeg_encoding=True)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut_off, "can not be (opened|read)"),
        (empty, "can not be (opened|read)"),
        (gone, "(is not there|has no .* file)"),
        (more_episodes, "(is missing or empty|has no .* file)"),
        (other_shape, r"the metadata say float32 \(., 3\)"),
        (other_fields, "(is missing|can not be read)"),
        (not_jpeg, "(can not be decoded|metadata say|is missing)"),
        (lambda f: change(f, data_format="zarr"), "data_format is 'zarr'"),
        (lambda f: change(f, total_episodes=-1), "total_episodes is -1"),
        (lambda f: change(f, action_space=None), "has no action_space"),
        (lambda f: change(f, action_space="{"), "is no JSON"),
        (lambda f: change(f, action_space='{"type": "Box"}'), "action_space can not be understood: KeyError"),
        (
            lambda f: change(f, action_space='{"type": "Box", "shape": [2], "dtype": "object"}'),
            "action space is Box object",
        ),
        (lambda f: (f / "metadata.json").write_text("[]"), "holds list"),
        (lambda f: (f / "metadata.json").write_bytes(b"\xff\xfe"), "can not be read"),
    ],
)
def test_bad_data(root, data_format, harm, message):
    create(spaces.Box(-1, 1, (2,), np.float32), data_format)
    harm(root / "test/x-v0/data")
    with pytest.raises(DatasetError, match=message) as caught:
        list(open_dataset(root / "test/x-v0", format="minari"))
    assert "test/x-v0" in str(caught.value)


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_jpeg_of_another_size(root, data_format):
    create(IMAGE, data_format)
    other = spaces.Box(0, 255, (4000, 4000, 3), np.uint8)
    metadata = minari.serialization.serialize_space(IMAGE).replace("[40, 48, 3]", "[4000, 4000, 3]")
    assert other.shape == (4000, 4000, 3)
    assert "4000" in metadata
    change(root / "test/x-v0/data", observation_space=metadata)
    with pytest.raises(DatasetError, match="image 0 is 40 x 48 px; expected 4000 x 4000"):
        list(open_dataset(root / "test/x-v0"))


def test_given_the_file_itself(root):
    create(spaces.Box(-1, 1, (2,), np.float32), "hdf5")
    assert len(list(open_dataset(root / "test/x-v0/data/main_data.hdf5"))) == 3
    with pytest.raises(DatasetError, match=r"has no metadata\.json"):
        open_dataset(root, format="minari")


@pytest.mark.parametrize("data_format", FORMATS)
def test_random_damage_is_an_error_or_nothing(root, data_format):
    create(spaces.Dict({"front": IMAGE, "x": spaces.Box(-1, 1, (2,), np.float32)}), data_format)
    path = files(root / "test/x-v0")[0]
    original = path.read_bytes()
    rng = np.random.default_rng(1)
    errors = 0
    for _ in range(60):
        content = bytearray(original)
        for at in rng.integers(0, len(content), rng.integers(1, 20)):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        try:
            list(open_dataset(root / "test/x-v0"))
        except DatasetError:
            errors += 1
    assert errors


def test_rewards_that_are_no_numbers(root):
    create(spaces.Box(-1, 1, (2,), np.float32), "hdf5")
    with h5py.File(root / "test/x-v0/data/main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
        rewards = file["episode_1"].create_dataset("rewards", (6,), h5py.vlen_dtype(np.uint8))
        for row in range(6):
            rewards[row] = np.arange(row, dtype=np.uint8)
    with pytest.raises(DatasetError, match=r"episode_1, field 'rewards': is object \(6,\)"):
        list(open_dataset(root / "test/x-v0"))


def test_a_link_in_an_episode_is_refused(root):
    create(spaces.Box(-1, 1, (2,), np.float32), "hdf5")
    with h5py.File(root / "test/x-v0/data/main_data.hdf5", "a") as file:
        del file["episode_1"]
        file["episode_1"] = h5py.ExternalLink("elsewhere.hdf5", "/")
    with pytest.raises(DatasetError, match=r"episode_1.* link to elsewhere"):
        list(open_dataset(root / "test/x-v0"))
