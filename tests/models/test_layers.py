import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcls.errors import InputError
from flaxcls.models.layers import average_pool, max_pool


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 3), (1, 2, 3, 1)])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("ours", "theirs"), [(max_pool, nn.max_pool), (average_pool, nn.avg_pool)])
def test_equal_to_linen_with_its_gradient(ours, theirs, shape, size):
    images = jax.random.normal(jax.random.key(0), shape)  # no ties
    reference = lambda x: theirs(x, (size, size), strides=(size, size))  # noqa: E731
    np.testing.assert_allclose(ours(images, size), reference(images), rtol=1e-6)
    weights = jax.random.normal(jax.random.key(1), reference(images).shape)
    gradients = [jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(images) for f in (lambda x: ours(x, size), reference)]
    np.testing.assert_allclose(*gradients, rtol=1e-6)


def test_the_gradient_of_max_pooling_is_no_select_and_scatter():
    text = jax.jit(jax.grad(lambda x: max_pool(x, 2).sum())).lower(jnp.zeros((1, 4, 4, 1))).as_text()
    assert "select_and_scatter" not in text


def test_a_window_larger_than_the_map():
    with pytest.raises(InputError, match="2x2 pooling window does not fit a feature map of 1x5"):
        max_pool(jnp.zeros((1, 1, 5, 3)), 2)
