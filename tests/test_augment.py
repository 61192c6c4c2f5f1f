"""Each transform against a reference in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls import augment

pytestmark = pytest.mark.usefixtures("strict_types")

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)


def test_bytes_are_scaled_and_floats_are_not():
    np.testing.assert_allclose(augment.to_float(jnp.array(IMAGES)), IMAGES / np.float32(255), rtol=1e-6)
    floats = jnp.full((1, 2, 2, 1), 0.5)
    assert augment.to_float(floats) is floats


def test_normalize():
    images = IMAGES / np.float32(255)
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
    result = np.asarray(augment.normalize(jnp.array(images), jnp.array(mean), jnp.array(std)))
    np.testing.assert_allclose(result, (images - mean) / std, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std((0, 1, 2)), 1, rtol=1e-5)


def test_flip():
    flips = np.array([True, False, True, True, False, False])
    expected = np.stack([image[:, ::-1] if flip else image for image, flip in zip(IMAGES, flips, strict=True)])
    np.testing.assert_array_equal(augment.flip(jnp.array(IMAGES), jnp.array(flips)), expected)


@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop(fill, mode):
    offsets = np.array([[0, 0], [4, 4], [2, 2], [1, 3], [0, 4], [3, 0]], np.int32)
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
    expected = np.stack([p[r : r + 5, c : c + 7] for p, (r, c) in zip(padded, offsets, strict=True)])
    result = augment.crop(jnp.array(IMAGES), jnp.array(offsets), padding=2, fill=fill)
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == jnp.uint8


def test_random_flip_mirrors_about_half_and_leaves_the_rest():
    images = jnp.tile(jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 4, 1), (2000, 1, 1, 1))
    mirrored = augment.random_flip(jax.random.key(0), images)[:, 0, 0, 0] == 3
    assert 0.45 < mirrored.mean(dtype=jnp.float32) < 0.55


def test_random_crop_draws_every_shift_about_equally_often():
    image = np.zeros((1, 3, 3, 1), np.uint8)
    image[0, 1, 1] = 1
    crops = augment.random_crop(jax.random.key(0), jnp.array(np.repeat(image, 9000, axis=0)), padding=1)
    counts = np.asarray(crops).reshape(9000, 9).sum(axis=0)  # the dot lands on each of the nine pixels
    assert counts.sum() == 9000
    assert counts.min() > 850
    assert counts.max() < 1150


def test_the_transform_is_random_in_training_alone():
    transform = augment.make_transform(mean=[0.5] * 3, std=[0.25] * 3, random_flips=True, crop_padding=1)
    batch = {"image": jnp.array(IMAGES), "label": jnp.arange(6)}
    plain = transform(None, batch)
    np.testing.assert_allclose(plain["image"], (IMAGES / np.float32(255) - 0.5) / 0.25, rtol=1e-4, atol=1e-6)
    one, same, other = (transform(jax.random.key(seed), batch)["image"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, plain["image"])
    assert plain["label"] is batch["label"]
