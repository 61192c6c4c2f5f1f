"""The network of the speed runs against one in NumPy and float64 that shares no code with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from scipy.special import erf

from flaxcls import augment, create_state
from flaxcls.errors import InputError
from flaxcls.models.airbench import Airbench, exact_gelu
from flaxcls.models.summary import count, layers
from flaxcls.models.whitening import whitening_kernel
from tests.models.test_whitening import correlated_images

WIDTHS = (4, 8, 6)
SIDE = 27  # leaves 26, 13, 6 and 3, so that one pooling drops a row
IMAGES = correlated_images(6, SIDE, SIDE)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def convolve(x, kernel):
    size = kernel.shape[0]
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return np.einsum("bhwcrs,rsco->bhwo", patches, kernel, optimize=True)


def pool(x, size):
    rows, columns = x.shape[1] // size, x.shape[2] // size
    windows = [x[:, r : rows * size : size, c : columns * size : size] for r in range(size) for c in range(size)]
    return np.max(windows, axis=0)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def by_hand(variables, images, train=True, logit_scale=1 / 256):
    """Returns logits and, in training, the running averages afterwards; all float64."""
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    params, running = variables["params"], variables["batch_stats"]
    x = convolve(images.astype(np.float64), variables["constants"]["whitening"]["kernel"])
    x = gelu(x + params["whitening"]["bias"])
    averages = {}
    for number in range(2 * len(WIDTHS)):
        x = convolve(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), params[f"Conv_{number}"]["kernel"])
        if number % 2 == 0:
            x = pool(x, 2)
        name = f"BatchNorm_{number}"
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (running[name]["mean"], running[name]["var"])
        averages[name] = {key: 0.6 * running[name][key] + 0.4 * value for key, value in (("mean", mean), ("var", var))}
        x = gelu((x - mean) / np.sqrt(var + 1e-12) + params[name]["bias"])
    x = pool(x, 3)
    return x.reshape(len(x), -1) @ params["head"]["kernel"] * logit_scale, averages


def loss_by_hand(params, rest):
    logits, _ = by_hand({**rest, "params": params}, IMAGES, logit_scale=0.1)
    return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(LABELS)), LABELS])


def model(**options):
    return Airbench(3, whiten=True, widths=WIDTHS, **options)


def evaluate(model, variables):
    return jax.jit(lambda v: model.apply(v, jnp.array(IMAGES), train=False))(variables)


@pytest.fixture(scope="module")
def variables():
    """Parameters and statistics with nothing left at 0 or 1."""
    made = jax.jit(lambda images: model().init(jax.random.key(0), images, train=False))(IMAGES)
    np.testing.assert_allclose(made["constants"]["whitening"]["kernel"], whitening_kernel(IMAGES, 2), atol=1e-3)
    rng = np.random.default_rng(1)
    shaken = jax.tree.map(lambda x: jnp.array(x + 0.1 * np.abs(rng.normal(size=x.shape)), jnp.float32), made)
    return {**shaken, "constants": made["constants"]}


def test_logits_and_averages_are_those_of_the_reference(variables):
    logits, changed = jax.jit(
        lambda v: model().apply(v, jnp.array(IMAGES), train=True, mutable=["batch_stats", "constants"])
    )(variables)
    expected, averages = by_hand(variables, IMAGES)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    for name, statistics in averages.items():
        for key, value in statistics.items():
            np.testing.assert_allclose(changed["batch_stats"][name][key], value, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(
        changed["constants"]["whitening"]["kernel"], variables["constants"]["whitening"]["kernel"]
    )

    expected, _ = by_hand(variables, IMAGES, train=False)
    np.testing.assert_allclose(evaluate(model(), variables), expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


def test_gradients_are_those_of_the_reference(variables):
    """Along a random direction of each parameter, against central differences in float64."""
    rest = {name: value for name, value in variables.items() if name != "params"}

    def loss(params):
        logits, _ = model(logit_scale=0.1).apply(
            {**rest, "params": params}, jnp.array(IMAGES), train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array(LABELS)).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(variables["params"])
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    assert float(value) == pytest.approx(loss_by_hand(params, rest), rel=1e-4)
    rng = np.random.default_rng(2)
    for layer, leaves in params.items():
        for name, leaf in leaves.items():
            gradient = np.asarray(grads[layer][name], np.float64)
            direction = rng.normal(size=leaf.shape) * np.abs(gradient).max() + gradient
            direction /= np.linalg.norm(direction)

            def at(step, layer=layer, name=name, leaf=leaf, direction=direction):
                return loss_by_hand({**params, layer: {name: leaf + step * direction}}, rest)

            expected = (at(1e-6) - at(-1e-6)) / 2e-6
            assert np.sum(gradient * direction) == pytest.approx(expected, rel=5e-3, abs=1e-5), f"{layer}/{name}"


def test_what_is_trained_and_what_is_not():
    state = jax.eval_shape(
        lambda: create_state(jax.random.key(0), Airbench(10), optax.sgd(0.1), image_shape=(32, 32, 3))
    )
    shapes = {f"{layer}/{name}": x.shape for layer, leaves in state.params.items() for name, x in leaves.items()}
    assert shapes == {
        "whitening/bias": (24,),
        **{f"BatchNorm_{i}/bias": (w,) for i, w in enumerate((64, 64, 256, 256, 256, 256))},
        "Conv_0/kernel": (3, 3, 24, 64),
        "Conv_1/kernel": (3, 3, 64, 64),
        "Conv_2/kernel": (3, 3, 64, 256),
        **{f"Conv_{i}/kernel": (3, 3, 256, 256) for i in (3, 4, 5)},
        "head/kernel": (256, 10),
    }
    assert state.model_state["constants"]["whitening"]["kernel"].shape == (2, 2, 3, 24)
    assert count(state.params) == 24 + 2 * 64 + 4 * 256 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256**2) + 2560


def test_multiply_adds_of_an_image():
    """118.15 million with 31x31, 15x15, 7x7 and 3x3 positions, but what a pooling drops is not computed."""
    macs = sum(row.flops for row in layers(Airbench(10), (32, 32, 3))) // 2
    rest = 31**2 * 12 * 24 + 9 * (15**2 * 64**2 + 7**2 * 256**2 + 3**2 * 256**2) + 2560
    pooled = lambda *sides: sum(9 * n**2 * c for n, c in zip(sides, (24 * 64, 64 * 256, 256**2), strict=True))  # noqa: E731
    assert pooled(31, 15, 7) + rest == 118_147_360
    assert macs == pooled(30, 14, 6) + rest


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_exact_gelu_and_its_derivatives(dtype, error):
    x = jnp.linspace(-8, 8, 2001).astype(dtype)
    wide = np.asarray(x, np.float64)
    distribution, density = scipy.stats.norm.cdf(wide), scipy.stats.norm.pdf(wide)
    value, slope = jax.jvp(exact_gelu, (x,), (jnp.ones_like(x),))
    bend = jax.vmap(jax.grad(jax.grad(exact_gelu)))(x)
    assert value.dtype == slope.dtype == bend.dtype == exact_gelu(x).dtype == x.dtype
    np.testing.assert_allclose(np.float64(value), wide * distribution, rtol=error, atol=1.1e-6)
    np.testing.assert_allclose(np.float64(slope), distribution + wide * density, rtol=error, atol=1.1e-6)
    np.testing.assert_allclose(np.float64(bend), (2 - wide**2) * density, rtol=3 * error, atol=20 * error)


def test_the_start():
    params = jax.jit(lambda: Airbench(10).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))()["params"]
    assert float(jnp.std(params["head"]["kernel"])) == pytest.approx(1, rel=1e-5)
    assert float(jnp.abs(params["whitening"]["bias"]).max()) < 12**-0.5
    assert float(jnp.std(params["whitening"]["bias"])) == pytest.approx((12 * 3) ** -0.5, rel=0.3)
    kernel = np.asarray(params["Conv_0"]["kernel"])
    np.testing.assert_array_equal(kernel[1, 1, :, :24], np.eye(24))
    assert np.abs(kernel[..., 24:]).max() == pytest.approx((9 * 24) ** -0.5, rel=1e-2)
    assert not np.any(params["BatchNorm_0"]["bias"])


def test_bfloat16_is_near_float32_with_parameters_in_float32(variables):
    exact, rounded = (evaluate(model(dtype=jnp.dtype(dtype)), variables) for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == jnp.float32
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.1 * float(jnp.abs(exact).max()))
    made = jax.eval_shape(lambda: model(dtype=jnp.bfloat16).init(jax.random.key(0), jnp.array(IMAGES), train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}


def test_it_is_evaluated_with_views(variables):
    views = evaluate(augment.AverageViews(model()), variables)
    both = [by_hand(variables, images, train=False)[0] for images in (IMAGES, IMAGES[:, :, ::-1])]
    np.testing.assert_allclose(views, np.mean(both, axis=0), rtol=1e-3, atol=1e-3 * np.abs(both).max())


def test_small_images_are_refused():
    with pytest.raises(InputError, match="24x24 pixels, but it halves the image until 25x25"):
        jax.eval_shape(lambda: Airbench(3).init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)), train=False))
    jax.eval_shape(lambda: Airbench(3).init(jax.random.key(0), jnp.zeros((1, 25, 25, 3)), train=False))


def test_plain_filters_without_images():
    made = jax.jit(lambda: Airbench(3, widths=(4,)).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))()
    filters = made["constants"]["whitening"]["kernel"]
    assert filters.shape == (2, 2, 3, 24)
    assert float(jnp.abs(filters).max()) == pytest.approx(12**-0.5, rel=0.05)
