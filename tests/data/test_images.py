import io

import numpy as np
import pytest
from PIL import Image

from serl_fast.data.images import decode, resize

RNG = np.random.default_rng(0)


def encoded(image, form):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_shrinking_averages_areas(channels):
    images = RNG.integers(0, 256, (3, 12, 20, channels), np.uint8)
    small = resize(images, (4, 5))
    assert (small.shape, small.dtype) == ((3, 4, 5, channels), np.uint8)
    # Rounded after each axis: within one of the mean.
    assert np.abs(small - images.reshape(3, 4, 3, 5, 4, channels).mean((2, 4))).max() <= 1


def test_growing_interpolates():
    image = np.array([0, 200], np.uint8).reshape(1, 1, 2, 1)
    assert resize(image, (1, 4)).ravel().tolist() == [0, 50, 150, 200]


def test_the_same_size_is_the_same_array():
    images = RNG.integers(0, 256, (2, 4, 4, 3), np.uint8)
    assert resize(images, None) is images
    assert resize(images, (4, 4)) is images


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5, 1), (6, 5, 4), (6, 5)])
def test_png_is_exact(shape):
    images = RNG.integers(0, 256, (3, *shape), np.uint8)
    np.testing.assert_array_equal(decode([encoded(i, "PNG") for i in images], shape), images)
    np.testing.assert_array_equal(decode([np.frombuffer(encoded(images[0], "PNG"), np.uint8)], shape), images[:1])


def test_bad_images():
    good = encoded(np.zeros((6, 5, 3), np.uint8), "JPEG")
    for content, shape, message in (
        (b"no image", (6, 5, 3), "image 1 can not be decoded"),
        (good[:-200], (6, 5, 3), "image 1 can not be decoded"),
        (good, (60000, 50000, 3), "image 0 is 6 x 5 px; expected 60000 x 50000"),
        (encoded(np.zeros((6, 5, 3), np.uint8), "BMP"), (6, 5, 3), "image 1 can not be decoded"),
        (good, (6, 5, 2), "1, 3 or 4 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            decode([good, content], shape)
