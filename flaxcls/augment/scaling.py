"""The range of pixel values, and conversions between bytes and floats."""

import jax
import jax.numpy as jnp


def to_float(images: jax.Array) -> jax.Array:
    """Scales u8[b h w c] in 0..255 to f32 in 0..1; floats are unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Returns (images - mean) / std for images f32[b h w c] with mean and std f32[c], in the units of the images."""
    shape = (1, 1, 1, -1)
    return (images - mean.reshape(shape)) / std.reshape(shape)


def largest(images: jax.Array) -> float:
    """Returns the value of white: 255 for bytes, 1 for floats."""
    return 255.0 if images.dtype == jnp.uint8 else 1.0


def unscaled(images: jax.Array) -> jax.Array:
    """Returns floats in the units of the images for computations: bytes become f32 in 0..255."""
    return images.astype(jnp.float32) if images.dtype == jnp.uint8 else images


def restored(values: jax.Array, images: jax.Array) -> jax.Array:
    """Returns values that were computed from `unscaled(images)` in the type of the images; bytes are rounded."""
    if images.dtype == jnp.uint8:
        return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)
    return values.astype(images.dtype)


def to_bytes(images: jax.Array) -> jax.Array:
    """Rounds floats in 0..1 to u8 in 0..255; bytes are unchanged."""
    if images.dtype == jnp.uint8:
        return images
    return jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)


def from_bytes(values: jax.Array, images: jax.Array) -> jax.Array:
    """Returns u8 values in the type of the images; as floats they are in 0..1."""
    return values if images.dtype == jnp.uint8 else values.astype(images.dtype) / 255


def per_image(values: jax.Array, images: jax.Array) -> jax.Array:
    """Returns values [b], one for each image, as [b 1 1 1] in the type of the (float) images."""
    return values.astype(images.dtype)[:, None, None, None]
