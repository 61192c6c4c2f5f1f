"""Flips and crops against NumPy; resized crops against OpenCV (points), jax.image (averages), the paper's ranges."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcls import augment

pytestmark = pytest.mark.usefixtures("strict_types")

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 12, 15, 3), dtype=np.uint8)
SMALL = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
BOXES = np.array([[0, 0, 12, 15], [3, 4, 5, 7], [11, 14, 1, 1], [2, 0, 10, 6]], np.int32)


def test_point_sampling_is_opencvs():
    images = IMAGES / np.float32(255)
    result = augment.resized_crop(jnp.array(images), jnp.array(BOXES), size=(8, 6), antialias=False)
    for image, (top, left, height, width), ours in zip(images, BOXES, result, strict=True):
        cut = np.ascontiguousarray(image[top : top + height, left : left + width])
        np.testing.assert_allclose(ours, cv2.resize(cut, (6, 8), interpolation=cv2.INTER_LINEAR), atol=1e-5)


def test_averaging_is_jax_images():
    result = augment.resized_crop(jnp.array(IMAGES), jnp.array(BOXES), size=(8, 6))
    assert result.dtype == jnp.uint8
    for image, (top, left, height, width), ours in zip(IMAGES, BOXES, result, strict=True):
        cut = image[top : top + height, left : left + width].astype(np.float32)
        np.testing.assert_allclose(ours, jax.image.resize(cut, (8, 6, 3), "linear", antialias=True), atol=0.51)


def test_the_whole_image_at_its_size_is_itself():
    whole = jnp.array(np.repeat(BOXES[:1], 4, axis=0))
    np.testing.assert_array_equal(augment.resized_crop(jnp.array(IMAGES), whole, size=(12, 15)), IMAGES)


def test_boxes_lie_inside_and_fill_the_range():
    boxes = np.asarray(augment.random_crop_boxes(jax.random.key(0), 5000, (100, 150)))
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 100).all()
    assert (left + width <= 150).all()
    shares, ratios = height * width / 15000, width / height
    assert 0.075 < shares.min() < 0.1
    assert 0.85 < shares.max() <= 1
    assert 0.72 < ratios.min() < 0.78
    assert 1.3 < ratios.max() < 1.37
    square = np.asarray(augment.random_crop_boxes(jax.random.key(0), 5000, (100, 100)))
    np.testing.assert_allclose(np.log(square[:, 3] / square[:, 2]).mean(), 0, atol=0.01)


@pytest.mark.parametrize(("size", "box"), [((10, 100), (0, 44, 10, 13)), ((100, 10), (44, 0, 13, 10))])
def test_where_no_draw_fits_the_largest_box_in_the_middle_is_taken(size, box):
    boxes = augment.random_crop_boxes(jax.random.key(0), 3, size, scale=(0.9, 1.0))
    np.testing.assert_allclose(boxes, np.repeat([box], 3, axis=0), atol=1)


def test_random_resized_crop_is_the_crop_of_its_draw():
    key, images = jax.random.key(3), jnp.array(IMAGES)
    expected = augment.resized_crop(images, augment.random_crop_boxes(key, 4, (12, 15)), size=(8, 6))
    np.testing.assert_array_equal(augment.random_resized_crop(key, images, size=(8, 6)), expected)


def test_flip():
    flips = np.array([True, False, True, True, False, False])
    expected = np.stack([image[:, ::-1] if flip else image for image, flip in zip(SMALL, flips, strict=True)])
    np.testing.assert_array_equal(augment.flip(jnp.array(SMALL), jnp.array(flips)), expected)


@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop(fill, mode):
    offsets = np.array([[0, 0], [4, 4], [2, 2], [1, 3], [0, 4], [3, 0]], np.int32)
    padded = np.pad(SMALL, ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
    expected = np.stack([p[r : r + 5, c : c + 7] for p, (r, c) in zip(padded, offsets, strict=True)])
    result = augment.crop(jnp.array(SMALL), jnp.array(offsets), padding=2, fill=fill)
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
