"""The types that all parts of the package share."""

from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypeAlias, TypedDict

import jax

__all__ = ["Batch", "EvalParams", "LossFn", "Params", "Regularizer", "Transform"]

Params: TypeAlias = Mapping[str, Any]


class Batch(TypedDict):
    """A batch of b examples.

    image: u8|f32[b h w c], unsigned bytes in 0..255 or floats.
    label: i32[b] in 0..k-1, which a compiled step cannot check, or f32[b k] for soft labels whose rows sum to 1.
    mask: bool[b], False if an example is padding; without a mask every example counts. It is for models in which no
      example depends on another, so not for training with batch normalisation.
    mirrored: bool[b], True if a training transform must mirror the image left to right; drawn with the batch.
    """

    image: jax.Array
    label: jax.Array
    mask: NotRequired[jax.Array]
    mirrored: NotRequired[jax.Array]


# (key, batch) -> batch on the device; the key is None in evaluation, where nothing may be random.
Transform: TypeAlias = Callable[[jax.Array | None, Batch], Batch]

# (logits f32[b k], labels i32[b] | f32[b k]) -> f32[b], or (f32[b], {name: f32[b]}) with metrics of its own
LossFn: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array | tuple[jax.Array, dict[str, jax.Array]]]

# (opt_state, params) -> the parameters to evaluate, for an optimizer that trains others
EvalParams: TypeAlias = Callable[[Any, Params], Params]

# params -> f32[], added to the loss
Regularizer: TypeAlias = Callable[[Params], jax.Array]
