"""Rotation, translation and shear: one warp by an affine matrix for each image."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from flaxcls.augment.draws import drawn
from flaxcls.augment.scaling import restored, unscaled


def warp(
    images: jax.Array,
    matrices: jax.Array,
    *,
    fill: float = 0.0,
    method: Literal["bilinear", "nearest"] = "bilinear",
) -> jax.Array:
    """Samples each image with its matrix: output pixel p shows the input at matrix @ (p, 1).

    Args:
      images: [b h w c].
      matrices: f32[b 2 3], from (row, column, 1) in the output to (row, column) in the input, both counted in pixels
        from the centre of the image.
      fill: the value outside the image, in the units of the image.
      method: bilinear, or the nearest pixel, which needs a quarter of the reads.

    Returns:
      [b h w c], of the same type.
    """
    height, width, channels = images.shape[1:]
    middle = ((height - 1) / 2, (width - 1) / 2)
    rows = jnp.arange(height, dtype=jnp.float32)[:, None] - middle[0]
    columns = jnp.arange(width, dtype=jnp.float32)[None, :] - middle[1]

    def sample(image: jax.Array, matrix: jax.Array) -> jax.Array:
        # no matrix product, because it may be rounded to 10 bits
        row, column = (matrix[i, 0] * rows + matrix[i, 1] * columns + matrix[i, 2] + middle[i] for i in (0, 1))

        def read(row: jax.Array, column: jax.Array) -> jax.Array:
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = jnp.where(inside, row * width + column, 0).astype(jnp.int32)
            values = unscaled(image.reshape(height * width, channels)[place])
            return jnp.where(inside[:, :, None], values, jnp.asarray(fill, values.dtype))

        if method == "nearest":
            return restored(read(jnp.floor(row + 0.5), jnp.floor(column + 0.5)), image)
        top, left = jnp.floor(row), jnp.floor(column)
        down, right = (part.astype(unscaled(image).dtype)[:, :, None] for part in (row - top, column - left))
        upper = (1 - right) * read(top, left) + right * read(top, left + 1)
        lower = (1 - right) * read(top + 1, left) + right * read(top + 1, left + 1)
        return restored((1 - down) * upper + down * lower, image)

    return jax.vmap(sample)(images, matrices)


def affine_matrices(degrees: jax.Array, shifts: jax.Array, shears: jax.Array) -> jax.Array:
    """Returns the matrices with which `warp` shears the image, then rotates it, then moves it.

    Args:
      degrees: f32[b], counter-clockwise.
      shifts: f32[b 2], pixels downward and to the right.
      shears: f32[b 2], pixels downward per pixel to the right of the centre, and pixels to the right per pixel below
        it; one of the two should be 0.

    Returns:
      f32[b 2 3].
    """
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    down, right = shears[:, 0], shears[:, 1]
    # inverses in reverse order, because the matrices map the output to the input
    a, b = cos + down * sin, sin - down * cos
    c, d = -sin - right * cos, cos - right * sin
    row = -(a * shifts[:, 0] + b * shifts[:, 1])
    column = -(c * shifts[:, 0] + d * shifts[:, 1])
    return jnp.stack([jnp.stack([a, b, row], axis=1), jnp.stack([c, d, column], axis=1)], axis=1)


def rotate(
    images: jax.Array, degrees: jax.Array, *, fill: float = 0.0, method: Literal["bilinear", "nearest"] = "bilinear"
) -> jax.Array:
    """Rotates each of images [b h w c] by degrees f32[b], counter-clockwise about its centre; see `warp`."""
    zeros = jnp.zeros((images.shape[0], 2), jnp.float32)
    return warp(images, affine_matrices(degrees, zeros, zeros), fill=fill, method=method)


def translate(
    images: jax.Array, shifts: jax.Array, *, fill: float = 0.0, method: Literal["bilinear", "nearest"] = "bilinear"
) -> jax.Array:
    """Moves each of images [b h w c] by shifts f32[b 2], in pixels downward and to the right; see `warp`."""
    zeros = jnp.zeros((images.shape[0], 2), jnp.float32)
    return warp(images, affine_matrices(zeros[:, 0], shifts, zeros), fill=fill, method=method)


def random_affine(
    key: jax.Array,
    images: jax.Array,
    *,
    degrees: float = 0.0,
    shift: float = 0.0,
    fill: float = 0.0,
    method: Literal["bilinear", "nearest"] = "bilinear",
) -> jax.Array:
    """Rotates and moves each image at random, in one warp.

    Args:
      key: for the draw.
      images: [b h w c].
      degrees: the largest rotation; the angle is uniform in -degrees..degrees.
      shift: the largest translation, as a share of the height and the width; each share is uniform in -shift..shift.
      fill, method: as in `warp`.

    Returns:
      [b h w c], of the same type.
    """
    count, height, width = images.shape[:3]
    angle_key, shift_key = jax.random.split(key)
    angles = drawn(partial(jax.random.uniform, minval=-degrees, maxval=degrees), angle_key, (count,))
    shares = drawn(partial(jax.random.uniform, minval=-shift, maxval=shift), shift_key, (count, 2))
    shifts = shares * jnp.array([[height, width]], jnp.float32)
    return warp(images, affine_matrices(angles, shifts, jnp.zeros_like(shifts)), fill=fill, method=method)
