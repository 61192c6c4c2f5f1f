from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import Partial
from scipy.stats import spearmanr

from flaxcls.analysis.activations import grad_cam
from flaxcls.analysis.explanation import completeness_gap, integrated_gradients, occlusion, smooth_grad
from flaxcls.errors import InputError
from flaxcls.models import MODELS
from tests.slow import slow

RNG = np.random.default_rng(0)
CORNER = np.zeros((1, 8, 8, 1), np.float32)
CORNER[:, :4, :4] = 1


class Corner(nn.Module):
    """Looks at 4x4 pixels of 8x8."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(nn.Conv(6, (3, 3), use_bias=False)(images * CORNER) * CORNER)
        return nn.Dense(3)(jnp.square(x).mean(axis=(1, 2)))


class Own(nn.Module):
    """Anybody's module, without a convolution."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.gelu(nn.Dense(16)(images.reshape(len(images), -1)))
        return nn.Dense(3)(nn.LayerNorm()(x))


def randomised(variables, seed=1):
    """Returns other parameters and batch statistics of the same scale: all numbers of an array change places."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.permutation(np.asarray(x).ravel()).reshape(x.shape), variables)


def filled(model, images):
    """Returns variables as a network that was trained may have them; to initialise it takes long to compile."""
    rng = np.random.default_rng(0)

    def fill(path, shape):
        name, size = jax.tree_util.keystr(path), shape.shape
        if "kernel" in name:
            return rng.normal(size=size, scale=(2 / np.prod(size[:-1])) ** 0.5).astype(np.float32)
        if "scale" in name or "var" in name:
            return rng.uniform(0.5, 1.5, size).astype(np.float32)
        return rng.normal(size=size, scale=0.1).astype(np.float32)

    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def readout(logits_fn, images, classes):
    return np.asarray(jax.jit(logits_fn)(images))[np.arange(len(classes)), classes]


@pytest.mark.parametrize("name", [slow("cnn"), slow("resnet20"), "own"])
def test_integrated_gradients_sum_to_the_difference_of_the_logits(name, trained):
    if name == "cnn":
        model, variables, images, classes = trained
    elif name == "resnet20":
        model, images, classes = MODELS[name](3), RNG.random((2, 16, 16, 3), np.float32), np.array([2, 0])
        variables = filled(model, images)
    else:
        model, images, classes = Own(), RNG.random((3, 4, 4, 1), np.float32), np.array([1, 2, 0])
        variables = model.init(jax.random.key(0), images, train=False)
    logits_fn = Partial(partial(model.apply, train=False), variables)
    for baseline in (0.0, np.full(images.shape[1:], 0.3, np.float32)):
        start = np.broadcast_to(np.float32(baseline), images.shape)
        difference = readout(logits_fn, images, classes) - readout(logits_fn, start, classes)
        found = integrated_gradients(logits_fn, images, classes, baseline=baseline)
        assert found.shape == images.shape
        np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), difference, rtol=0.0101)


def test_the_gap_of_what_is_not_complete():
    """F = x y from 0: half of the product each; a logit that jumps between two of the most steps cannot be found."""
    images = np.float32([[[[2.0], [3.0]]], [[[1.0], [1.0]]], [[[0.0], [0.0]]]])

    def product(x):
        return (x[:, 0, 0, 0] * x[:, 0, 1, 0])[:, None]

    found = integrated_gradients(product, images, [0, 0, 0], baseline=0.0)
    np.testing.assert_allclose(completeness_gap(found, product, images, [0, 0, 0], baseline=0.0), 0, atol=1e-6)
    gaps = completeness_gap(0.75 * found + 0.01, product, images, [0, 0, 0], baseline=0.0)
    np.testing.assert_allclose(gaps, [(0.25 * 6 - 0.02) / 6, 0.25 - 0.02, np.inf], rtol=1e-5)

    found = integrated_gradients(product, images[:1], [0], baseline=1.0)
    np.testing.assert_allclose(completeness_gap(found, product, images[:1], [0], baseline=1.0), 0, atol=1e-6)

    def jump(x):
        return jax.nn.sigmoid(1e5 * (x.mean(axis=(1, 2)) - 0.3001))

    found = integrated_gradients(jump, images[1:2], [0], baseline=0.0)
    np.testing.assert_allclose(completeness_gap(found, jump, images[1:2], [0], baseline=0.0), 1, atol=1e-3)


def test_integrated_gradients_of_a_product():
    """F = x y: the line from 0 has the gradient (t y, t x), so each of them gets half of the product."""
    images = np.float32([[[[2.0], [3.0]]]])
    found = integrated_gradients(
        lambda x: jnp.stack([x[:, 0, 0, 0] * x[:, 0, 1, 0], x[:, 0, 0, 0]], axis=1), images, [0], baseline=0.0
    )
    np.testing.assert_allclose(found.ravel(), [3, 3], rtol=1e-6)
    images = np.repeat(images, 2, axis=0)
    found = integrated_gradients(
        lambda x: jnp.stack([x[:, 0, 0, 0] * x[:, 0, 1, 0], x[:, 0, 0, 0]], axis=1), images, [0, 1], baseline=1.0
    )
    np.testing.assert_allclose(found.reshape(2, 2), [[2, 3], [1, 0]], rtol=1e-6)


def test_smooth_grad_of_squares():
    """The gradient of x^2 is 2 x, whose mean over the noise is that; the noise of it is that of the mean."""
    images = np.full((2, 4, 4, 1), 0.5, np.float32)
    call = partial(smooth_grad, lambda x: jnp.square(x).sum(axis=(1, 2)), images, [0, 0], key=jax.random.key(0))
    np.testing.assert_allclose(call(noise=0.0), np.ones_like(images))
    for samples in (50, 400):  # 50 are no multiple of what is computed at once
        assert call(noise=0.5, samples=samples).std() == pytest.approx(2 * 0.5 / samples**0.5, rel=0.35)
    assert call(noise=0.5, samples=400).mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (3, 2), (4, 4)])
def test_occlusion_by_brute_force(size, stride):
    images = RNG.random((2, 6, 7, 2), np.float32)
    weights = RNG.normal(size=(6 * 7 * 2, 3)).astype(np.float32)
    fill = np.float32([0.3, 0.7])

    def logits_fn(x):
        return jnp.square(x).reshape(len(x), -1) @ weights

    def logit(image, label):
        return (image.astype(np.float64) ** 2).ravel() @ weights[:, label]

    classes = [2, 0]
    expected = np.zeros((2, 6, 7))
    rows = sorted({*range(0, 6 - size + 1, stride), 6 - size})
    columns = sorted({*range(0, 7 - size + 1, stride), 7 - size})
    for b in range(2):
        for i in range(6):
            for j in range(7):
                falls = []
                for row in rows:
                    for column in columns:
                        if row <= i < row + size and column <= j < column + size:
                            hidden = images[b].copy()
                            hidden[row : row + size, column : column + size] = fill
                            falls.append(logit(images[b], classes[b]) - logit(hidden, classes[b]))
                expected[b, i, j] = np.mean(falls)
    found = occlusion(logits_fn, images, classes, size=size, stride=stride, fill=fill)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("size", "stride"), [(0, 0), (3, 4), (9, 1)])
def test_squares_that_do_not_cover_the_image(size, stride):
    with pytest.raises(InputError, match=f"a square of {size} pixels every {stride}"):
        occlusion(lambda x: x.mean(axis=(1, 2)), np.zeros((1, 8, 8, 1)), [0], size=size, stride=stride, fill=0.0)


@pytest.mark.parametrize("method", ["integrated-gradients", "smooth-grad", "occlusion", "grad-cam"])
def test_a_model_that_reads_one_corner_is_explained_by_it(method):
    model = Corner()
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)  # the same, whatever other tests have drawn
    variables = model.init(jax.random.key(0), images, train=False)
    logits_fn = Partial(partial(model.apply, train=False), variables)
    classes = np.asarray(logits_fn(images)).argmax(axis=1)
    if method == "integrated-gradients":
        found = integrated_gradients(logits_fn, images, classes, baseline=0.0)
    elif method == "smooth-grad":
        found = smooth_grad(logits_fn, images, classes, key=jax.random.key(1))
    elif method == "occlusion":
        found = occlusion(logits_fn, images, classes, size=2, stride=1, fill=0.5)
    else:
        found = grad_cam(model, variables, images, classes)
    heat = np.abs(found.reshape(3, 8, 8, -1)).sum(axis=3)
    corner = heat[:, :4, :4].sum(axis=(1, 2))
    assert np.all(corner > 0)
    edge = 1 if method == "occlusion" else 2 if method == "grad-cam" else 0  # squares reach over it, 3x3 filters too
    assert np.all(heat[:, 4 + edge :] <= 1e-6 * heat.max())
    assert np.all(heat[:, :, 4 + edge :] <= 1e-6 * heat.max())
    assert np.all(corner > 0.6 * heat.sum(axis=(1, 2)))


@pytest.mark.parametrize("method", ["integrated-gradients", "smooth-grad", "occlusion", "grad-cam"])
def test_randomised_parameters_change_the_picture(method, trained):
    """Adebayo et al. 2018, "Sanity Checks for Saliency Maps"."""
    model, variables, images, labels = trained

    def picture(variables):
        logits_fn = partial(model.apply, variables, train=False)
        if method == "integrated-gradients":
            return integrated_gradients(logits_fn, images, labels, baseline=0.0)
        if method == "smooth-grad":
            return smooth_grad(logits_fn, images, labels, key=jax.random.key(0))
        if method == "occlusion":
            return occlusion(logits_fn, images, labels, size=2, stride=1, fill=0.3)
        return grad_cam(model, variables, images, labels)

    found = picture(variables)
    again, other = (spearmanr(found.ravel(), picture(v).ravel()).statistic for v in (variables, randomised(variables)))
    assert again == pytest.approx(1)
    assert abs(other) < 0.5


def test_parameters_are_not_compiled_in():
    """One program does for all parameters, as `Partial` makes them its arguments."""
    model, traced = Own(), []

    def apply(variables, images):
        traced.append(1)
        return model.apply(variables, images, train=False)

    images = RNG.random((1, 4, 4, 1), np.float32)
    for seed in range(3):
        variables = model.init(jax.random.key(seed), images, train=False)
        integrated_gradients(Partial(apply, variables), images, [seed], baseline=0.0, steps=1024)
    assert len(traced) == 2  # logits and gradients
