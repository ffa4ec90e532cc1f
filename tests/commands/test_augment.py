"""--augment: which settings go together, and what each makes of a run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serl_fast import train_hybrid, train_offline
from serl_fast.data.dali import DaliReader
from serl_fast.data.episodes import Episode
from serl_fast.data.formats import write_dataset
from serl_fast.errors import MissingExtraError
from serl_fast.kernels import choice
from serl_fast.train_hybrid_config import TrainHybridConfig
from serl_fast.train_offline_config import TrainOfflineConfig

DALI = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
CAMERA = {"image_keys": ("front",), "image_size": 32, "encoder": "small", "hidden_widths": (8,), "batch_size": 4}


def build(directory: Path, **flags: Any) -> train_hybrid.Run:
    given = {"final_eval_episodes": 0, "eval_interval": 0, "execution": "eager", **CAMERA, **flags}
    return train_hybrid.Run(TrainHybridConfig(env="toy/Arm-v0", save_dir=directory, **given))


@pytest.fixture(autouse=True)
def _default_afterwards() -> Any:
    yield
    choice.use_backend("auto")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"image_keys": ()}, r"image_keys is \(\)"),
        ({"algorithm": "mine:agent"}, "algorithm is 'mine:agent'"),
        ({"replay_device": "device"}, "replay_device is 'device'"),
        ({"feature_cache": 2, "encoder": "resnet-pretrained"}, "feature_cache is 2"),
    ],
)
def test_what_dali_does_not_go_with(flags: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"augment is 'dali', which crops .* and {name}; it takes"):
        TrainHybridConfig(augment="dali", **{**CAMERA, **flags})


def test_triton_is_refused_on_the_cpu(tmp_path: Path, toy_arm: Any) -> None:
    with pytest.raises(ValueError, match="'triton' needs a CUDA device, this is cpu"):
        build(tmp_path, augment="triton", device="cpu")


@pytest.mark.parametrize("augment", ["auto", "torch"])
def test_crops_inside_the_step(tmp_path: Path, toy_arm: Any, augment: Any) -> None:
    run = build(tmp_path, augment=augment)
    assert choice._backend == augment
    assert run.agent.settings["config"]["crop_padding"] == 4
    assert "crop" in run.agent.draw_noise(torch.Generator(), 4, torch.device("cpu"))


def test_dali_crops_before_the_step(tmp_path: Path, toy_arm: Any) -> None:
    if not DALI:
        with pytest.raises(MissingExtraError, match=r"pip install 'serl-fast\[dali\]'"):
            build(tmp_path, augment="dali")
        pytest.skip("DALI is not installed: pip install 'serl-fast[dali]'")
    run = build(
        tmp_path, augment="dali", max_steps=6, training_starts=5, random_steps=5, replay_buffer_capacity=50,
        synchronous=True, video_episodes=0,
    )  # fmt: skip
    assert isinstance(run.learner._reader, DaliReader)
    assert "crop" not in run.agent.draw_noise(torch.Generator(), 4, torch.device("cpu"))
    run.train()
    assert run.engine.updates == 6


ENCODER = ("encoder=small", "hidden_widths=8")


def offline(directory: Path, **flags: Any) -> train_offline.Run:
    """A run of ``train_offline`` on two short episodes with a camera."""
    random, length = np.random.default_rng(0), 9
    last = np.arange(length) == length - 1
    look = {
        "front": random.integers(0, 256, (length + 1, 32, 32, 3), np.uint8),
        "state": random.normal(size=(length + 1, 4)).astype(np.float32),
    }
    actions = random.uniform(-1, 1, (length, 7)).astype(np.float32)
    episode = Episode(look, actions, last.astype(np.float32), last, np.zeros(length, bool))
    write_dataset(directory / "demos.pkl", [episode, episode], "pickle")
    given = {
        "algorithm": "td3bc", "algorithm_options": ENCODER, "image_keys": ("front",), "batch_size": 4, "max_steps": 4,
        "execution": "eager", "threads": 1, "video_episodes": 0, "final_eval_episodes": 0, "eval_interval": 2, **flags,
    }  # fmt: skip
    return train_offline.Run(
        TrainOfflineConfig(demo_paths=(directory / "demos.pkl",), save_dir=directory / "run", **given)
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"image_keys": ()}, r"and image_keys is \(\); it takes"),
        ({"replay_device": "device"}, "and replay_device is 'device'; it takes"),
        ({"algorithm": "mine:agent", "algorithm_options": ()}, "and algorithm is 'mine:agent'; it takes"),
        ({"algorithm_options": (*ENCODER, "crop_padding=2")}, "before the step: no option crop_padding"),
    ],
)
def test_what_dali_does_not_go_with_offline(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"augment is 'dali', which crops .*{message}"):
        offline(tmp_path, augment="dali", **flags)


def test_crops_of_recorded_data_inside_the_step(tmp_path: Path) -> None:
    run = offline(tmp_path, augment="torch")
    assert choice._backend == "torch"
    assert "crop" in run.agent.draw_noise(torch.Generator(), 4, torch.device("cpu"))


@pytest.mark.parametrize("algorithm", ["td3bc", "bc", "calql", "sac"])
def test_dali_crops_recorded_data_before_the_step(algorithm: str, tmp_path: Path) -> None:
    flags = {"augment": "dali", "algorithm": algorithm}
    if not DALI:
        with pytest.raises(MissingExtraError, match=r"pip install 'serl-fast\[dali\]'"):
            offline(tmp_path, **flags)
        pytest.skip("DALI is not installed: pip install 'serl-fast[dali]'")
    run = offline(tmp_path, **flags)
    assert isinstance(run.learner._reader, DaliReader)
    assert "crop" not in run.agent.draw_noise(torch.Generator(), 4, torch.device("cpu"))
    run.train()
    assert run.engine.updates == 4


def test_an_agent_that_leaves_cropping_to_dali_goes_on_with_it(
    tmp_path: Path, toy_arm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = offline(tmp_path, algorithm="iql", algorithm_options=(*ENCODER, "crop_padding=0"))
    run.train()
    flags = {
        "init": tmp_path / "run" / "checkpoint_4.pth",
        "discount": 0.99,
        "image_size": 32,
        "image_keys": ("front",),
    }
    build(tmp_path / "online", **flags)
    assert "images are NOT cropped: the agent of" in capsys.readouterr().out
