"""Losses per example: (logits f32[b k], labels i32[b] | f32[b k]) -> f32[b], and penalties: params -> f32[].

Labels are class numbers or, after mixup and CutMix, probabilities of each class. `LOSSES` maps names to losses.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcls.config import LossConfig
from flaxcls.parameters import weights
from flaxcls.types import LossFn, Params, Regularizer

__all__ = [
    "LOSSES",
    "binary_cross_entropy",
    "class_weighted",
    "correct",
    "cross_entropy",
    "focal",
    "l1",
    "l2",
    "make_evaluation_loss",
    "make_loss",
    "make_regularizer",
    "probabilities",
    "squared_error",
    "with_metrics",
]


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Returns the cross-entropy between the labels and the softmax of the logits.

    Args:
      logits: f32[b k].
      labels: i32[b] class numbers, or f32[b k] probabilities of each class.
      label_smoothing: share of the label to spread evenly over the k classes (Szegedy et al. 2016,
        "Rethinking the Inception Architecture for Computer Vision").

    Returns:
      f32[b], the loss of each example, in nats.

    Raises:
      ValueError: if the shapes do not match.

    >>> cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1])).round(4)
    Array([0.6931], dtype=float32)
    """
    if labels.shape == logits.shape[:1] and label_smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, probabilities(logits, labels, label_smoothing))


def squared_error(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Returns the mean over the classes of the squared difference between softmax and label: the Brier score over k.

    Shapes, smoothing and errors are the same as in `cross_entropy`. The values are in [0, 2/k].
    """
    difference = jax.nn.softmax(logits) - probabilities(logits, labels, label_smoothing)
    return jnp.mean(jnp.square(difference), axis=-1)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Returns the mean over the classes of the binary cross-entropy of each class against all others, in nats.

    Each logit belongs to one class alone (Wightman et al. 2021, "ResNet strikes back"). Shapes, smoothing and errors
    are the same as in `cross_entropy`.
    """
    class_losses = optax.sigmoid_binary_cross_entropy(logits, probabilities(logits, labels, label_smoothing))
    return jnp.mean(class_losses, axis=-1)


def focal(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0, gamma: float = 2.0) -> jax.Array:
    """Returns the cross-entropy with the term of each class scaled by (1 - p)^gamma, so that easy examples count less.

    p is the softmax (Lin et al. 2017, "Focal Loss for Dense Object Detection"). With gamma 0 it equals `cross_entropy`.
    Shapes, smoothing and errors are the same.
    """
    log_p = jax.nn.log_softmax(logits)
    # the bound keeps the gradient finite if p rounds to 1 and gamma is below 1
    hardness = jnp.maximum(-jnp.expm1(log_p), 1e-6) ** gamma
    return -jnp.sum(probabilities(logits, labels, label_smoothing) * hardness * log_p, axis=-1)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
    "binary_cross_entropy": binary_cross_entropy,
    "focal": focal,
}


def class_weighted(loss_fn: LossFn, class_weights: jax.Array) -> LossFn:
    """Returns `loss_fn` times the weight, from f32[k], of each example's class; a soft label has the mean weight."""

    def weighted(logits: jax.Array, labels: jax.Array) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        losses, metrics = with_metrics(loss_fn, logits, labels)
        losses *= probabilities(logits, labels) @ class_weights
        return (losses, metrics) if metrics else losses

    return weighted


def probabilities(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns the labels i32[b] | f32[b k], smoothed, as probabilities f32[b k] for logits f32[b k].

    Raises ValueError if the shapes do not match.
    """
    if logits.ndim != 2 or labels.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} do not fit: [b k] and [b] or [b k] do.")
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.smooth_labels(labels, label_smoothing) if label_smoothing else labels


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns bool[b], True if the largest logit belongs to the class of the label: of a soft label, the likeliest."""
    classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
    return jnp.argmax(logits, axis=-1) == classes


def with_metrics(loss_fn: LossFn, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the losses f32[b] of a batch and the metrics {name: f32[b]} that `loss_fn` returns with them, if any."""
    returned = loss_fn(logits, labels)
    return (returned, {}) if isinstance(returned, jax.Array) else returned


def l1(params: Params) -> jax.Array:
    """Returns f32[], the sum of the absolute values of the weights, without biases and normalisation."""
    return sum((jnp.sum(jnp.abs(weight)) for weight in weights(params)), jnp.float32(0))


def l2(params: Params) -> jax.Array:
    """Returns f32[], the sum of the squares of the weights, without biases and normalisation.

    There is no factor of 1/2, as in Keras.
    """
    return sum((jnp.sum(jnp.square(weight)) for weight in weights(params)), jnp.float32(0))


def make_loss(config: LossConfig, class_counts: np.ndarray) -> LossFn:
    """Returns the training loss: with label smoothing, and with class weights if `config` asks for them.

    class_counts: i[k], training examples of each class. The weights of all examples have the mean 1; a class without
      examples takes no part.
    """
    loss_fn = partial(make_evaluation_loss(config), label_smoothing=config.label_smoothing)
    if config.class_weights == "none":
        return loss_fn
    present = np.maximum(np.count_nonzero(class_counts), 1)
    class_weights = np.where(class_counts > 0, class_counts.sum() / (present * np.maximum(class_counts, 1)), 0)
    return class_weighted(loss_fn, jnp.asarray(class_weights, jnp.float32))


def make_evaluation_loss(config: LossConfig) -> Callable[..., jax.Array]:
    """Returns the evaluation loss: without smoothing and class weights, so that runs are comparable."""
    if config.focal_gamma is not None:
        return partial(focal, gamma=config.focal_gamma)
    return LOSSES[config.name]


def make_regularizer(config: LossConfig) -> Regularizer | None:
    """Returns params -> f32[], the sum of the L1 and L2 penalties, or None if both are off."""
    if config.l1 == config.l2 == 0:
        return None
    return lambda params: config.l1 * l1(params) + config.l2 * l2(params)
