"""The cache holds what it says: every frame's crops, encoded once, in lock step with the store of images."""

import numpy as np
import pytest
import torch

from serl_fast.data import feature_cache
from serl_fast.data.feature_cache import CropEncoder, FeatureCache, describe
from serl_fast.kernels.random_crop import random_crop
from serl_fast.replay import ReplayStore

SIDE, PADDING = 12, 2
SHAPES = {"front": (SIDE, SIDE, 3), "wrist": (SIDE, SIDE, 3)}


class Identity:
    """A trunk whose features are the image itself, so that crops can be read off; counts images."""

    def __init__(self):
        self.images = 0

    def __call__(self, images):
        self.images += sum(len(image) for image in images.values())
        return {key: image.float() for key, image in images.items()}


def make(crops=3, precision="float32", encode=None, **changes):
    return CropEncoder(encode or Identity(), SHAPES, crops, padding=PADDING, precision=precision, **changes)


def observe(random):
    images = {key: random.integers(256, size=shape, dtype=np.uint8) for key, shape in SHAPES.items()}
    return {"state": random.normal(size=3).astype(np.float32), **images}


def episodes(lengths, seed=0):
    """(transition, continues) of episodes; the last step of each but the last ends it."""
    random = np.random.default_rng(seed)
    for number, length in enumerate(lengths):
        observation = observe(random)
        for step in range(length):
            following = observe(random)
            ends = step == length - 1 and number < len(lengths) - 1
            transition = {
                "observations": observation,
                "next_observations": following,
                "actions": random.normal(size=2).astype(np.float32),
                "rewards": np.float32(random.normal()),
                "terminated": ends and number % 2 == 0,
                "truncated": ends and number % 2 == 1,
                "grasp_penalty": np.float32(0.5),
            }
            yield transition, step > 0
            observation = following


def empty_store(capacity=100):
    (first, _) = next(episodes([1]))
    return ReplayStore.from_example(first, capacity, seed=7)


def offset_of(image, crop):
    """The offset at which ``crop`` was taken from ``image``."""
    for y in range(2 * PADDING + 1):
        for x in range(2 * PADDING + 1):
            candidate = random_crop(torch.from_numpy(image)[None], torch.tensor([[y, x]]), PADDING)[0]
            if np.array_equal(candidate.numpy(), crop):
                return y, x
    raise AssertionError("this is no crop of the image")


def everything(store):
    return store.batch_at(np.arange(len(store)))


def assert_features_are_crops_of(images, features, crops):
    """Every camera at the same offsets, which differ; a frame has the same crops wherever it stands."""
    seen = {}
    for part in ("observations", "next_observations"):
        for row in range(len(images["rewards"])):
            offsets = {
                key: [offset_of(images[part][key][row], crop) for crop in features[part][key][row]] for key in SHAPES
            }
            assert offsets["front"] == offsets["wrist"]
            assert len(set(offsets["front"])) == crops
            frame = images[part]["front"][row].tobytes()
            assert seen.setdefault(frame, offsets["front"]) == offsets["front"]
    assert len({tuple(offsets) for offsets in seen.values()}) > len(seen) / 2  # drawn anew for every frame


def test_appending_encodes_each_new_frame_once_and_keeps_lock_step():
    encode = Identity()
    cache = FeatureCache(empty_store(), make(encode=encode))
    encode.images = 0
    for transition, continues in episodes([3, 1, 4]):
        cache.append(transition, continues)
    frames = (3 + 1) + (1 + 1) + (4 + 1)
    assert encode.images == frames * 3 * len(SHAPES)
    images, features = everything(cache.store), everything(cache.features)
    for name in ("actions", "rewards", "terminated", "truncated", "grasp_penalty"):
        assert np.array_equal(images[name], features[name])
    assert np.array_equal(images["observations"]["state"], features["observations"]["state"])
    assert_features_are_crops_of(images, features, 3)
    lengths = [[len(episode) for episode in store.episodes()] for store in (cache.store, cache.features)]
    assert lengths == [[3, 1, 4], [3, 1, 4]]


