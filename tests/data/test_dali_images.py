"""Image files, decoded and augmented: the reference by hand, and DALI against the reference."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serl_fast.data import dali_images, image_files
from serl_fast.data.dali_images import DaliImages, image_decoder
from serl_fast.data.episodes import DatasetError
from serl_fast.data.image_files import EXIF_ORIENTATION, decode_images
from serl_fast.errors import MissingExtraError
from serl_fast.kernels.color_jitter import color_jitter
from serl_fast.kernels.random_crop import random_crop

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'serl-fast[data]'")
INSTALLED = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
needs_dali = pytest.mark.skipif(not INSTALLED, reason="DALI is not installed: pip install 'serl-fast[dali]'")

SIZE = (48, 40)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Patches with soft edges, as photographs have them."""
    patches = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Any, form: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **settings)
    return buffer.getvalue()


def augmentation(count: int, padding: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    factors = 1 + 0.4 * (2 * torch.rand(count, 3, generator=generator) - 1)
    return factors, torch.randint(2 * padding + 1, (count, 2), generator=generator)


def test_the_reference_does_one_step_after_the_other():
    images = [picture(*SIZE, seed=seed) for seed in range(3)]
    files = [encoded(image) for image in images]
    stacked = torch.from_numpy(np.stack(images))
    assert torch.equal(decode_images(files, SIZE), stacked)
    factors, offsets = augmentation(3)
    expected = random_crop(color_jitter(stacked, factors), offsets, 4)
    assert torch.equal(decode_images(files, SIZE, factors, offsets, padding=4), expected)
    assert decode_images([encoded(picture(60, 70))], SIZE).shape == (1, *SIZE, 3)


def test_files_of_every_kind_are_rgb_and_upright():
    image = Image.fromarray(picture(*SIZE))
    upright = np.asarray(image)
    for form in ("L", "P", "RGBA", "CMYK", "1"):
        file = encoded(image.convert(form), "JPEG" if form == "CMYK" else "PNG")
        assert decode_images([file], SIZE).shape == (1, *SIZE, 3)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    lying = image.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(decode_images([encoded(lying, "PNG", exif=exif)], SIZE)[0].numpy(), upright)


def bad_files() -> dict[str, tuple[bytes, str]]:
    jpeg, png = encoded(noise(64, 64), "JPEG"), encoded(noise(64, 64))
    deep = Image.fromarray(np.zeros((4, 4), np.uint16))
    return {
        "empty": (b"", "no readable image"),
        "text": (b"not an image", "no readable image"),
        "half a JPEG": (jpeg[: len(jpeg) // 2], "no readable image"),
        "half a PNG": (png[: len(png) // 2], "no readable image"),
        "damaged PNG": (png[:200] + b"\0" * 50 + png[250:], "no readable image"),
        "16 bits": (encoded(deep), "more than 8 bits"),
        "BMP": (encoded(picture(8, 8), "BMP"), "no readable image"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_the_reference_names_a_bad_file(name: str, tmp_path: Path):
    content, said = bad_files()[name]
    with pytest.raises(DatasetError, match=f"image 1: {said}"):
        decode_images([encoded(picture(8, 8)), content], SIZE)
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"bad.png: {said}"):
        decode_images([path], SIZE)


def test_a_picture_that_claims_too_much_is_not_decoded(monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 63)
    with pytest.raises(DatasetError, match="image 0: 8 x 8 px; accepted: up to 63 pixels"):
        decode_images([encoded(picture(8, 8))], SIZE)


def test_without_dali_the_reference_decodes_and_one_line_says_so(monkeypatch):
    def absent(module: str, extra: str) -> Any:
        raise MissingExtraError(f"{module} is not installed: pip install 'serl-fast[{extra}]'")

    files = [encoded(picture(50, 60))]
    factors, offsets = augmentation(1)
    decode, why = image_decoder("torch", SIZE, 4, padding=4)
    assert why == "image files are decoded by Pillow and PyTorch"
    expected = decode_images(files, SIZE, factors, offsets, padding=4)
    assert torch.equal(decode(files, factors, offsets), expected)
    with monkeypatch.context() as patch:
        patch.setattr(dali_images, "require", absent)
        decode, why = image_decoder("auto", SIZE, 4)
        with pytest.raises(MissingExtraError, match=r"pip install 'serl-fast\[dali\]'"):
            image_decoder("dali", SIZE, 4)
    assert "\n" not in why
    assert "without DALI: " in why
    assert torch.equal(decode(files), decode_images(files, SIZE))
    with pytest.raises(ValueError, match="image backend 'cv2' is not known; choose auto, dali or torch"):
        image_decoder("cv2", SIZE, 4)  # type: ignore[arg-type]


@pytest.fixture
def no_reference(monkeypatch):
    """DALI alone may decode."""

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("the reference decoded in DALI's place")

    monkeypatch.setattr(dali_images, "decode_images", refuse)


def difference(files: list[bytes], *augmented: torch.Tensor, padding: int = 0) -> torch.Tensor:
    """|DALI - reference| for each file."""
    expected = decode_images(files, SIZE, *augmented, padding=padding)  # this module's name: not the patched one
    result = DaliImages(SIZE, len(files) + 2, padding=padding)(files, *augmented)
    assert (result.dtype, result.shape) == (torch.uint8, expected.shape)
    return (result.int() - expected.int()).abs()


@needs_dali
@pytest.mark.parametrize(
    "settings", [{"form": "PNG"}, {"form": "JPEG", "quality": 90}, {"form": "JPEG", "subsampling": 0}]
)
def test_decoding_is_the_references(settings: dict[str, Any], no_reference: None):
    images = [picture(*SIZE), noise(*SIZE), picture(*SIZE)[..., 0]]
    worst = difference([encoded(image, **settings) for image in images]).max()
    assert worst <= (0 if settings["form"] == "PNG" else 2)


@needs_dali
@pytest.mark.parametrize("shape", [(97, 133), (200, 120), (30, 25), (48, 100), (20, 90)])
def test_resizing_is_near_to_the_references(shape: tuple[int, int], no_reference: None):
    found = difference([encoded(picture(*shape)), encoded(noise(*shape))])
    assert found[:, 1:-1, 1:-1].max() <= 1
    assert found.max() <= 20  # of noise; see the module about the outermost pixels
    assert found.float().mean((1, 2, 3)).max() <= 0.4


@needs_dali
def test_jitter_and_crop_are_the_references(no_reference: None):
    files = [encoded(picture(*SIZE, seed=seed)) for seed in range(6)] + [encoded(noise(*SIZE))]
    factors, offsets = augmentation(len(files))
    assert difference(files, factors).max() <= 1
    assert difference(files, torch.ones_like(factors), offsets, padding=4).max() == 0
    assert difference(files, factors, offsets, padding=4).max() <= 1


@needs_dali
def test_a_pipeline_takes_batches_of_every_size_one_after_the_other(no_reference: None):
    pipeline = DaliImages(SIZE, 4)
    for count in (4, 1, 3):
        files = [encoded(picture(*SIZE, seed=count + n)) for n in range(count)]
        assert torch.equal(pipeline(files), decode_images(files, SIZE))
    with pytest.raises(ValueError, match="there are 5 files; this pipeline takes 1 to 4"):
        pipeline(5 * files[:1])
    with pytest.raises(ValueError, match=r"factors have shape \(2, 3\); 3 files take \(3, 3\)"):
        pipeline(files, torch.ones(2, 3))


@needs_dali
def test_what_dali_would_read_otherwise_is_left_to_the_reference():
    image = Image.fromarray(picture(60, 70))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    files = [
        encoded(image, "JPEG", exif=exif),
        encoded(image.convert("RGBA")),
        encoded(image.convert("P")),
        encoded(image.convert("CMYK"), "JPEG"),
    ]
    pipeline = DaliImages(SIZE, 1)
    for file in files:
        assert torch.equal(pipeline([file]), decode_images([file], SIZE))


@needs_dali
@pytest.mark.parametrize("name", bad_files())
def test_dali_names_a_bad_file_and_goes_on(name: str):
    content, said = bad_files()[name]
    good = encoded(picture(*SIZE))
    pipeline = DaliImages(SIZE, 2)
    with pytest.raises(DatasetError, match=f"image 1: {said}"):
        pipeline([good, content])
    assert torch.equal(pipeline([good]), decode_images([good], SIZE))


@needs_dali
def test_auto_is_dali_where_it_is_installed():
    decode, why = image_decoder("auto", SIZE, 2)
    assert isinstance(decode, DaliImages)
    assert why == "image files are decoded by DALI on the CPU"
