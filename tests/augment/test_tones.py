"""Maps of levels against their definitions, channel by channel."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls import augment

pytestmark = pytest.mark.usefixtures("strict_types")

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 30, 32, 3), dtype=np.uint8)
IMAGES[0] //= 3  # dark
IMAGES[1, ..., 0] = 80  # one level
IMAGES[2] = RNG.choice([10, 60, 61, 250], (30, 32, 3))  # few levels


def equalized(channel):
    """The rule of PIL.ImageOps.equalize, in words: the rank of a level among all pixels, in 255 equal steps."""
    counts = [int((channel == level).sum()) for level in range(256)]
    step = (channel.size - counts[channel.max()]) // 255
    if step == 0:
        return channel
    ranks = [step // 2 + sum(counts[:level]) for level in range(256)]
    return np.array([min(rank // step, 255) for rank in ranks], np.uint8)[channel]


def stretched(channel):
    low, high = float(channel.min()), float(channel.max())
    return channel if low == high else np.round((channel - low) / (high - low) * 255)


def by_channel(function, images):
    return np.stack([np.stack([function(i[..., c]) for c in range(3)], axis=-1) for i in images])


def test_equalize():
    np.testing.assert_array_equal(augment.equalize(jnp.array(IMAGES)), by_channel(equalized, IMAGES))


def test_equalize_leaves_small_images():
    images = jnp.array(IMAGES[:, :8, :8])
    np.testing.assert_array_equal(augment.equalize(images), images)


def test_autocontrast():
    result = np.asarray(augment.autocontrast(jnp.array(IMAGES)))
    assert result.dtype == np.uint8
    expected = by_channel(stretched, IMAGES)
    np.testing.assert_allclose(result, expected, atol=1)  # halves may round either way
    assert (result == expected).mean() > 0.99


def test_posterize():
    bits = np.array([8, 4, 1, 0], np.int32)
    masks = np.array([0b11111111, 0b11110000, 0b10000000, 0], np.uint8)
    expected = IMAGES & masks[:, None, None, None]
    np.testing.assert_array_equal(augment.posterize(jnp.array(IMAGES), jnp.array(bits)), expected)


def test_solarize():
    thresholds = np.array([0, 128, 255, 256], np.float32)
    expected = np.where(thresholds[:, None, None, None] <= IMAGES, 255 - IMAGES, IMAGES)
    result = augment.solarize(jnp.array(IMAGES), jnp.array(thresholds))
    np.testing.assert_array_equal(result, expected)
    floats = augment.solarize(jnp.array(IMAGES / np.float32(255)), jnp.array(thresholds))
    np.testing.assert_allclose(floats, expected / 255, atol=1e-6)
