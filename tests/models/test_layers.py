import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcls.errors import InputError
from flaxcls.models.layers import (
    ACTIVATIONS,
    UNIFORM_FAN_IN,
    _largest_and_place,
    _largest_then_place,
    average_pool,
    identity_init,
    max_pool,
    normalize,
    stochastic_depth,
    unit_deviation,
)
from tests.slow import slow


@pytest.mark.parametrize("shape", [slow((2, 8, 8, 3)), (2, 7, 9, 3), slow((1, 2, 3, 1))])
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


def test_leaky_relu_lets_a_hundredth_of_a_negative_value_through():
    np.testing.assert_allclose(ACTIVATIONS["leaky_relu"](jnp.array([-2.0, 3.0])), [-0.02, 3.0])


class Apply(nn.Module):
    """A module that is one call of a function which makes submodules or draws random numbers."""

    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def normalized(x, norm, train=True):
    dtype = jnp.dtype("float32")
    module = Apply(lambda x: normalize(x, norm, train, dtype=dtype))
    return module.init_with_output(jax.random.key(0), x)


@pytest.mark.parametrize(
    ("norm", "shape", "axes"),
    [("batch", (3, 2, 2, 8), (0, 1, 2)), ("group", (3, 2, 2, 2, 4), (1, 2, 4)), ("layer", (3, 2, 2, 8), (3,))],
)
def test_what_each_norm_is_over_by_numpy(norm, shape, axes):
    x = np.random.default_rng(0).standard_normal((3, 2, 2, 8)).astype(np.float32) * 3 + 1
    grouped = x.reshape(shape)  # 8 channels are 2 groups of 4
    expected = (grouped - grouped.mean(axes, keepdims=True)) / np.sqrt(grouped.var(axes, keepdims=True) + 1e-5)
    output, _ = normalized(jnp.asarray(x), norm)
    np.testing.assert_allclose(output, expected.reshape(x.shape), atol=2e-5)


@pytest.mark.parametrize(("norm", "independent"), [("batch", False), ("group", True), ("layer", True), ("none", True)])
def test_which_norms_keep_examples_apart(norm, independent):
    x = jax.random.normal(jax.random.key(0), (3, 2, 2, 8))
    together, alone = normalized(x, norm)[0][:1], normalized(x[:1], norm)[0]
    assert bool(jnp.allclose(together, alone, atol=1e-5)) == independent


@pytest.mark.parametrize("channels", [1, 3, 6, 10, 16, 18, 24, 64, 96, 320, 2048])
def test_groups_divide_any_number_of_channels(channels):
    shape = jax.eval_shape(lambda: normalized(jnp.zeros((1, 2, 2, channels)), "group")[0]).shape
    assert shape == (1, 2, 2, channels)


def test_an_unknown_norm():
    with pytest.raises(InputError, match=r"unknown norm 'bach'. Did you mean 'batch'\?"):
        normalized(jnp.zeros((1, 2, 2, 4)), "bach")


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 1, 2))
    drop = lambda train: Apply(lambda x: stochastic_depth(x, 0.25, train)).apply(  # noqa: E731
        {}, x, rngs={"dropout": jax.random.key(0)}
    )
    each = drop(True).reshape(4000, -1)
    assert jnp.array_equal(each, jnp.broadcast_to(each[:, :1], each.shape))
    np.testing.assert_allclose(np.unique(each), [0, 4 / 3], rtol=1e-6)
    assert float((each[:, 0] == 0).mean()) == pytest.approx(0.25, abs=0.03)
    assert jnp.array_equal(drop(False), x)


def test_the_gradient_of_max_pooling_goes_to_the_first_of_equal_values():
    image = jnp.array([[1.0, 5, 2, 2], [5, 0, 2, 2], [3, 3, 0, 0], [3, 4, 0, 9]]).reshape(1, 4, 4, 1)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 2) * jnp.array([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1)))(image)
    assert gradient[0, :, :, 0].tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 3, 0, 4]]


def test_the_gradient_of_max_pooling_is_the_same_on_all_platforms(monkeypatch):
    values = np.random.default_rng(0).integers(0, 4, (2, 7, 7, 3))  # many are equal
    images = jnp.asarray(values, jnp.bfloat16)
    weights = jnp.arange(2 * 3 * 3 * 3, dtype=jnp.bfloat16).reshape(2, 3, 3, 3)
    here = jax.grad(lambda x: jnp.sum(max_pool(x, 2) * weights))(images)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **others: default(*args))
    there = jax.grad(lambda x: jnp.sum(max_pool(x, 2) * weights))(images)
    np.testing.assert_array_equal(here, there)
    assert float(jnp.abs(there).sum()) == float(weights.sum())


@pytest.mark.parametrize("size", [2, 3, 13])
def test_all_platforms_have_the_same_largest_values_and_places(size):
    values = np.random.default_rng(0).integers(0, 4, (2, 2, size, 3, size, 5))  # many are equal
    windows = jnp.asarray(values, jnp.float32)
    flat = values.transpose(0, 1, 3, 5, 2, 4).reshape(2, 2, 3, 5, size**2)
    for largest, place in (_largest_then_place(windows), _largest_and_place(windows)):
        np.testing.assert_array_equal(largest, flat.max(-1))
        np.testing.assert_array_equal(place, flat.argmax(-1))


def test_max_pooling_of_large_windows_and_what_is_no_number():
    images = jax.random.normal(jax.random.key(0), (1, 26, 26, 2))
    ours, theirs = (
        jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))(images)  # noqa: B023
        for pool in (lambda x: max_pool(x, 13), lambda x: nn.max_pool(x, (13, 13), strides=(13, 13)))
    )
    assert bool(jnp.all(ours == theirs))
    assert bool(jnp.isnan(max_pool(images.at[0, 0, 0, 0].set(jnp.nan), 2)[0, 0, 0, 0]))


@pytest.mark.parametrize(("c_in", "c_out"), [(3, 5), (4, 4), (5, 2)])
def test_an_identity_hands_the_input_through(c_in, c_out):
    kernel = np.asarray(identity_init()(jax.random.key(0), (3, 3, c_in, c_out)))
    same = min(c_in, c_out)
    taps = np.zeros((3, 3, c_in, same))
    taps[1, 1, :same] = np.eye(same)
    np.testing.assert_array_equal(kernel[..., :same], taps)
    base = UNIFORM_FAN_IN(jax.random.key(0), (3, 3, c_in, c_out))
    np.testing.assert_array_equal(kernel[..., same:], base[..., same:])


def test_uniform_fan_in_reaches_to_one_over_its_root():
    kernel = UNIFORM_FAN_IN(jax.random.key(0), (3, 3, 16, 64))
    assert float(jnp.abs(kernel).max()) == pytest.approx(1 / 12, rel=1e-3)
    assert float(kernel.std()) == pytest.approx(1 / 12 / np.sqrt(3), rel=0.02)


def test_unit_deviation_scales_its_base():
    base, scaled = (init(jax.random.key(0), (20, 3)) for init in (UNIFORM_FAN_IN, unit_deviation(UNIFORM_FAN_IN)))
    np.testing.assert_allclose(scaled, np.asarray(base) / np.std(np.asarray(base, np.float64)), rtol=1e-5)
