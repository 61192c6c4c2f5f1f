"""Operations that map each of the 256 levels of a channel to another level, by tables u8[b 256 c] for the images.

Images are [b h w c], bytes or floats in 0..1. Floats are rounded to the 256 levels, and the result is floats again.
"""

import jax
import jax.numpy as jnp

from flaxcls.augment.scaling import from_bytes, to_bytes


def look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
    """Returns the bytes [b h w c] to which tables u8[b 256 c] map the levels u8[b h w c]."""
    count, _, _, channels = images.shape
    levels = images.reshape(count, -1, channels).astype(jnp.int32)
    return jnp.take_along_axis(tables, levels, axis=1).reshape(images.shape)


def _levels(images: jax.Array) -> jax.Array:
    """Returns i32[b 256 c], the tables that change nothing."""
    return jnp.broadcast_to(jnp.arange(256)[None, :, None], (images.shape[0], 256, images.shape[-1])).astype(jnp.int32)


def _by_channel(images: jax.Array) -> jax.Array:
    """Returns i32[b c h*w], the levels of each channel."""
    count, _, _, channels = images.shape
    return images.reshape(count, -1, channels).swapaxes(1, 2).astype(jnp.int32)


def identity_table(images: jax.Array) -> jax.Array:
    """Returns the tables for bytes [b h w c] that change nothing."""
    return _levels(images).astype(jnp.uint8)


def autocontrast_table(images: jax.Array) -> jax.Array:
    """Returns the tables that stretch each channel of bytes [b h w c] to 0..255; a channel of one level stays."""
    values = _by_channel(images)
    low, high = (f(values, axis=2)[:, None, :].astype(jnp.float32) for f in (jnp.min, jnp.max))
    levels = _levels(images).astype(jnp.float32)
    stretched = (levels - low) * (255 / jnp.maximum(high - low, 1))
    return jnp.clip(jnp.round(jnp.where(high > low, stretched, levels)), 0, 255).astype(jnp.uint8)


def equalize_table(images: jax.Array) -> jax.Array:
    """Returns the tables that equalize the histogram of each channel of bytes [b h w c], computed like Pillow's."""
    height, width = images.shape[1:3]
    values = _by_channel(images)
    histogram = jax.vmap(jax.vmap(lambda v: jnp.zeros(256, jnp.int32).at[v].add(1)))(values)
    below = jnp.cumsum(histogram, axis=-1) - histogram
    brightest = jnp.take_along_axis(histogram, values.max(axis=-1, keepdims=True), axis=-1)
    step = (height * width - brightest) // 255
    table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table, jnp.arange(256, dtype=jnp.int32)[None, None, :]).swapaxes(1, 2).astype(jnp.uint8)


def posterize_table(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Returns the tables that keep the upper bits, i32[b] in 0..8 of them, of each level of bytes [b h w c]."""
    dropped = (8 - bits)[:, None, None]
    return ((_levels(images) >> dropped) << dropped).astype(jnp.uint8)


def solarize_table(images: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Returns the tables that invert the levels at or above thresholds f32[b], in 0..255."""
    levels = _levels(images)
    inverted = levels.astype(jnp.float32) >= thresholds[:, None, None]
    return jnp.where(inverted, 255 - levels, levels).astype(jnp.uint8)


def autocontrast(images: jax.Array) -> jax.Array:
    """Stretches each channel of images [b h w c] over the whole range; a channel of one level stays."""
    levels = to_bytes(images)
    return from_bytes(look_up(levels, autocontrast_table(levels)), images)


def equalize(images: jax.Array) -> jax.Array:
    """Equalizes the histogram of each channel of images [b h w c]; a channel of fewer than 255 pixels is unchanged."""
    levels = to_bytes(images)
    return from_bytes(look_up(levels, equalize_table(levels)), images)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the upper bits, i32[b] in 0..8 of them, of each value of images [b h w c]."""
    levels = to_bytes(images)
    return from_bytes(look_up(levels, posterize_table(levels, bits)), images)


def solarize(images: jax.Array, thresholds: jax.Array) -> jax.Array:
    """Inverts the values of images [b h w c] at or above thresholds f32[b], in levels 0..255."""
    levels = to_bytes(images)
    return from_bytes(look_up(levels, solarize_table(levels, thresholds)), images)
