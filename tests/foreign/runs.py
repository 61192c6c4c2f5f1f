"""A whole run with parts of others, and the same run in two sessions."""

import chex
import jax
import numpy as np
import pytest

from flaxcls.analysis import load_run
from flaxcls.errors import Interrupted
from flaxcls.run import fit
from tests.conftest import forget_programs


def assert_resumes_and_loads(config, dataset, model, tx, place, console):
    """Trains, stops, resumes and loads, and compares bits of the parameters and the accuracy."""
    options = {"dataset": dataset, "model": model, "tx": tx, "console": console}
    whole = fit(config, workdir=place / "whole", **options)
    with pytest.raises(Interrupted):
        fit(config, workdir=place / "parts", stop_after=5, **options)
    forget_programs()  # so that the program is described again, as in another process
    parts = fit(config, workdir=place / "parts", resume=True, **options)
    assert parts.fingerprint == whole.fingerprint
    loaded = load_run(place / "whole", model=model)
    loaded_numbers, numbers = (
        jax.tree.map(as_numbers, tree) for tree in (loaded.variables, whole.state.eval_variables)
    )
    chex.assert_trees_all_equal(loaded_numbers, numbers)
    predicted = loaded.predict(dataset.test.images).labels
    assert np.mean(predicted == dataset.test.labels) == pytest.approx(whole.test["accuracy"])


def as_numbers(leaf):
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)
