"""`slow` marks a test that repeats a promise at another moment, size or place, or that runs a whole experiment.

`python -m pytest` leaves such tests out; `python -m pytest -m "slow or not slow"` runs all.
"""

import pytest


def slow(*values, **options):
    """Returns a slow case for `pytest.mark.parametrize`."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)


def all_slow_but(values, *quick):
    """Returns the values for `pytest.mark.parametrize`, with all of them slow that are not among `quick`."""
    return [value if value in quick else slow(value) for value in values]
