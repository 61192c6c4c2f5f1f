import numpy as np
import pytest

from flaxcls.data.stream import balanced, batch_indices, batch_mirrored, permutation


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


def test_two_epochs_show_each_example_once_mirrored():
    """Batches that span epochs, against the coin of each example and its epoch, looked up one by one."""
    seed, count, batch_size = 7, 31, 12
    coin = np.argsort(np.random.Philox(key=[seed, 2**41]).random_raw(count), kind="stable") % 2
    seen = np.zeros((6, count, 2), int)
    for position, (step, row) in enumerate((step, row) for step in range(18) for row in range(batch_size)):
        epoch = position // count
        example = batch_indices(seed, step, count=count, batch_size=batch_size)[row]
        mirrored = batch_mirrored(seed, step, count=count, batch_size=batch_size)[row]
        assert mirrored == (coin[example] == epoch % 2)
        if epoch < 6:
            seen[epoch, example, int(mirrored)] += 1
    np.testing.assert_array_equal(seen[0::2] + seen[1::2], np.ones((3, count, 2)))
    assert [epoch[:, 1].sum() for epoch in seen] == [16, 15] * 3
    assert (
        batch_mirrored(8, 0, count=count, batch_size=count) != batch_mirrored(7, 0, count=count, batch_size=count)
    ).any()


def test_an_example_that_comes_several_times_an_epoch_is_mirrored_each_time_or_never():
    labels = np.array([0] * 20 + [1] * 4)
    stream = {"count": 24, "batch_size": 24, "order": balanced(labels)}
    for epoch in range(2):
        indices, mirrored = batch_indices(3, epoch, **stream), batch_mirrored(3, epoch, **stream)
        coin = np.argsort(np.random.Philox(key=[3, 2**41]).random_raw(24), kind="stable") % 2
        np.testing.assert_array_equal(mirrored, coin[indices] == epoch)
