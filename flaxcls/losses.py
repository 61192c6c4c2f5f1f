"""Losses, an example each: (logits f32[b k], labels i32[b] | f32[b k]) -> f32[b]. `LOSSES` maps their names to them.

Labels are class numbers or, as mixup and CutMix give them, probabilities of each class.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from flaxcls.types import LossFn


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy between the labels and the softmax of the logits.

    Args:
      logits: f32[b k].
      labels: i32[b] class numbers, or f32[b k] probabilities of each class.
      label_smoothing: share of the label that is spread evenly over the k classes (Szegedy et al. 2016,
        "Rethinking the Inception Architecture for Computer Vision").

    Returns:
      f32[b], the loss of each example, in nats.

    Raises:
      ValueError: if the shapes do not fit together.

    >>> cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1])).round(4)
    Array([0.6931], dtype=float32)
    """
    if labels.shape == logits.shape[:1] and label_smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, probabilities(logits, labels, label_smoothing))


def squared_error(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Mean over the classes of the squared difference between softmax and label: the Brier score over k.

    Shapes, smoothing and errors are those of `cross_entropy`; the values are in [0, 2/k].
    """
    difference = jax.nn.softmax(logits) - probabilities(logits, labels, label_smoothing)
    return jnp.mean(jnp.square(difference), axis=-1)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Mean over the classes of the binary cross-entropy of each class against all others, in nats.

    Each logit is a class's own (Wightman et al. 2021, "ResNet strikes back"). Shapes, smoothing and errors are those of
    `cross_entropy`.
    """
    each = optax.sigmoid_binary_cross_entropy(logits, probabilities(logits, labels, label_smoothing))
    return jnp.mean(each, axis=-1)


def focal(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0, gamma: float = 2.0) -> jax.Array:
    """Cross-entropy with each class's term scaled by (1 - p)^gamma, so that what is easy counts less.

    p is the softmax (Lin et al. 2017, "Focal Loss for Dense Object Detection"). With gamma 0 it is `cross_entropy`;
    shapes, smoothing and errors are the same.
    """
    log_p = jax.nn.log_softmax(logits)
    # the bound keeps the gradient finite where p rounds to 1 and gamma is below 1
    hardness = jnp.maximum(-jnp.expm1(log_p), 1e-6) ** gamma
    return -jnp.sum(probabilities(logits, labels, label_smoothing) * hardness * log_p, axis=-1)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
    "binary_cross_entropy": binary_cross_entropy,
    "focal": focal,
}


def class_weighted(loss_fn: LossFn, class_weights: jax.Array) -> LossFn:
    """Returns `loss_fn` scaled by the weight f32[k] of each example's class; for soft labels, by their mean weight."""

    def weighted(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return loss_fn(logits, labels) * (probabilities(logits, labels) @ class_weights)

    return weighted


def probabilities(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns the labels i32[b] | f32[b k] as probabilities f32[b k] for logits f32[b k], smoothed.

    Raises ValueError if the shapes do not fit together.
    """
    if logits.ndim != 2 or labels.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} do not fit: [b k] and [b] or [b k] do.")
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.smooth_labels(labels, label_smoothing) if label_smoothing else labels


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns bool[b], whether the largest logit is the label's class; a soft label's class is its largest."""
    classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
    return jnp.argmax(logits, axis=-1) == classes
