"""The types that every part of the package speaks."""

from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypeAlias, TypedDict

import jax

Params: TypeAlias = Mapping[str, Any]


class Batch(TypedDict):
    """A batch of b examples.

    image: u8|f32[b h w c], unsigned bytes of 0..255 or floats.
    label: i32[b], or f32[b k] for soft labels whose rows sum to 1.
    mask: bool[b], False where an example is padding; without it every example counts.
    mirrored: bool[b], images that a training transform is to mirror left to right, drawn with the batch.
    """

    image: jax.Array
    label: jax.Array
    mask: NotRequired[jax.Array]
    mirrored: NotRequired[jax.Array]


# (key, batch) -> batch on the device; the key is None in evaluation, where nothing may be random.
Transform: TypeAlias = Callable[[jax.Array | None, Batch], Batch]

# (logits f32[b k], labels i32[b] | f32[b k]) -> f32[b]
LossFn: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]

# params -> f32[], added to the loss
Regularizer: TypeAlias = Callable[[Params], jax.Array]
