import numpy as np
import pytest

from flaxcls.data.stream import balanced, batch_indices, permutation


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (7, 7), (101, 8), (1, 1), (13, 12)])
def test_every_batch_is_full_and_every_example_comes_once_an_epoch(count, batch_size):
    epochs = 5
    steps = -(-epochs * count // batch_size)
    batches = [batch_indices(3, step, count=count, batch_size=batch_size) for step in range(steps)]
    assert all(len(batch) == batch_size for batch in batches)
    stream = np.concatenate(batches)[: epochs * count].reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(count), (epochs, 1)))


def test_a_batch_may_span_several_epochs():
    assert sorted(batch_indices(0, 0, count=2, batch_size=6).tolist()) == [0, 0, 0, 1, 1, 1]


def test_batch_i_depends_on_seed_and_i_alone():
    late_first = batch_indices(5, 40, count=100, batch_size=16).tolist()
    for step in range(40):
        batch_indices(5, step, count=100, batch_size=16)
    assert batch_indices(5, 40, count=100, batch_size=16).tolist() == late_first
    assert batch_indices(6, 40, count=100, batch_size=16).tolist() != late_first


def test_epochs_are_ordered_differently():
    assert permutation(0, 0, 50).tolist() != permutation(0, 1, 50).tolist()


def test_the_order_is_the_same_in_every_version():
    """A resumed run and a second host must see the same order, whatever NumPy they have."""
    assert permutation(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert batch_indices(0, 0, count=8, batch_size=4).tolist() == [0, 2, 1, 5]


def test_balanced_epochs_hold_as_many_of_each_class():
    labels = np.array([0] * 70 + [1] * 25 + [2] * 5)
    order = balanced(labels)
    epochs = [order(3, epoch, 100) for epoch in range(3)]
    for epoch in epochs:
        assert np.bincount(labels[epoch]).tolist() == [34, 33, 33]
        rare = np.bincount(epoch)[95:]
        assert rare.min() >= 6
        assert rare.max() <= 7
        assert len(np.unique(epoch[labels[epoch] == 0])) == 34  # of a frequent class, none twice
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(balanced(labels)(3, 1, 100), epochs[1])
    batches = [batch_indices(3, step, count=100, batch_size=40, order=order) for step in range(5)]
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate(epochs)[:200])
