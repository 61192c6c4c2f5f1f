from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss

from flaxcls.config import LossConfig
from flaxcls.losses import (
    LOSSES,
    binary_cross_entropy,
    class_weighted,
    correct,
    cross_entropy,
    focal,
    l1,
    l2,
    make_loss,
    squared_error,
)

pytestmark = pytest.mark.usefixtures("strict_types")

LOGITS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 2], np.int32)


def test_integer_labels():
    expected = -log_softmax(LOGITS.astype(float), axis=1)[np.arange(5), LABELS]
    np.testing.assert_allclose(cross_entropy(jnp.array(LOGITS), jnp.array(LABELS)), expected, rtol=1e-5)


def test_soft_labels():
    soft = np.random.default_rng(1).dirichlet(np.ones(4), 5).astype(np.float32)
    expected = -np.sum(soft * log_softmax(LOGITS.astype(float), axis=1), axis=1)
    np.testing.assert_allclose(cross_entropy(jnp.array(LOGITS), jnp.array(soft)), expected, rtol=1e-5)


def test_label_smoothing():
    smooth = 0.9 * np.eye(4)[LABELS] + 0.1 / 4
    expected = -np.sum(smooth * log_softmax(LOGITS.astype(float), axis=1), axis=1)
    for labels in (LABELS, np.eye(4, dtype=np.float32)[LABELS]):
        loss = cross_entropy(jnp.array(LOGITS), jnp.array(labels), label_smoothing=0.1)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def numpy_losses(targets):
    """Each loss for targets [b k], in float64, from the definitions."""
    logits = LOGITS.astype(float)
    p = softmax(logits, axis=1)
    sigmoid = 1 / (1 + np.exp(-logits))
    return {
        "cross_entropy": -np.sum(targets * np.log(p), axis=1),
        "squared_error": np.mean((p - targets) ** 2, axis=1),
        "binary_cross_entropy": -np.mean(targets * np.log(sigmoid) + (1 - targets) * np.log(1 - sigmoid), axis=1),
        "focal": -np.sum(targets * (1 - p) ** 2 * np.log(p), axis=1),
    }


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_loss_on_class_numbers_and_on_soft_labels(name, smoothing):
    loss = partial(LOSSES[name], label_smoothing=smoothing)
    soft = np.random.default_rng(2).dirichlet(np.ones(4), 5).astype(np.float32)
    for labels, targets in ((LABELS, np.eye(4)[LABELS]), (soft, soft.astype(float))):
        expected = numpy_losses((1 - smoothing) * targets + smoothing / 4)[name]
        np.testing.assert_allclose(loss(jnp.array(LOGITS), jnp.array(labels)), expected, rtol=2e-5)


def test_squared_error_is_sklearns_brier_score():
    probabilities = softmax(LOGITS.astype(float), axis=1)
    brier = brier_score_loss(LABELS, probabilities, labels=range(4), scale_by_half=False)
    np.testing.assert_allclose(squared_error(jnp.array(LOGITS), jnp.array(LABELS)).mean() * 4, brier, rtol=1e-5)


def test_focal_without_gamma_is_cross_entropy_and_its_gradient_is_finite_where_it_is_sure():
    args = (jnp.array(LOGITS), jnp.array(LABELS))
    np.testing.assert_allclose(focal(*args, gamma=0.0), cross_entropy(*args), rtol=1e-5)
    for gamma in (0.5, 1.0, 2.0):
        gradient = jax.grad(lambda x, gamma=gamma: focal(x, jnp.array([0]), gamma=gamma).sum())
        assert np.isfinite(gradient(jnp.array([[200.0, 0.0]]))).all()


def test_class_weights_scale_each_example_by_its_class():
    weights = jnp.array([1.0, 2.0, 0.5, 3.0])
    weighted = class_weighted(binary_cross_entropy, weights)
    plain = binary_cross_entropy(jnp.array(LOGITS), jnp.array(LABELS))
    np.testing.assert_allclose(weighted(jnp.array(LOGITS), jnp.array(LABELS)), plain * weights[LABELS], rtol=1e-6)
    half = jnp.full((5, 4), 0.25)
    plain = binary_cross_entropy(jnp.array(LOGITS), half)
    np.testing.assert_allclose(weighted(jnp.array(LOGITS), half), plain * 6.5 / 4, rtol=1e-6)


@pytest.mark.parametrize("counts", [[5, 15, 20], [5, 15, 0, 20, 0], [0, 7]])
def test_balanced_weights_have_the_mean_1_whatever_classes_are_missing(counts):
    labels = jnp.asarray(np.repeat(np.arange(len(counts)), counts))
    logits = jnp.zeros((len(labels), len(counts)))
    plain, balanced = (make_loss(LossConfig(class_weights=kind), np.array(counts)) for kind in ("none", "balanced"))
    losses = balanced(logits, labels)
    np.testing.assert_allclose(losses.mean(), plain(logits, labels).mean(), rtol=1e-6)
    sums = [float(losses[labels == label].sum()) for label in range(len(counts)) if counts[label]]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_do_not_fit(name):
    with pytest.raises(ValueError, match=r"\(5, 4\) and labels \(5, 1\) do not fit"):
        LOSSES[name](jnp.array(LOGITS), jnp.array(LABELS)[:, None])


def test_correct():
    logits = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert correct(logits, jnp.array([1, 1, 1])).tolist() == [True, False, True]
    assert correct(logits, jnp.array([[0.4, 0.6], [0.3, 0.7], [0.1, 0.9]])).tolist() == [True, False, True]


PARAMS = {
    "Conv_0": {"kernel": jnp.full((3, 3, 1, 2), -2.0), "bias": jnp.ones(2)},
    "BatchNorm_0": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    "Attention_0": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones((2, 2))},
}


def test_penalties_by_hand():
    assert l1(PARAMS) == 18 * 2 + 4 * 3
    assert l2(PARAMS) == 18 * 4 + 4 * 9
    assert l2({"bias": jnp.ones(3)}) == 0
