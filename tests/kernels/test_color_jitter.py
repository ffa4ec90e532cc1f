"""Colour jitter against its formula in NumPy, and against torchvision's where that is installed."""

import numpy as np
import pytest
import torch

from serl_fast.kernels.color_jitter import color_jitter


def images(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))


def oracle(image, brightness, contrast, saturation):
    """One image, float64."""

    def grey(x):
        return x @ np.array([0.299, 0.587, 0.114])

    x = np.clip(brightness * image.astype(np.float64), 0, 255)
    x = np.clip(contrast * x + (1 - contrast) * grey(x).mean(), 0, 255)
    return np.clip(saturation * x + (1 - saturation) * grey(x)[..., None], 0, 255)


FACTORS = torch.tensor([[0.8, 1.2, 0.7], [1.3, 0.6, 1.4], [1.0, 1.0, 1.0], [2.0, 0.0, 0.0]])


def test_the_formula():
    given = images(4, 9, 7)
    changed = color_jitter(given, FACTORS)
    assert changed.dtype == torch.uint8
    for image, factors, found in zip(given, FACTORS, changed, strict=True):
        expected = oracle(image.numpy(), *factors.double().tolist())
        assert np.abs(found.numpy() - expected).max() <= 0.501  # rounded, and float32 near a half
    assert torch.equal(changed[2], given[2])


@pytest.mark.parametrize("column", range(3))
def test_each_factor_is_its_own(column):
    factors = torch.ones(1, 3)
    factors[0, column] = 0.5
    given = images(1, 5, 5)
    named = dict(zip(("brightness", "contrast", "saturation"), factors[0].tolist(), strict=True))
    assert np.abs(color_jitter(given, factors)[0].numpy() - oracle(given[0].numpy(), **named)).max() <= 0.501


def test_frames_of_a_sample_share_its_factors():
    given = images(4, 2, 6, 5)
    changed = color_jitter(given, FACTORS)
    for frame in range(2):
        assert torch.equal(changed[:, frame], color_jitter(given[:, frame], FACTORS))


def test_as_torchvision():
    functional = pytest.importorskip("torchvision.transforms.functional", reason="torchvision is not installed")
    given = images(4, 16, 16)
    for image, factors, found in zip(given, FACTORS.tolist(), color_jitter(given, FACTORS), strict=True):
        x = image.permute(2, 0, 1) / 255.0
        for adjust, factor in zip(("brightness", "contrast", "saturation"), factors, strict=True):
            x = getattr(functional, f"adjust_{adjust}")(x, factor)
        assert (found.permute(2, 0, 1) - 255 * x).abs().max() <= 0.6  # its luma has 0.2989 for red


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"images have shape \(4, 8, 8, 1\)"):
        color_jitter(torch.zeros(4, 8, 8, 1, dtype=torch.uint8), FACTORS)
    with pytest.raises(ValueError, match=r"factors have shape \(4, 3\); images \(2, 8, 8, 3\) take \(2, 3\)"):
        color_jitter(images(2, 8, 8), FACTORS)
