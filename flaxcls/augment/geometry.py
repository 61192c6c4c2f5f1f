"""Flips and crops: operations that move pixels along rows and columns."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from flaxcls.augment.draws import drawn
from flaxcls.augment.scaling import restored, unscaled


def flip(images: jax.Array, flips: jax.Array) -> jax.Array:
    """Mirrors the images [b h w c] left to right for which flips bool[b] is True."""
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each of images [b h w c] left to right with probability 1/2."""
    return flip(images, drawn(lambda key, shape: jax.random.bernoulli(key, 0.5, shape), key, images.shape[:1]))


def crop(
    images: jax.Array, offsets: jax.Array, *, padding: int, fill: Literal["zero", "reflect"] = "zero"
) -> jax.Array:
    """Pads each side of images [b h w c] and cuts a window of the original size out of each.

    Args:
      images: [b h w c].
      offsets: i32[b 2], row and column of each window's corner in the padded image, in 0..2*padding.
      padding: pixels added to each side; with reflect, less than h and w.
      fill: values of the added pixels: zero, or the image mirrored at its border.

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
    draw = partial(jax.random.randint, minval=0, maxval=2 * padding + 1)
    offsets = drawn(draw, key, (images.shape[0], 2))
    return crop(images, offsets, padding=padding, fill=fill)


def resized_crop(images: jax.Array, boxes: jax.Array, *, size: tuple[int, int], antialias: bool = True) -> jax.Array:
    """Cuts a box out of each image and resizes it bilinearly; pixels outside the box are not used.

    Args:
      images: [b h w c].
      boxes: i32[b 4], row and column of the corner, height and width, inside the image.
      size: height and width of the result.
      antialias: True if a box that shrinks is averaged over the pixels that become one (like Pillow); False if it is
        sampled at points (like OpenCV). The two are equal for a box that grows.

    Returns:
      [b size c], of the same type.
    """
    top, left, height, width = (boxes[:, i].astype(jnp.float32) for i in range(4))
    rows = _linear_weights(top, height, images.shape[1], size[0], antialias)
    columns = _linear_weights(left, width, images.shape[2], size[1], antialias)
    values = unscaled(images)
    # A matrix product for each axis, because the axes are resized independently. In the default precision of
    # accelerators the result would be wrong by a whole level of 256.
    product = jax.vmap(
        lambda image, r, c: jnp.einsum("ih,hwc,jw->ijc", r, image, c, precision=jax.lax.Precision.HIGHEST)
    )
    return restored(product(values, rows.astype(values.dtype), columns.astype(values.dtype)), images)


def _linear_weights(start: jax.Array, length: jax.Array, old: int, new: int, antialias: bool) -> jax.Array:
    """Returns f32[b new old], the share of each old pixel in each new pixel of intervals [start, start + length)."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length / new
    places = start + (jnp.arange(new, dtype=jnp.float32)[None, :, None] + 0.5) * scale - 0.5
    pixels = jnp.arange(old, dtype=jnp.float32)[None, None, :]
    reach = jnp.maximum(scale, 1) if antialias else jnp.ones_like(scale)
    inside = (pixels >= start) & (pixels < start + length)
    weights = jnp.where(inside, jnp.maximum(0, 1 - jnp.abs(places - pixels) / reach), 0)
    return weights / weights.sum(axis=-1, keepdims=True)


def random_crop_boxes(
    key: jax.Array,
    count: int,
    image_size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    tries: int = 10,
) -> jax.Array:
    """Draws boxes of random area and shape (Szegedy et al. 2015, "Going Deeper with Convolutions", section 6).

    Args:
      key: for the draw.
      count: the number of boxes.
      image_size: height and width of the image that contains the boxes.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width / height; its logarithm is uniform.
      tries: draws for each box. The first one that fits is taken; if none fits, the largest centred box of an allowed
        shape.

    Returns:
      i32[count 4], row and column of the corner, height and width.
    """
    height, width = image_size
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    draw_area = partial(jax.random.uniform, minval=scale[0], maxval=scale[1])
    draw_ratio = partial(jax.random.uniform, minval=math.log(ratio[0]), maxval=math.log(ratio[1]))
    areas = height * width * drawn(draw_area, area_key, (count, tries))
    ratios = jnp.exp(drawn(draw_ratio, ratio_key, (count, tries)))
    heights = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    # a mask and a sum, because a gather could move data between devices
    first = jax.nn.one_hot(jnp.argmax(fits, axis=1), tries, dtype=jnp.int32)
    sizes = jnp.stack([(heights * first).sum(axis=1), (widths * first).sum(axis=1)], axis=1)
    largest = jnp.array(
        [min(height, max(1, round(width / ratio[0]))), min(width, max(1, round(height * ratio[1])))], jnp.int32
    )
    sizes = jnp.where(fits.any(axis=1, keepdims=True), sizes, largest[None])
    room = jnp.array([[height, width]], jnp.int32) - sizes
    corners = (drawn(jax.random.uniform, place_key, (count, 2)) * (room + 1).astype(jnp.float32)).astype(jnp.int32)
    corners = jnp.minimum(corners, room)  # a corner that is rounded up would lie outside
    corners = jnp.where(fits.any(axis=1, keepdims=True), corners, room // 2)
    return jnp.concatenate([corners, sizes], axis=1)


def random_resized_crop(
    key: jax.Array,
    images: jax.Array,
    *,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    antialias: bool = True,
) -> jax.Array:
    """Cuts a random box out of each of images [b h w c] and resizes it: `random_crop_boxes`, then `resized_crop`."""
    count, height, width = images.shape[:3]
    boxes = random_crop_boxes(key, count, (height, width), scale=scale, ratio=ratio)
    return resized_crop(images, boxes, size=size, antialias=antialias)
