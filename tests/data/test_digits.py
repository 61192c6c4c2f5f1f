import numpy as np
from sklearn.datasets import load_digits

from flaxcls.config import DataConfig
from flaxcls.data import load_dataset


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


def test_the_splits_do_not_depend_on_anything_but_the_split_seed():
    one, same, other = (load_dataset(DataConfig(split_seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.test.images, same.test.images)
    assert not np.array_equal(one.test.labels[:50], other.test.labels[:50])
