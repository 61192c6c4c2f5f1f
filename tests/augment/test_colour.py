"""Colours against torchvision's formulas, pixel by pixel, and the standard library's colorsys."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls import augment

pytestmark = pytest.mark.usefixtures("strict_types")

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
IMAGES[0, 0] = [[0, 0, 0], [255, 255, 255], [7, 7, 7], [255, 0, 0], [0, 255, 255], [9, 9, 200]]
FACTORS = np.array([0, 1, 0.3, 1.7, 2.5], np.float32)
LUMA = np.array([0.2989, 0.587, 0.114])


def black(image):
    return np.zeros_like(image)


def mean_gray(image):
    return np.full_like(image, (image @ LUMA).mean())


def gray(image):
    return np.repeat((image @ LUMA)[..., None], 3, axis=2)


def blurred(image):
    result = image.copy()
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    for row in range(1, image.shape[0] - 1):
        for column in range(1, image.shape[1] - 1):
            window = image[row - 1 : row + 2, column - 1 : column + 2]
            result[row, column] = np.einsum("ij,ijc->c", kernel, window)
    return result


def turned(image, shift):
    def pixel(rgb):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb((h + shift) % 1, s, v)

    return np.apply_along_axis(pixel, 2, image)


def check(function, numbers, reference):
    """`reference` takes one image f64[h w 3] of 0..1 and one number."""
    expected = np.stack([reference(i / 255, n) for i, n in zip(IMAGES, numbers.astype(np.float64), strict=True)])
    floats = function(jnp.array(IMAGES / np.float32(255)), jnp.array(numbers))
    assert floats.dtype == jnp.float32
    np.testing.assert_allclose(floats, expected, atol=2e-6)
    levels = function(jnp.array(IMAGES), jnp.array(numbers))
    assert levels.dtype == jnp.uint8
    np.testing.assert_allclose(levels, expected * 255, atol=0.501)


@pytest.mark.parametrize(
    ("name", "other"),
    [("brightness", black), ("contrast", mean_gray), ("saturation", gray), ("sharpness", blurred)],
)
def test_a_factor_blends(name, other):
    check(getattr(augment, name), FACTORS, lambda i, f: np.clip(f * i + (1 - f) * other(i), 0, 1))


def test_hue():
    check(augment.hue, np.array([0, 0.5, -0.2, 1 / 3, 0.05], np.float32), turned)


def test_a_factor_of_one_changes_no_bit():
    ones, zeros = jnp.ones(5), jnp.zeros(5)
    images = jnp.array(IMAGES)
    np.testing.assert_array_equal(augment.color_jitter(images, ones, ones, ones, zeros), images)
    np.testing.assert_array_equal(augment.random_color_jitter(jax.random.key(0), images), images)


def test_jitter_is_its_parts_in_order():
    images = IMAGES / np.float32(255)
    numbers = [jnp.array(RNG.uniform(0.5, 1.5, 5), jnp.float32) for _ in range(3)] + [jnp.full(5, 0.1)]
    parts = jnp.array(images)
    for name, n in zip(("brightness", "contrast", "saturation", "hue"), numbers, strict=True):
        parts = getattr(augment, name)(parts, n)
    # compiled, where pixels are computed more than once and rounded in more than one way
    np.testing.assert_allclose(jax.jit(augment.color_jitter)(jnp.array(images), *numbers), parts, atol=1e-5)


def test_random_jitter_keeps_to_its_range():
    images = jnp.full((2000, 1, 1, 3), 0.4)
    result = np.asarray(augment.random_color_jitter(jax.random.key(0), images, brightness=0.5))[:, 0, 0, 0]
    assert 0.2 <= result.min() < 0.21
    assert 0.59 < result.max() <= 0.6 + 1e-6
    np.testing.assert_allclose(result.mean(), 0.4, atol=0.01)


def test_images_without_colour():
    images = jnp.array(IMAGES[..., :1])
    for name in ("saturation", "hue"):
        np.testing.assert_array_equal(getattr(augment, name)(images, jnp.full(5, 0.3)), images)
    with pytest.raises(ValueError, match="2 channels: colour needs 3"):
        augment.saturation(jnp.array(IMAGES[..., :2]), jnp.ones(5))


def test_bfloat16_stays():
    images = jnp.array(IMAGES / 255, jnp.bfloat16)
    for name in ("brightness", "contrast", "saturation", "sharpness", "hue"):
        assert jax.eval_shape(getattr(augment, name), images, jnp.full(5, 0.3)).dtype == jnp.bfloat16
    assert jax.eval_shape(augment.rotate, images, jnp.full(5, 9.0)).dtype == jnp.bfloat16
