"""Runs docs/recipes.md from its beginning to its end."""

import re
from pathlib import Path

import numpy as np
import pytest

TEXT = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """Returns the names that the first blocks define, which the others use."""
    names = {}
    exec(BLOCKS[0], names)
    return names


@pytest.mark.slow
def test_every_recipe_runs(names, capsys):
    assert len(BLOCKS) > 8
    for block in BLOCKS[1:]:
        exec(block, names)
        assert np.all(np.isfinite(names["metrics"]["loss"])), block
    assert names["metrics"]["loss"].shape == ()
    assert len({float(loss) for loss in names["losses"]}) == 5
