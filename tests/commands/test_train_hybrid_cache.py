"""``train_hybrid --feature_cache``: trains from features, keeps the images, resumes."""

import numpy as np
import pytest
import torch

from serl_fast import record_demos, train_hybrid
from serl_fast.agents.cached_features import encode_images
from serl_fast.replay import ReplayStore
from tests.commands.test_train_hybrid import TINY, mistake, require_graphics

CAMERA = ["--image_keys", "wrist", "--image_size", "32"]
CACHED = [*TINY, *CAMERA, "--eval_interval=0", "--final_eval_episodes=0", "--synchronous", "--operator", "scripted"]


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    require_graphics()
    path = tmp_path_factory.mktemp("demos") / "pick.pkl"
    assert record_demos.run(["--num_demos", "1", "--output", str(path), "--seed", "3", *CAMERA]) == 0
    return path


def features_of(run, images):
    """What the run's trunk makes of images [N, H, W, 3] without a crop."""
    return encode_images(run.agent.networks, {"wrist": torch.from_numpy(images)})["wrist"].numpy()


def test_it_trains_saves_images_and_resumes(demos, tmp_path, capsys):
    flags = [*CACHED, "--demo_paths", str(demos), "--save_dir", str(tmp_path), "--feature_cache", "2"]
    assert train_hybrid.run(flags) == 0
    said = capsys.readouterr().out
    assert "feature cache: 2 crops of 1 camera in float16, 32 KiB a transition beside its images" in said
    online = ReplayStore.load(tmp_path / "replay_40" / "online")
    assert online.batch_at([0])["observations"]["wrist"].shape == (1, 32, 32, 3)
    assert online.draws > 0  # as many as the features' store gave

    again = [*flags, "--resume", "--max_steps=44", "--feature_cache_precision", "float32"]
    resumed = train_hybrid.Run(train_hybrid.parse(train_hybrid.TrainHybridConfig, again, description=""))
    assert "encoding crops of stored transitions" in capsys.readouterr().out
    cache = resumed.caches[0]
    assert len(cache.features) == len(cache.store) == len(online)
    assert cache.features.draws == online.draws
    # By the trunk of the checkpoint: crops are near the image as it is, other images are not.
    stored = cache.features.batch_at([0, 9])["observations"]["wrist"][:, 0]
    live = features_of(resumed, online.batch_at([0, 9])["observations"]["wrist"])
    apart = np.abs(stored[:, None] - live).mean((2, 3, 4))
    assert apart[0, 0] < apart[0, 1]
    assert apart[1, 1] < apart[1, 0]
    resumed.train()
    assert resumed.counters.updates == 44


def test_what_can_not_be_cached_is_refused(tmp_path, capsys):
    quiet = [*TINY, "--save_dir", str(tmp_path), "--feature_cache", "3"]
    assert "feature_cache is 3, but there are no cameras: give --image_keys" in mistake(train_hybrid.run, quiet, capsys)
    own = [*quiet, *CAMERA, "--algorithm", "td3:td3"]
    assert "algorithm td3:td3 prepares images in its own way" in mistake(train_hybrid.run, own, capsys)
    assert "feature_cache is -1" in mistake(train_hybrid.run, [*TINY, "--feature_cache=-1"], capsys)
    require_graphics()
    trained = [*quiet, *CAMERA, "--encoder", "small"]
    assert "needs a frozen trunk" in mistake(train_hybrid.run, trained, capsys)
    many = [*quiet, *CAMERA, "--feature_cache", "82"]
    assert "crops is 82; with a padding of 4 there are 1 to 81" in mistake(train_hybrid.run, many, capsys)
