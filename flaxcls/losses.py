"""Losses, an example each: (logits f32[b k], labels i32[b] | f32[b k]) -> f32[b]."""

import jax
import jax.numpy as jnp
import optax


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
    if logits.ndim != 2 or labels.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} do not fit: [b k] and [b] or [b k] do.")
    if labels.ndim == 1 and label_smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, label_smoothing))


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns bool[b], whether the largest logit is the label's class; a soft label's class is its largest."""
    classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
    return jnp.argmax(logits, axis=-1) == classes
