from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from flaxcls import create_state
from flaxcls.models import CNN


def test_the_same_key_gives_the_same_state_and_another_key_another():
    make = lambda seed: create_state(jax.random.key(seed), CNN(3), optax.sgd(0.1), image_shape=(8, 8, 1))  # noqa: E731
    one, same, other = make(0), make(0), make(1)
    kernels = [state.params["Dense_1"]["kernel"] for state in (one, same, other)]
    assert jnp.array_equal(kernels[0], kernels[1])
    assert not jnp.array_equal(kernels[0], kernels[2])
    assert one.step == 0
    assert one.step.dtype == jnp.int32


def test_every_other_collection_is_kept_as_model_state():
    state = create_state(jax.random.key(0), CNN(3, norm="batch"), optax.sgd(0.1), image_shape=(8, 8, 1))
    assert set(state.model_state) == {"batch_stats"}
    assert set(state.eval_variables) == {"params", "batch_stats"}


def test_the_average_starts_at_the_parameters_and_is_evaluated():
    state = create_state(jax.random.key(0), nn_dense(), optax.sgd(0.1), image_shape=(2, 2, 1), ema=True)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state.ema, state.params))
    moved = state.replace(ema=jax.tree.map(jnp.zeros_like, state.ema))
    assert moved.eval_variables["params"] is moved.ema


def nn_dense():
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(2)(images.reshape(images.shape[0], -1))

    return Flat()


class Scaled(nn.Module):
    """A model that takes its scale from the images of its initialisation, and then does costly work."""

    @nn.compact
    def __call__(self, images, train):
        scale = self.variable("constants", "scale", lambda: jnp.abs(images).max())
        x = images.reshape(images.shape[0], -1) / scale.value
        for _ in range(20):
            x = nn.Dense(512)(x)
        return nn.Dense(2)(x)


def test_a_model_is_initialised_on_the_images_and_no_more_is_computed():
    images = jnp.arange(4000 * 8 * 8, dtype=jnp.float32).reshape(-1, 8, 8, 1)
    create = jax.jit(partial(create_state, model=Scaled(), tx=optax.sgd(0.1), image_shape=(8, 8, 1)))
    compiled = create.lower(jax.random.key(0), images=images).compile()
    state = compiled(jax.random.key(0), images=images)
    assert float(state.model_state["constants"]["scale"]) == images.size - 1
    assert "dot" not in compiled.as_text()
    plain = create(jax.random.key(0))
    assert float(plain.model_state["constants"]["scale"]) == 0
    np.testing.assert_array_equal(plain.params["Dense_3"]["kernel"], state.params["Dense_3"]["kernel"])
    with pytest.raises(ValueError, match=r"images are \[4000, 8, 8, 1\], but must be \[n 8 8 3\]"):
        create_state(jax.random.key(0), Scaled(), optax.sgd(0.1), image_shape=(8, 8, 3), images=images)
