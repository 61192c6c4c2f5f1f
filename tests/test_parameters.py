import jax.numpy as jnp
import pytest

from flaxcls.errors import InputError
from flaxcls.parameters import first_matches, matching, parameter_paths, weight_mask

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


def test_globs_select_parameters_by_their_paths():
    assert parameter_paths(PARAMS)[:2] == ["Attention_0/bias", "Attention_0/kernel"]
    found = matching(("Conv_*", "*/scale"), PARAMS, "optim.freeze")
    assert found["Conv_0"] == {"kernel": True, "bias": True}
    assert found["BatchNorm_0"] == {"scale": True, "bias": False}
    assert found["Attention_0"] == {"kernel": False, "bias": False}
    with pytest.raises(InputError, match=r"optim\.freeze: unknown parameter 'Conv_1/\*'\. Did you mean 'Conv_0"):
        matching(("Conv_1/*",), PARAMS, "optim.freeze")


def test_the_first_glob_decides():
    found = dict(
        zip(parameter_paths(PARAMS), first_matches({"*/bias": 1.0, "Conv_*": 2.0}, PARAMS, "factors"), strict=True)
    )
    assert (found["Conv_0/bias"], found["Conv_0/kernel"], found["Attention_0/kernel"]) == (1.0, 2.0, None)
