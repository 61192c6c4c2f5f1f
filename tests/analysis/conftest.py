"""A small network that has learned, shared by the tests of what explains it."""

import jax
import numpy as np
import optax
import pytest

from flaxcls import create_state, train_step
from flaxcls.models import CNN
from tests.conftest import make_stripes


@pytest.fixture(scope="session")
def trained():
    """Returns a network trained on the stripes, its variables, and images f32[12 8 8 1] with their labels."""
    model, tx = CNN(3, widths=(8, 8), dense=(16,), norm="batch"), optax.adam(1e-2)
    images, labels = make_stripes(256)
    state = create_state(jax.random.key(0), model, tx, image_shape=(8, 8, 1))
    step = jax.jit(lambda state, batch: train_step(state, batch, jax.random.key(1), model=model, tx=tx))
    for index in range(60):
        chosen = np.arange(index * 32, (index + 1) * 32) % 256
        state, metrics = step(state, {"image": images[chosen], "label": labels[chosen].astype(np.int32)})
    assert metrics["accuracy"] == 1
    return model, state.eval_variables, images[:12].astype(np.float32) / 255, labels[:12]
