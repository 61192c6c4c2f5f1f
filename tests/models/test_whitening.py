"""The whitening kernel against float64 NumPy, and against what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxcls.errors import InputError
from flaxcls.models.whitening import whitening_kernel


def correlated_images(count=40, height=9, width=11, channels=3):
    """Returns images that are smooth and whose channels go together, like photographs."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(count, height + 2, width + 2, channels))
    smooth = sum(noise[:, r : r + height, c : c + width] for r in range(3) for c in range(3)) / 3
    return (smooth @ (rng.normal(size=(channels, channels)) + 2) + 0.5).astype(np.float32)


def patches_by_hand(images, size):
    rows = [
        image[r : r + size, c : c + size].ravel()
        for image in images.astype(np.float64)
        for r in range(image.shape[0] - size + 1)
        for c in range(image.shape[1] - size + 1)
    ]
    return np.stack(rows)


@pytest.mark.usefixtures("strict_types")
@pytest.mark.parametrize(("size", "epsilon"), [(2, 5e-4), (2, 0.3), (3, 5e-4)])
def test_filters_are_scaled_eigenvectors_and_their_negatives(size, epsilon):
    images = correlated_images()
    patch = size * size * 3
    kernel = jax.jit(lambda images: whitening_kernel(images, size, epsilon=epsilon))(images)
    assert kernel.dtype == jnp.float32
    assert kernel.shape == (size, size, 3, 2 * patch)
    filters = np.asarray(kernel).reshape(patch, 2 * patch).T
    np.testing.assert_array_equal(filters[:patch], -filters[patch:])

    patches = patches_by_hand(images, size)
    moment = patches.T @ patches / len(patches)
    values, vectors = np.linalg.eigh(moment)
    for number, (value, vector) in enumerate(zip(values[::-1], vectors.T[::-1], strict=True)):
        expected = vector / np.sqrt(value + epsilon)
        sign = np.sign(expected @ filters[number])  # that of an eigenvector is anyone's
        np.testing.assert_allclose(filters[number], sign * expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_the_convolution_whitens():
    images = correlated_images()
    kernel = whitening_kernel(jnp.array(images), 2, epsilon=0.0)
    output = lax.conv_general_dilated(
        jnp.array(images), kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    values = np.asarray(output, np.float64)[..., :12].reshape(-1, 12)
    np.testing.assert_allclose(values.T @ values / len(values), np.eye(12), atol=5e-3)


def test_images_smaller_than_a_patch_are_refused():
    with pytest.raises(InputError, match="images of 2x8 pixels have no 3x3 patch: use larger images"):
        whitening_kernel(jnp.zeros((5, 2, 8, 3)), 3)
