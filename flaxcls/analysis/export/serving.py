"""The exported function: images in, logits and calibrated probabilities out.

It needs only jax and flax, so the environment of another converter can trace it, too.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcls.augment import make_transform

WeightType = Literal["float32", "bfloat16", "int8"]


class StoredArray(NamedTuple):
    """An array in its stored form.

    values: the stored numbers.
    scale: f32[outputs], factor for each index of the last axis, or None.
    """

    values: Any
    scale: Any = None


def store(variables: Any, dtype: WeightType) -> Any:
    """Returns the tree with each array as a `StoredArray`; kernels have the type `dtype`.

    Kernels are the f32 arrays with two axes or more; their last axis is the outputs. int8 is symmetric, with 127 steps
    up to the largest weight of each output (Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient
    inference"). Biases, scales and batch statistics keep their type.
    """
    return jax.tree.map(lambda array: _stored(np.asarray(array), dtype), variables)


def _stored(array: np.ndarray, dtype: WeightType) -> StoredArray:
    if array.ndim < 2 or array.dtype != np.float32 or dtype == "float32":
        return StoredArray(array)
    if dtype == "bfloat16":
        return StoredArray(array.astype(jnp.bfloat16))
    largest = np.abs(array).max(axis=tuple(range(array.ndim - 1)))
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return StoredArray(np.rint(array / scale).astype(np.int8), scale)


def restore(stored: Any) -> Any:
    """Returns the arrays of `store` for computing; bfloat16 and int8 become f32."""

    def restored(leaf: StoredArray) -> Any:
        values = jnp.asarray(leaf.values)
        if values.dtype in (jnp.bfloat16, jnp.int8):
            values = values.astype(jnp.float32)
        if leaf.scale is None:
            return values
        return values * jnp.asarray(leaf.scale).reshape(*[1] * (values.ndim - 1), -1)

    return jax.tree.map(restored, stored, is_leaf=lambda leaf: isinstance(leaf, StoredArray))


def serve(
    images: jax.Array,
    *,
    model: nn.Module,
    stored: Any,
    mean: Any,
    std: Any,
    temperature: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the logits and probabilities, both f32[b k], for images.

    Args:
      images: u8[b h w c] in 0..255 or f32[b h w c] in 0..1, in the shape that the model sees.
      model: the module for evaluation.
      stored: the module's variables, from `store`.
      mean, std: mean and standard deviation that normalise images in 0..1, or None.
      temperature: divisor of the logits before the softmax; None means 1.
    """
    transform = make_transform(mean=mean, std=std)
    batch = transform(None, {"image": images, "label": jnp.zeros(images.shape[:1], jnp.int32)})
    logits: Any = model.apply(restore(stored), batch["image"], train=False)
    logits = logits.astype(jnp.float32)
    return logits, jax.nn.softmax(logits / (1.0 if temperature is None else temperature))
