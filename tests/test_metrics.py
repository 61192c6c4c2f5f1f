import jax.numpy as jnp
import pytest

from flaxcls.metrics import MetricSums

pytestmark = pytest.mark.usefixtures("strict_types")


def test_merging_batches_of_different_sizes_is_no_mean_of_means():
    large = MetricSums(jnp.float32(6.0), jnp.int32(3), jnp.int32(3))
    small = MetricSums(jnp.float32(10.0), jnp.int32(0), jnp.int32(1))
    assert MetricSums.empty().merge(large).merge(small).compute() == {"loss": 4.0, "accuracy": 0.75}


def test_no_example_has_no_mean():
    with pytest.raises(ValueError, match="no example was counted"):
        MetricSums.empty().compute()
