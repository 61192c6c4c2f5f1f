import numpy as np
import pytest

from flaxcls.analysis.significance import holm, mcnemar


def test_mcnemar_by_hand():
    first = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 0], bool)
    second = np.array([1, 0, 0, 0, 0, 0, 1, 0, 1, 0], bool)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (5, 1)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 2**6)  # 5 or 6 heads of 6 coins, or 5 or 6 tails
    assert mcnemar(second, first)[:2] == (1, 5)
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
