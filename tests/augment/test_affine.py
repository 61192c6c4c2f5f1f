"""The warp against a loop over pixels, rotation against np.rot90, translation against slices."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls import augment

pytestmark = pytest.mark.usefixtures("strict_types")

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
WIDE = RNG.integers(0, 256, (3, 4, 7, 3), dtype=np.uint8)


def moved(image, down, right, fill):
    height, width = image.shape[:2]
    result = np.full_like(image, fill)
    for row, column in itertools.product(range(height), range(width)):
        if 0 <= row - down < height and 0 <= column - right < width:
            result[row, column] = image[row - down, column - right]
    return result


def warped(image, matrix, fill, method):
    """One pixel at a time, in double precision."""
    height, width = image.shape[:2]
    centre = np.array([(height - 1) / 2, (width - 1) / 2])

    def read(row, column):
        inside = 0 <= row < height and 0 <= column < width
        return image[int(row), int(column)].astype(np.float64) if inside else np.full(image.shape[2], float(fill))

    result = np.zeros(image.shape, np.float64)
    for place in np.ndindex(height, width):
        y, x = matrix @ np.append(np.array(place) - centre, 1) + centre
        if method == "nearest":
            result[place] = read(np.floor(y + 0.5), np.floor(x + 0.5))
            continue
        for row, column in itertools.product((np.floor(y), np.floor(y) + 1), (np.floor(x), np.floor(x) + 1)):
            result[place] += (1 - abs(y - row)) * (1 - abs(x - column)) * read(row, column)
    return result


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_warp(method, dtype):
    images = WIDE if dtype == np.uint8 else WIDE / np.float32(255)
    matrices = np.concatenate([RNG.normal(0, 0.7, (3, 2, 2)), RNG.normal(0, 1, (3, 2, 1))], axis=2).astype(np.float32)
    fill = 9 if dtype == np.uint8 else -0.5
    result = augment.warp(jnp.array(images), jnp.array(matrices), fill=fill, method=method)
    expected = np.stack([warped(i, m, fill, method) for i, m in zip(images, matrices, strict=True)])
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, atol=0.51 if dtype == np.uint8 else 1e-4)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_quarter_turns_are_exact_and_counter_clockwise(method):
    degrees = np.array([0, 90, 180, -90], np.float32)
    expected = np.stack([np.rot90(image, turns) for image, turns in zip(IMAGES, (0, 1, 2, 3), strict=True)])
    np.testing.assert_array_equal(augment.rotate(jnp.array(IMAGES), jnp.array(degrees), method=method), expected)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_whole_pixels_are_moved_exactly(method):
    shifts = np.array([[1, 0], [-2, 3], [0, -7]], np.float32)
    expected = np.stack([moved(i, int(d), int(r), 5) for i, (d, r) in zip(WIDE, shifts, strict=True)])
    np.testing.assert_array_equal(
        augment.translate(jnp.array(WIDE), jnp.array(shifts), fill=5, method=method), expected
    )


def test_matrices_find_the_way_back_from_shear_rotation_and_shift():
    angle, shift, points = 0.3, np.array([1.5, -2]), RNG.normal(size=(2, 5))
    shear = np.array([[1, 0], [0.4, 1]])  # on (row, column): what lies below goes to the right
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    there = turn @ shear @ points + shift[:, None]
    assert (turn @ [0, 1])[0] < 0  # what was to the right is now above: counter-clockwise
    matrix = augment.affine_matrices(
        jnp.array([np.degrees(angle)], jnp.float32), jnp.array(shift[None], jnp.float32), jnp.array([[0.0, 0.4]])
    )[0]
    np.testing.assert_allclose(np.asarray(matrix) @ np.concatenate([there, np.ones((1, 5))]), points, atol=1e-5)


def test_random_affine():
    images = jnp.array(np.repeat(IMAGES, 4, axis=0))
    key = jax.random.key(0)
    np.testing.assert_array_equal(jax.jit(augment.random_affine)(key, images), images)
    turn = jax.jit(partial(augment.random_affine, degrees=20, shift=0.2))
    one, same = turn(key, images), turn(key, images)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[0], one[1])  # the same image, turned otherwise
    # a dot in the middle of a large black image is moved, and stays within the largest shift
    dots = jnp.zeros((500, 21, 41, 1)).at[:, 10, 20].set(1)
    result = np.asarray(augment.random_affine(key, dots, shift=0.25, method="nearest"))
    rows, columns = (np.ptp(np.argwhere(result.sum(axis=(0, axis, 3)) > 0)) for axis in (2, 1))
    assert 8 <= rows <= 12
    assert 18 <= columns <= 22
