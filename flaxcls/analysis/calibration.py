"""Calibration of probabilities: temperature scaling, reliability, and the expected calibration error."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from flaxcls.errors import InputError

LOWEST, HIGHEST = 0.05, 20.0
BINS = 15


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature T in 0.05..20 that minimises the log loss of softmax(logits / T) (Guo et al. 2017).

    If every prediction is right, the loss keeps falling as T goes to 0, so there is no best T. Then T is 1, which
    leaves the model's probabilities unchanged.

    Args:
      logits: f32[n k], for the validation split, so for other examples than those of the test.
      labels: i[n].

    Raises:
      InputError: if there is no example.
    """
    if len(labels) == 0:
        raise InputError("a temperature is fitted on 0 examples, but needs 1 or more: give a validation split.")
    below = np.asarray(logits, np.float64)
    below = below - below.max(axis=1, keepdims=True)  # the distance of each logit from the highest
    true = below[np.arange(len(labels)), labels]
    if (true == 0).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return (np.log(np.exp(below * inverse).sum(axis=1)) - true * inverse).mean()

    # convex in 1 / T, so there is one minimum
    found = minimize_scalar(
        loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-6, "maxiter": 200}
    )
    return float(np.exp(found.x))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Returns the probabilities f32[n k] for logits f[n k]."""
    return np.exp(log_softmax(np.asarray(logits, np.float64) / temperature, axis=1)).astype(np.float32)


class Reliability(NamedTuple):
    """Predictions grouped into bins by their confidence.

    counts: i64[bins], number of predictions in each bin.
    confidence: f64[bins], mean confidence in each bin; 0 if the bin is empty.
    accuracy: f64[bins], share of right predictions in each bin; 0 if the bin is empty.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Returns the share of right predictions at each level of confidence (the diagram of Guo et al. 2017).

    Args:
      probabilities: f[n k].
      labels: i[n].
      bins: number of bins of equal width; a bin includes its upper edge, but not its lower one.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    counts = np.bincount(index, minlength=bins)
    sums = (np.bincount(index, weights, minlength=bins) for weights in (confidence, right.astype(np.float64)))
    return Reliability(counts, *(total / np.maximum(counts, 1) for total in sums))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Returns the mean distance between confidence and accuracy over the bins of `reliability`, weighted by counts.

    See Naeini et al. 2015 and Guo et al. 2017. There must be at least one example.
    """
    found = reliability(probabilities, labels, bins)
    return float((found.counts * np.abs(found.confidence - found.accuracy)).sum() / len(labels))
