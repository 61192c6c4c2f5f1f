"""Brightness, contrast, saturation, sharpness and hue, as torchvision defines them.

Each function takes images [b h w c], bytes in 0..255 or floats in 0..1, and a number for each image. Values outside the
range are clipped. Bytes are rounded to the nearest at the end; torchvision truncates them. Images of one channel have
neither saturation nor hue, so both leave them unchanged.
"""

from functools import partial

import jax
import jax.numpy as jnp

from flaxcls.augment.draws import drawn
from flaxcls.augment.scaling import largest, per_image, restored, unscaled


def grayscale(values: jax.Array) -> jax.Array:
    """Returns [b h w 1], the luma (ITU-R BT.601) of floats [b h w 3]; images of one channel are unchanged.

    Raises:
      ValueError: if the number of channels is neither 1 nor 3.
    """
    if values.shape[-1] == 1:
        return values
    if values.shape[-1] != 3:
        raise ValueError(f"images {values.shape} have {values.shape[-1]} channels: colour needs 3, or 1 for gray.")
    red, green, blue = (values[..., i : i + 1] for i in range(3))
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def blurred(values: jax.Array) -> jax.Array:
    """Returns floats [b h w c] averaged over 3x3 pixels, the middle one with weight five; the border is unchanged."""
    height, width = values.shape[1:3]
    if height < 3 or width < 3:
        return values
    total = sum(
        (values[:, i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)),
        4 * values[:, 1:-1, 1:-1],
    )
    return values.at[:, 1:-1, 1:-1].set(total / 13)


def mean_gray(values: jax.Array) -> jax.Array:
    """Returns [b 1 1 1], the mean luma of floats [b h w c]."""
    return grayscale(values).reshape(values.shape[0], -1).mean(axis=1)[:, None, None, None]


def _blend(values: jax.Array, other: jax.Array, factors: jax.Array, limit: float) -> jax.Array:
    """Returns other + factor * (values - other), in 0..limit."""
    factors = per_image(factors, values)
    return jnp.clip(factors * values + (1 - factors) * other, 0, limit)


def _shift_hue(values: jax.Array, shifts: jax.Array) -> jax.Array:
    """Rotates the hue in the HSV model (Smith 1978, "Color Gamut Transform Pairs"); a whole turn is 1."""
    if values.shape[-1] == 1:
        return values
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    high, low = values.max(axis=-1), values.min(axis=-1)
    chroma = high - low
    divisor = jnp.where(chroma > 0, chroma, 1)
    # Channels are compared with each other, not for equality with the largest: XLA may compute the largest again and
    # round it differently. If two channels are almost equal, both formulas give almost the same value.
    sixths = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / divisor,
        jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * shifts.astype(values.dtype)[:, None, None]

    def channel(offset: int) -> jax.Array:
        place = sixths + offset
        place = place - 6 * jnp.floor(place / 6)  # the remainder; XLA's own is slow on CPU
        return high - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


def brightness(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Multiplies images [b h w c] by factors f32[b]: 0 is black, 1 is the image."""
    values = unscaled(images)
    return restored(_blend(values, jnp.zeros_like(values), factors, largest(images)), images)


def contrast(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Blends images [b h w c] with their mean gray by factors f32[b]: 0 is that gray, 1 is the image."""
    values = unscaled(images)
    return restored(_blend(values, mean_gray(values), factors, largest(images)), images)


def saturation(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Blends images [b h w c] with their gray by factors f32[b]: 0 is without colour, 1 is the image."""
    values = unscaled(images)
    return restored(_blend(values, grayscale(values), factors, largest(images)), images)


def sharpness(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Blends images [b h w c] with a blurred copy by factors f32[b]: 0 is blurred, 1 is the image, 2 is sharper."""
    values = unscaled(images)
    return restored(_blend(values, blurred(values), factors, largest(images)), images)


def hue(images: jax.Array, shifts: jax.Array) -> jax.Array:
    """Rotates the hue of images [b h w c] by shifts f32[b], in turns: 0 and 1 are the image, 1/3 turns red to green."""
    return restored(_shift_hue(unscaled(images), shifts), images)


def color_jitter(
    images: jax.Array, brightness: jax.Array, contrast: jax.Array, saturation: jax.Array, hue: jax.Array
) -> jax.Array:
    """Changes brightness, contrast, saturation (factors f32[b]), then hue (shifts f32[b]), and rounds once."""
    values, limit = unscaled(images), largest(images)
    values = _blend(values, jnp.zeros_like(values), brightness, limit)
    values = _blend(values, mean_gray(values), contrast, limit)
    values = _blend(values, grayscale(values), saturation, limit)
    return restored(_shift_hue(values, hue), images)


def random_color_jitter(
    key: jax.Array,
    images: jax.Array,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> jax.Array:
    """Changes the colours of each image at random.

    Args:
      key: for the draw.
      images: [b h w c], bytes in 0..255 or floats in 0..1.
      brightness, contrast, saturation: for a value x, the factor is uniform in max(0, 1 - x)..1 + x.
      hue: for a value x, the shift is uniform in -x..x; a whole turn is 1.

    Returns:
      [b h w c], of the same type. The changes always have the order of the arguments; torchvision draws the order.
    """
    keys = jax.random.split(key, 4)

    def factors(key: jax.Array, reach: float) -> jax.Array:
        draw = partial(jax.random.uniform, minval=max(0.0, 1 - reach), maxval=1 + reach)
        return drawn(draw, key, images.shape[:1])

    shifts = drawn(partial(jax.random.uniform, minval=-hue, maxval=hue), keys[3], images.shape[:1])
    return color_jitter(
        images, factors(keys[0], brightness), factors(keys[1], contrast), factors(keys[2], saturation), shifts
    )
