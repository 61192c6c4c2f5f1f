"""Scaling and normalising against NumPy."""

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
