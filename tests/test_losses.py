import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from flaxcls.losses import correct, cross_entropy

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


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(5, 4\) and labels \(5, 1\) do not fit"):
        cross_entropy(jnp.array(LOGITS), jnp.array(LABELS)[:, None])


def test_correct():
    logits = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert correct(logits, jnp.array([1, 1, 1])).tolist() == [True, False, True]
    assert correct(logits, jnp.array([[0.4, 0.6], [0.3, 0.7], [0.1, 0.9]])).tolist() == [True, False, True]
