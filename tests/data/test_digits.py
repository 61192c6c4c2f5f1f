import numpy as np
import pytest
from sklearn.datasets import load_digits

from flaxcls.config import DataConfig
from flaxcls.data import digits, load_dataset
from flaxcls.errors import InputError


def test_digits_are_all_there_in_three_disjoint_stratified_splits():
    dataset = load_dataset(DataConfig())
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(split.labels) for split in splits] == [1295, 143, 359]
    assert dataset.class_names == tuple("0123456789")
    assert dataset.image_shape == (8, 8, 1)
    every = np.concatenate([split.images for split in splits])
    ours = sorted(image.tobytes() for image in every)
    theirs = np.round(load_digits().images[..., np.newaxis] * 255 / 16).astype(np.uint8)
    assert ours == sorted(image.tobytes() for image in theirs)
    assert every.max() == 255
    for split in splits:
        assert np.ptp(np.bincount(split.labels)) <= 0.12 * len(split.labels) / 10 + 1


@pytest.mark.parametrize("found", [True, False])
def test_they_are_read_as_scikit_learn_reads_them_and_by_it_where_its_file_is_elsewhere(monkeypatch, found):
    if not found:
        monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    images, labels = digits._digits()
    theirs = load_digits()
    np.testing.assert_array_equal(images, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)


def test_the_splits_do_not_depend_on_anything_but_the_split_seed():
    one, same, other = (load_dataset(DataConfig(split_seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.test.images, same.test.images)
    assert not np.array_equal(one.test.labels[:50], other.test.labels[:50])


def test_train_examples_takes_part_of_the_training_split_only():
    whole, part = load_dataset(DataConfig()), load_dataset(DataConfig(train_examples=100))
    assert set(np.bincount(part.train.labels)) <= {9, 10, 11}
    rows = lambda split: {image.tobytes() for image in split.images}  # noqa: E731
    assert rows(part.train) <= rows(whole.train)
    np.testing.assert_array_equal(part.test.images, whole.test.images)
    np.testing.assert_array_equal(part.validation.images, whole.validation.images)


def test_more_train_examples_than_there_are_is_an_error():
    with pytest.raises(InputError, match=r"data.train_examples is 9999, but the train split of 'digits' has 1295"):
        load_dataset(DataConfig(train_examples=9999))
