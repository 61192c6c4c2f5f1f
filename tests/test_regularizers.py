import jax.numpy as jnp
import pytest

from flaxcls.regularizers import l1, l2, weight_mask

pytestmark = pytest.mark.usefixtures("strict_types")

PARAMS = {
    "Conv_0": {"kernel": jnp.full((3, 3, 1, 2), -2.0), "bias": jnp.ones(2)},
    "BatchNorm_0": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    "Attention_0": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones((2, 2))},
}


def test_biases_and_normalisation_are_spared():
    assert weight_mask(PARAMS) == {
        "Conv_0": {"kernel": True, "bias": False},
        "BatchNorm_0": {"scale": False, "bias": False},
        "Attention_0": {"kernel": True, "bias": False},
    }


def test_penalties_by_hand():
    assert l1(PARAMS) == 18 * 2 + 4 * 3
    assert l2(PARAMS) == 18 * 4 + 4 * 9
    assert l2({"bias": jnp.ones(3)}) == 0
