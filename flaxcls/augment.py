"""Transforms of image batches: pure functions that run on the device, as part of the step.

Those that draw take a key first. Each random one is a draw and a deterministic function of what was drawn, so that the
latter can be checked by hand.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.types import Batch, Transform


def to_float(images: jax.Array) -> jax.Array:
    """Scales u8[b h w c] of 0..255 to f32 of 0..1; floats stay as they are."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Returns (images - mean) / std for images f32[b h w c] with mean and std f32[c], in the units of the images."""
    shape = (1, 1, 1, -1)
    return (images - mean.reshape(shape)) / std.reshape(shape)


def flip(images: jax.Array, flips: jax.Array) -> jax.Array:
    """Mirrors those of images [b h w c] left to right where flips bool[b] is True."""
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each of images [b h w c] left to right with probability 1/2."""
    return flip(images, jax.random.bernoulli(key, 0.5, images.shape[:1]))


def crop(
    images: jax.Array, offsets: jax.Array, *, padding: int, fill: Literal["zero", "reflect"] = "zero"
) -> jax.Array:
    """Pads each side of images [b h w c] and cuts windows of the old size out of them.

    Args:
      images: [b h w c].
      offsets: i32[b 2], row and column of each window's corner in the padded image, in 0..2*padding.
      padding: pixels added to each side; with reflect less than h and w.
      fill: what the added pixels hold, zero or the image mirrored at its border.

    Returns:
      [b h w c], of the same type.
    """
    height, width, channels = images.shape[1:]
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, sides, mode="constant" if fill == "zero" else "reflect")

    def window(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (height, width, channels))

    return jax.vmap(window)(padded, offsets)


def random_crop(
    key: jax.Array, images: jax.Array, *, padding: int, fill: Literal["zero", "reflect"] = "zero"
) -> jax.Array:
    """Pads each side of images [b h w c] and cuts a random window of the old size (He et al. 2016, section 4.2)."""
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * padding + 1)
    return crop(images, offsets, padding=padding, fill=fill)


def make_transform(
    *,
    mean: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
    random_flips: bool = False,
    crop_padding: int = 0,
    crop_fill: Literal["zero", "reflect"] = "zero",
) -> Transform:
    """Returns the transform that crops and flips in training, then scales and, with mean and std [c], normalises."""

    def transform(key: jax.Array | None, batch: Batch) -> Batch:
        images = batch["image"]
        if key is not None:
            crop_key, flip_key = jax.random.split(key)
            if crop_padding:
                images = random_crop(crop_key, images, padding=crop_padding, fill=crop_fill)
            if random_flips:
                images = random_flip(flip_key, images)
        images = to_float(images)
        if mean is not None and std is not None:
            images = normalize(images, jnp.asarray(mean, images.dtype), jnp.asarray(std, images.dtype))
        return {**batch, "image": images}

    return transform
