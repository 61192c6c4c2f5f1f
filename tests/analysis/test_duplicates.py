import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from flaxcls.analysis.duplicates import near_duplicates
from flaxcls.data import Split


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in small])


def split(images):
    return Split(images, np.zeros(len(images), np.int32))


def as_jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=60)
    return np.asarray(Image.open(file))


def test_copies_are_found_though_they_are_compressed_or_brighter(pictures):
    brighter = (pictures[7] * 0.8 + 40).astype(np.uint8)
    test = np.stack([pictures[10], as_jpeg(pictures[3]), brighter, pictures[11]])
    found = near_duplicates(split(test), split(pictures[:10]))
    assert {(pair.first, pair.second) for pair in found} == {(1, 3), (2, 7)}
    assert all(0.985 < pair.correlation <= 1 for pair in found)
    assert [pair.correlation for pair in found] == sorted((pair.correlation for pair in found), reverse=True)


def test_photos_of_different_things_are_not_alike():
    photos = [image[:400, left : left + 400] for image in load_sample_images().images for left in (0, 200)]
    test, train = split(np.stack(photos[::2])), split(np.stack(photos[1::2]))
    assert near_duplicates(test, train) == []


def test_floats_grey_images_and_images_of_one_colour(pictures):
    test = split(np.stack([pictures[2], np.full_like(pictures[0], 90)]))
    train = split(np.concatenate([pictures, np.full_like(pictures[:1], 90)]).astype(np.float32) / 255)
    assert [pair[:2] for pair in near_duplicates(Split(test.images / np.float32(255), test.labels), train)] == [(0, 2)]
    grey = pictures.mean(axis=3, keepdims=True).astype(np.uint8)
    assert [pair[:2] for pair in near_duplicates(split(grey[4:5]), split(grey))] == [(0, 4)]
    assert near_duplicates(split(pictures[:0]), train) == []
