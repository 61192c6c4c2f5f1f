import numpy as np
import pytest
from scipy.special import softmax as reference

from flaxcls.analysis.calibration import expected_calibration_error, fit_temperature, reliability, softmax
from flaxcls.errors import InputError


def test_a_temperature_worked_by_hand():
    # Four examples of two classes, each with logits log 9 apart, of which three are right. The best probability of
    # the predicted class is 3/4, that is log 3 apart: T = log 9 / log 3 = 2.
    logits = np.array([[np.log(9), 0], [0, np.log(9)], [np.log(9), 0], [np.log(9), 0]], np.float32)
    assert fit_temperature(logits, np.array([0, 1, 0, 1])) == pytest.approx(2, rel=1e-4)
    np.testing.assert_allclose(softmax(logits, 2)[0], [0.75, 0.25], rtol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(factor):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3))
    labels = (rng.random((20_000, 1)) > reference(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.05)


def test_examples_without_a_best_temperature():
    logits, labels = np.array([[4.0, 0], [0, 3]], np.float32), np.array([0, 1])
    assert fit_temperature(logits, labels) == 1  # all right: the smaller T, the smaller the loss
    assert fit_temperature(logits, 1 - labels) == pytest.approx(20, rel=1e-3)  # all wrong: the larger, the smaller
    # 999 right by 1 and one wrong by next to nothing: the best T is below the range
    nearly = np.array([[1.0, 0]] * 999 + [[1e-6, 0]])
    assert fit_temperature(nearly, np.array([0] * 999 + [1])) == pytest.approx(0.05, rel=1e-3)
    with pytest.raises(InputError, match="0 examples"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, int))


def test_calibration_error_worked_by_hand():
    # With 4 bins: .875 (right) and .8125 (wrong) are in the last, mean .84375 and accuracy 1/2; .75 (right), on the
    # edge, and .625 (wrong) in the third, mean .6875 and accuracy 1/2. (2 * .34375 + 2 * .1875) / 4 = 1.0625 / 4.
    first = np.array([0.875, 0.8125, 0.75, 0.625])
    probabilities, labels = np.stack([first, 1 - first], axis=1), np.array([0, 1, 0, 1])
    found = reliability(probabilities, labels, bins=4)
    np.testing.assert_array_equal(found.counts, [0, 0, 2, 2])
    np.testing.assert_array_equal(found.confidence, [0, 0, 0.6875, 0.84375])
    np.testing.assert_array_equal(found.accuracy, [0, 0, 0.5, 0.5])
    assert expected_calibration_error(probabilities, labels, bins=4) == 1.0625 / 4


def test_certain_and_uniform_predictions_have_their_bins():
    probabilities = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], np.float32)
    found = reliability(probabilities, np.array([0, 0]))
    assert found.counts.sum() == 2
    assert found.counts[14] == 1


def test_softmax_does_not_overflow():
    assert softmax(np.array([[1e4, 0.0]])).tolist() == [[1, 0]]
