"""--augment: which settings go together, and what each makes of a run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from serl_fast import train_hybrid
from serl_fast.data.dali import DaliReader
from serl_fast.errors import MissingExtraError
from serl_fast.kernels import choice
from serl_fast.train_hybrid_config import TrainHybridConfig

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
