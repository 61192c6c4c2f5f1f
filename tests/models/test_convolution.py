"""The convolution with a kernel gradient of its own, against XLA's."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from flaxcls.models import CNN
from flaxcls.models.convolution import CHUNK_BYTES, MOST_CHUNKS, convolve
from tests.slow import slow

LAYOUT = ("NHWC", "HWIO", "NHWC")


def gradients(function, images, kernel, padding, *, strides=(1, 1), layout=LAYOUT, **options):
    def weighed(images, kernel):
        out = function(images, kernel, strides, padding, dimension_numbers=layout, **options)
        return jnp.sum(out * jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    return jax.grad(weighed, argnums=(0, 1))(images, kernel)


def check(images, kernel, padding, **options):
    for ours, plain in zip(
        *(gradients(f, images, kernel, padding, **options) for f in (convolve, lax.conv_general_dilated)), strict=True
    ):
        assert float(jnp.abs(ours - plain).max()) < 1e-5 * float(jnp.abs(plain).max())


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("flaxcls.models.convolution.CHUNK_BYTES", 512)


@pytest.mark.parametrize("padding", ["SAME", slow("VALID"), ((1, 2), (0, 1))])
@pytest.mark.parametrize("window", [slow((3, 3)), (2, 4), slow((1, 1))])
def test_gradients_are_those_of_xla(padding, window, small_parts):
    check(normal(0, 6, 7, 6, 3), normal(1, *window, 3, 4), padding)


@pytest.mark.parametrize(
    "options",
    [{"strides": (2, 2)}, {"lhs_dilation": (2, 1)}, {"rhs_dilation": (2, 2)}, {"feature_group_count": 2}],
    ids=lambda options: next(iter(options)),
)
def test_strides_dilations_and_groups(options, small_parts):
    check(
        normal(0, 6, 9, 9, 4),
        normal(1, 3, 3, 4 // options.get("feature_group_count", 1), 4),
        ((1, 1), (0, 1)),
        **options,
    )


def test_a_batch_that_is_not_the_first_axis_is_left_to_xla(small_parts):
    check(normal(0, 7, 6, 6, 3), normal(1, 3, 3, 3, 4), "SAME", layout=("HNWC", "HWIO", "HNWC"))


def test_what_it_returns_is_xlas_own():
    images, kernel = normal(0, 4, 8, 8, 3), normal(1, 3, 3, 3, 4)
    ours, plain = (
        f(images, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT) for f in (convolve, lax.conv_general_dilated)
    )
    assert bool(jnp.all(ours == plain))


def convolutions(batch, side, features):
    """Returns how many convolutions the gradient of a kernel is made of, by platform."""
    images, kernel = jnp.zeros((batch, side, side, 3)), jnp.zeros((1, 1, 3, features))
    gradient = jax.grad(lambda w: convolve(images, w, (1, 1), "SAME", dimension_numbers=LAYOUT).sum())
    traced = jax.jit(gradient).trace(kernel)
    return {
        name: traced.lower(lowering_platforms=(name,)).as_text().count("stablehlo.convolution")
        for name in ("cpu", "cuda", "tpu")
    }


@pytest.mark.parametrize(
    ("batch", "features", "parts"),
    [
        (8, CHUNK_BYTES // 4 // 64 // 8, 1),
        (8, CHUNK_BYTES // 4 // 64 // 8 + 1, 2),
        (6, CHUNK_BYTES // 4 // 64, 6),
        (7, 1, 1),
    ],
)
def test_parts_of_the_batch_that_fit_on_cpus_and_the_whole_elsewhere(batch, features, parts):
    whole = 1 + 1  # what is convolved, and its gradient
    found = convolutions(batch, 8, features)
    assert found["cpu"] - found["cuda"] == parts - 1
    assert found["cuda"] == found["tpu"] <= whole


def test_there_is_a_most_of_parts():
    found = convolutions(2 * MOST_CHUNKS, 8, CHUNK_BYTES // 4 // 64)
    assert found["cpu"] - found["cuda"] == MOST_CHUNKS - 1


def test_the_network_of_the_tutorial_uses_it():
    model, images = CNN(num_classes=3, widths=(64,)), jnp.zeros((16, 24, 24, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    traced = jax.jit(jax.grad(lambda v: model.apply(v, images, train=False).sum())).trace(variables)
    on = {name: traced.lower(lowering_platforms=(name,)).as_text().count("convolution") for name in ("cpu", "cuda")}
    assert on["cpu"] > on["cuda"]