def test_a_frame_that_two_stores_get_is_encoded_once():
    encode = Identity()
    encoder = make(encode=encode)
    online, interventions = (FeatureCache(empty_store(), encoder) for _ in range(2))
    encode.images = 0
    for step, (transition, continues) in enumerate(episodes([5])):
        online.append(transition, continues)
        if step >= 2:
            interventions.append(transition, step > 2)
    assert encode.images == 6 * 3 * len(SHAPES)
    mine, theirs = everything(online.features), everything(interventions.features)
    assert np.array_equal(mine["observations"]["front"][2:], theirs["observations"]["front"])


def test_a_frame_in_memory_that_is_written_again_is_another_frame():
    encoder = make()
    (transition, _) = next(episodes([1]))
    frame = transition["observations"]
    before = encoder.once(frame)["front"].copy()
    frame["front"][:] = 255 - frame["front"]
    after = encoder.once(frame)["front"]
    assert offset_of(frame["front"], after[0].astype(np.uint8))
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("at_once", [2, 256])
def test_what_a_store_holds_already_is_encoded_to_the_same(at_once, monkeypatch):
    monkeypatch.setattr(feature_cache, "TRANSITIONS_AT_ONCE", at_once)
    store, encode = empty_store(), Identity()
    for transition, continues in episodes([3, 1, 6]):
        store.append(transition, continues)
    cache = FeatureCache(store, make(encode=encode))
    encode.images = 0
    assert sum(cache.fill()) == 10
    assert encode.images == (4 + 2 + 7) * 3 * len(SHAPES)
    images, features = everything(store), everything(cache.features)
    assert_features_are_crops_of(images, features, 3)
    assert np.array_equal(images["rewards"], features["rewards"])
    assert [len(episode) for episode in cache.features.episodes()] == [3, 1, 6]
    assert (cache.features.seed, cache.features.draws) == (store.seed, store.draws)
    # What comes next goes on as ever.
    for transition, continues in episodes([2], seed=1):
        cache.append(transition, continues)
    assert_features_are_crops_of(everything(store), everything(cache.features), 3)


def test_all_crops_are_the_whole_range_of_offsets():
    side = 2 * PADDING + 1
    offsets = make(crops=side**2).draw_offsets(2)
    assert offsets.shape == (2, side**2, 2)
    expected = {(y, x) for y in range(side) for x in range(side)}
    assert all({tuple(pair) for pair in frame} == expected for frame in offsets.tolist())


def test_float16_is_within_its_rounding():
    scale = 1 / 255.0

    def encode(images):
        return {key: image.float() * scale for key, image in images.items()}

    (transition, _) = next(episodes([1]))
    exact, rough = (make(precision=p, encode=encode)([transition["observations"]]) for p in ("float32", "float16"))
    read = torch.from_numpy(rough["front"]).view(torch.float16).float().numpy()
    assert rough["front"].dtype == np.uint8
    assert rough["front"].nbytes == exact["front"].nbytes / 2
    np.testing.assert_allclose(read, exact["front"], rtol=2**-11)
    assert not np.array_equal(read, exact["front"])


def test_features_beyond_float16_are_refused():
    encoder = make(precision="float16")
    encoder.encode = lambda images: {key: image.float() * 1e3 for key, image in images.items()}
    (transition, _) = next(episodes([1]))
    with pytest.raises(ValueError, match=r"features reach 2.*float16 ends at 65504.*feature_cache_precision float32"):
        encoder([transition["observations"]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crops": 0}, "crops is 0; with a padding of 2 there are 1 to 25 different ones"),
        ({"crops": 26}, "crops is 26; with a padding of 2"),
        ({"precision": "bfloat16"}, "precision is 'bfloat16'; choose 'float16' or 'float32'"),
    ],
)
def test_what_can_not_be_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_the_size_is_said_at_the_start():
    encoder = make(crops=4, precision="float16")
    assert encoder.frame_bytes == 2 * 4 * SIDE * SIDE * 3 * 2
    assert "4 crops of 2 cameras in float16, 7 KiB a transition" in describe(encoder, [empty_store()])
