"""The convolution with a kernel gradient of its own, against XLA's."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from flaxcls.models import CNN
from flaxcls.models.convolution import FEW_CHANNELS, convolve

USUAL = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def gradients(function, images, kernel, padding, **options):
    def weighed(images, kernel):
        out = function(images, kernel, (1, 1), padding, **USUAL, **options)
        return jnp.sum(out * jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    return jax.grad(weighed, argnums=(0, 1))(images, kernel)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 1))])
@pytest.mark.parametrize("window", [(3, 3), (2, 4), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3, FEW_CHANNELS])
def test_values_and_gradients_are_those_of_xla(padding, window, channels):
    images = jax.random.normal(jax.random.key(0), (3, 7, 6, channels))
    kernel = jax.random.normal(jax.random.key(1), (*window, channels, 4))
    ours, plain = (f(images, kernel, (1, 1), padding, **USUAL) for f in (convolve, lax.conv_general_dilated))
    assert bool(jnp.all(ours == plain))
    for mine, expected in zip(
        gradients(convolve, images, kernel, padding),
        gradients(lax.conv_general_dilated, images, kernel, padding),
        strict=True,
    ):
        assert float(jnp.abs(mine - expected).max()) < 1e-5 * float(jnp.abs(expected).max())


@pytest.mark.parametrize("options", [{"rhs_dilation": (2, 2)}, {"feature_group_count": 2}])
def test_other_convolutions_are_left_to_xla(options):
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4 // options.get("feature_group_count", 1), 4))
    ours, plain = (gradients(f, images, kernel, "SAME", **options) for f in (convolve, lax.conv_general_dilated))
    assert all(bool(jnp.all(a == b)) for a, b in zip(ours, plain, strict=True))


def test_strides_are_left_to_xla():
    conv, plain = (nn.Conv(4, (3, 3), strides=2, **options) for options in ({"conv_general_dilated": convolve}, {}))
    images = jax.random.normal(jax.random.key(0), (2, 9, 9, 3))
    variables = plain.init(jax.random.key(1), images)
    ours, expected = (jax.grad(lambda v: model.apply(v, images).sum())(variables) for model in (conv, plain))  # noqa: B023
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), ours, expected))


def test_only_a_cpu_gets_the_product_of_matrices():
    model = CNN(num_classes=3, widths=(4,))
    images = jnp.zeros((2, 8, 8, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    traced = jax.jit(jax.grad(lambda v: model.apply(v, images, train=False).sum())).trace(variables)
    text = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    assert {name: "gather" in lowered for name, lowered in text.items()} == {"cpu": True, "cuda": False, "tpu": False}
