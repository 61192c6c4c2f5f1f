"""`slow` marks a case that only repeats a promise: at another moment, size or place than a test of the quick run.

`python -m pytest` leaves such tests out; `python -m pytest -m "slow or not slow"` runs all.
"""

import pytest


def slow(*values, **options):
    """Returns a slow case for `pytest.mark.parametrize`."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)
