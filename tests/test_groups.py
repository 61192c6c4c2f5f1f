import jax.numpy as jnp
import pytest

from flaxcls.config import OptimConfig
from flaxcls.errors import InputError
from flaxcls.groups import factors

PARAMS = {
    "Conv_0": {"bias": jnp.ones(2), "kernel": jnp.ones((3, 3, 1, 2))},
    "Dense_0": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))},
    "Dense_1": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))},
}


def test_the_first_key_that_matches_decides():
    config = OptimConfig(
        rate_factors={"Dense_1/*": 3, "Dense_*": 0.1, "*/kernel": 2.0},
        decay_factors={"Conv_?/bias": 0.5, "Dense_[0]/*": 0.0},
    )
    assert factors(config, PARAMS) == [(1.0, 0.5), (2.0, 1.0), (0.1, 0.0), (0.1, 0.0), (3.0, 0.0), (3.0, 1.0)]


def test_without_a_key_the_rate_is_everywhere_and_decay_is_of_the_weights():
    assert factors(OptimConfig(), PARAMS) == [(1.0, 0.0), (1.0, 1.0)] * 3


@pytest.mark.parametrize("name", ["rate_factors", "decay_factors"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ["Dens_0/kernel"],
            r"unknown parameter 'Dens_0/kernel'. Did you mean 'Dense_0/kernel'\?.*Conv_0/bias, Conv_0/ker",
        ),
        (["dense_*"], r"unknown parameter 'dense_\*'.*Dense_1/kernel"),
        (["*", "Dense_*"], r"'Dense_\*' stands behind keys that match the same parameters: put it before them"),
    ],
)
def test_a_key_that_decides_nothing_is_refused(name, keys, message):
    with pytest.raises(InputError, match=rf"optim\.{name}: {message}"):
        factors(OptimConfig(**{name: dict.fromkeys(keys, 0.5)}), PARAMS)
