"""Penalties on the weights: params -> f32[]. Biases and normalisation are spared everywhere."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxcls.types import Params


def weight_mask(params: Params) -> Any:
    """Returns the tree of `params` with True at weights, False at biases and at scales of normalisation.

    A weight is a leaf of two axes or more that is not named bias or scale.
    """

    def is_weight(path: tuple[Any, ...], leaf: jax.Array) -> bool:
        return leaf.ndim > 1 and getattr(path[-1], "key", None) not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(is_weight, params)


def weights(params: Params) -> list[jax.Array]:
    """Returns the weights among `params`, in path order."""
    leaves, masks = jax.tree.leaves(params), jax.tree.leaves(weight_mask(params))
    return [leaf for leaf, is_weight in zip(leaves, masks, strict=True) if is_weight]


def l1(params: Params) -> jax.Array:
    """Returns the sum of the absolute values of the weights."""
    return sum((jnp.sum(jnp.abs(weight)) for weight in weights(params)), jnp.float32(0))


def l2(params: Params) -> jax.Array:
    """Returns the sum of the squares of the weights (without a factor of 1/2, as in Keras)."""
    return sum((jnp.sum(jnp.square(weight)) for weight in weights(params)), jnp.float32(0))
