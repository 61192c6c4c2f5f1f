"""Whether one model is better than another on the same examples, or only seems so."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest


class McNemar(NamedTuple):
    """only_first, only_second: examples that one of two models alone predicts right. p_value: see `mcnemar`."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """Returns the exact two-sided test of McNemar 1947, that two models are right equally often on the same examples.

    Args:
      first, second: bool[n], whether each model predicts an example right.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    different = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, different).pvalue) if different else 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values of several tests, adjusted for their number as in Holm 1979."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
