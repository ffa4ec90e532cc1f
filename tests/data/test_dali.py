"""DALI's crops are those of the reference, byte by byte; its normalised images near to them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from serl_fast.data import dali
from serl_fast.data.dali import DaliCrop, DaliReader, crop_batch
from serl_fast.errors import MissingExtraError
from serl_fast.kernels.crop_normalize import crop_normalize
from serl_fast.kernels.random_crop import random_crop

INSTALLED = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not INSTALLED, reason="DALI is not installed: pip install 'serl-fast[dali]'")


def draw(*shape: int, padding: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 2 * padding + 1, (shape[0], 2), generator=generator)


@needs_dali
@pytest.mark.parametrize("shape", [(5, 16, 16, 3), (3, 7, 11, 1), (1, 1, 1, 3), (2, 4, 5, 9), (3, 2, 8, 6, 3)])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crops_are_the_references(shape: tuple[int, ...], padding: int) -> None:
    images, offsets = draw(*shape, padding=padding)
    assert torch.equal(DaliCrop(8, padding)(images, offsets), random_crop(images, offsets, padding))


@needs_dali
def test_every_offset_on_a_larger_image() -> None:
    grid = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    images = draw(1, 128, 96, 3)[0].expand(81, -1, -1, -1)
    assert torch.equal(DaliCrop(81, threads=2)(images, grid), random_crop(images, grid))


@needs_dali
def test_normalised_images_are_near_the_references() -> None:
    mean, std = 255 * torch.tensor([0.485, 0.456, 0.406]), 255 * torch.tensor([0.229, 0.224, 0.225])
    images, offsets = draw(6, 32, 24, 3)
    crop = DaliCrop(6, mean=mean.tolist(), std=std.tolist())
    expected = crop_normalize(images, offsets, mean, std).permute(0, 2, 3, 1)
    torch.testing.assert_close(crop(images, offsets), expected, rtol=1e-6, atol=3e-6)


@needs_dali
def test_calls_do_not_share_their_results() -> None:
    crop = DaliCrop(4)
    parts = [draw(n, 8, 8, 3, seed=n) for n in (4, 2, 3)]  # smaller batches than it was built for
    results = [crop(*part) for part in parts]
    for part, result in zip(parts, results, strict=True):
        assert torch.equal(result, random_crop(*part))
    assert crop(torch.zeros(0, 8, 8, 3, dtype=torch.uint8), torch.zeros(0, 2)).shape == (0, 8, 8, 3)


@needs_dali
def test_errors() -> None:
    crop = DaliCrop(4)
    images, offsets = draw(4, 8, 8, 3)
    with pytest.raises(ValueError, match=r"images are torch.float32 \(4, 8, 8, 3\) on cpu"):
        crop(images.float(), offsets)
    with pytest.raises(ValueError, match=r"offsets have shape \(3, 2\); these images take \(4, 2\)"):
        crop(images, offsets[:3])
    with pytest.raises(ValueError, match="there are 8 images; this pipeline was built for 4"):
        crop(images.unsqueeze(1).expand(-1, 2, -1, -1, -1), offsets)
    with pytest.raises(ValueError, match="give both"):
        DaliCrop(4, mean=[1.0])


class Reference:
    """Crops as DALI does."""

    padding = 4

    def __call__(self, images: Tensor, offsets: Tensor) -> Tensor:
        return random_crop(images, offsets, self.padding)


def test_a_batch_is_cropped_as_the_agent_would() -> None:
    """The same generator gives an agent's noise and these offsets; cameras share them, the next observations do not."""
    cameras = {key: draw(4, 8, 8, 3, seed=seed)[0] for seed, key in enumerate(("front", "wrist"))}
    batch: Any = {
        "observations": {**cameras, "state": torch.ones(4, 2)},
        "next_observations": {key: x.flip(0) for key, x in cameras.items()},
        "rewards": torch.ones(4),
    }
    crop: Any = DaliCrop(4) if INSTALLED else Reference()
    cropped = crop_batch(crop, batch, ("front", "wrist"), torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    for name in ("observations", "next_observations"):
        offsets = torch.randint(9, (4, 2), generator=generator)
        for key in cameras:
            assert torch.equal(cropped[name][key], random_crop(batch[name][key], offsets))
    assert cropped["observations"]["state"] is batch["observations"]["state"]
    assert torch.equal(batch["observations"]["front"], cameras["front"])


class Store:
    """What a reader draws from: rows that count up."""

    def empty_batch(self, batch_size: int) -> dict[str, Any]:
        def observations() -> dict[str, Any]:
            return {"front": np.zeros((batch_size, 8, 8, 3), np.uint8), "state": np.zeros((batch_size, 2), np.float32)}

        batch = {"observations": observations(), "next_observations": observations()}
        return batch | {"rewards": np.zeros(batch_size, np.float32)}

    def sample_into(self, batch: dict[str, Any]) -> None:
        for name in ("observations", "next_observations"):
            images = batch[name]["front"]
            images[:] = np.arange(images.size, dtype=np.uint32).reshape(images.shape) * 7 % 256
        batch["rewards"] += 1


@needs_dali
def test_a_reader_of_cropped_batches() -> None:
    reader, store = DaliReader(4, ("front",), seed=5), Store()
    arrays = store.empty_batch(4)
    store.sample_into(arrays)
    images = torch.from_numpy(arrays["observations"]["front"])
    generator = torch.Generator().manual_seed(5)
    for turn in (1, 2):
        batch = reader.read(store)
        for name in ("observations", "next_observations"):
            offsets = torch.randint(9, (4, 2), generator=generator)
            assert torch.equal(batch[name]["front"], random_crop(images, offsets))
        assert batch["rewards"].tolist() == [turn] * 4
    blank = reader.blank(store)
    assert blank["observations"]["front"].shape == images.shape
    assert reader.source is None


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str) -> None:
        raise MissingExtraError(f"{module}: pip install 'serl-fast[{extra}]'")

    monkeypatch.setattr(dali, "require", missing)
    with pytest.raises(MissingExtraError, match=r"serl-fast\[dali\]"):
        DaliCrop(4)
