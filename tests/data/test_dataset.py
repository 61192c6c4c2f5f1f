import numpy as np
import pytest

from flaxcls.data import channel_statistics, from_arrays
from flaxcls.data.dataset import stratified_order, stratified_split
from flaxcls.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(100) % 4


def rows(images):
    return {image.tobytes() for image in images}


def test_the_splits_are_disjoint_stratified_and_whole():
    dataset = from_arrays(IMAGES, LABELS, validation_fraction=0.25, test_fraction=0.2)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(split.labels) for split in splits] == [60, 20, 20]
    assert rows(np.concatenate([split.images for split in splits])) == rows(IMAGES)
    for split in splits:
        assert len(set(np.bincount(split.labels).tolist())) == 1


def test_all_is_trained_on_without_a_validation_fraction():
    dataset = from_arrays(IMAGES, LABELS, validation_fraction=0, test_fraction=0.2)
    assert dataset.validation is None
    assert dataset.sizes == (80, 0, 20)
    assert dataset.described == "data set arrays: 80 train, 20 test images of 4 classes"
    assert list(dataset.class_counts) == ["train", "test"]
    assert sum(dataset.class_counts["train"].values()) == 80
    given = from_arrays(IMAGES, LABELS, validation=(IMAGES[:7], LABELS[:7]), validation_fraction=0)
    assert given.sizes == (80, 7, 20)


def test_the_splits_are_decided_by_their_seed():
    one, same, other = (from_arrays(IMAGES, LABELS, split_seed=seed) for seed in (1, 1, 2))
    assert rows(one.test.images) == rows(same.test.images)
    assert rows(one.test.images) != rows(other.test.images)


def test_stratified_split_rounds_class_by_class():
    labels = np.repeat([0, 1, 2, 3], [10, 5, 1, 0])
    rest, held_out = stratified_split(labels, 0.3, seed=0)
    assert np.bincount(labels[held_out], minlength=4).tolist() == [3, 2, 0, 0]
    assert sorted([*rest, *held_out]) == list(range(16))


def test_each_beginning_of_the_stratified_order_is_stratified():
    labels = np.repeat([0, 1, 2], [30, 60, 10])
    order = stratified_order(labels, seed=1)
    assert sorted(order) == list(range(100))
    for count in (10, 20, 50, 90):
        assert np.bincount(labels[order[:count]]).tolist() == [0.3 * count, 0.6 * count, 0.1 * count]
    assert stratified_order(labels, seed=2).tolist() != order.tolist()


def test_given_splits_are_taken_as_they_are():
    dataset = from_arrays(IMAGES, LABELS, test=(IMAGES[:7], LABELS[:7]), validation=(IMAGES[7:9], LABELS[7:9]))
    assert len(dataset.train.labels) == 100
    np.testing.assert_array_equal(dataset.test.images, IMAGES[:7])
    np.testing.assert_array_equal(dataset.validation.labels, LABELS[7:9])


def test_grey_images_may_lack_the_channel_axis():
    assert from_arrays(IMAGES[..., 0], LABELS).image_shape == (6, 5, 1)


def test_floats_of_0_to_1_are_taken_as_float32():
    dataset = from_arrays(IMAGES / 255, LABELS)
    assert dataset.train.images.dtype == np.float32


@pytest.mark.parametrize("images", [IMAGES, (IMAGES / 255).astype(np.float32)])
def test_channel_statistics(images):
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (IMAGES / 255).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, (IMAGES / 255).std((0, 1, 2)), rtol=1e-5)


def test_a_constant_channel_has_the_deviation_1():
    mean, std = channel_statistics(np.full((5, 2, 2, 1), 51, np.uint8))
    assert (mean.item(), std.item()) == (0.2, 1.0)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (IMAGES, LABELS - 1, {}, r"labels are -1 to 2, but must be class numbers from 0"),
        (IMAGES, LABELS, {"class_names": ("a", "b")}, r"label \d, but its 2 classes are numbered 0\.\.1"),
        (IMAGES, LABELS[:50], {}, r"100 images, but labels of shape \(50,\)"),
        (IMAGES, LABELS.astype(float), {}, "labels are float64, but must be integers"),
        (IMAGES.reshape(100, -1), LABELS, {}, r"shape \(100, 90\), but must be \[n h w c\]"),
        (IMAGES.astype(int), LABELS, {}, "images are int64, but must be uint8"),
        (IMAGES.astype(float), LABELS, {}, r"float images are in 0\.\.255, but must be in 0\.\.1"),
        (IMAGES[:0], LABELS[:0], {}, "the train split of 'arrays' has no example"),
        (IMAGES, LABELS, {"validation_fraction": 1}, "validation_fraction is 1, but must be 0 or more and below 1"),
        (IMAGES, LABELS, {"validation_fraction": 0.01}, "the validation split of 'arrays' has no example"),
        (IMAGES, LABELS, {"test_fraction": -0.1}, r"test_fraction is -0\.1, but must be above 0"),
        (IMAGES[:4], LABELS[:4], {}, "the validation split of 'arrays' has no example"),
        (
            IMAGES,
            LABELS,
            {"test": (IMAGES[:, :5], LABELS)},
            r"test split of 'arrays' has images uint8\[5, 5, 3\], but train",
        ),
    ],
)
def test_arrays_that_do_not_fit(images, labels, options, message):
    with pytest.raises(InputError, match=message):
        from_arrays(images, labels, **options)
