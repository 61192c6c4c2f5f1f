"""RandAugment and TrivialAugment: an operation for each image, drawn from fourteen.

A `lax.switch` under `vmap` would run all fourteen for each image, with 5 warps and 4 look-ups, and select one result.
But there are only three kinds of operations, each with a neutral setting: tables of levels, blends with another image,
and affine warps. So each image passes through one look-up, one blend and one warp, and only the drawn one changes it.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.augment.affine import affine_matrices, warp
from flaxcls.augment.colour import blurred, grayscale, mean_gray
from flaxcls.augment.draws import drawn
from flaxcls.augment.scaling import from_bytes, per_image, restored, to_bytes, unscaled
from flaxcls.augment.tones import (
    autocontrast_table,
    equalize_table,
    identity_table,
    look_up,
    posterize_table,
    solarize_table,
)

OPS = (
    "identity",
    "autocontrast",
    "equalize",
    "posterize",
    "solarize",
    "brightness",
    "contrast",
    "saturation",
    "sharpness",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def apply_ops(images: jax.Array, ops: jax.Array, strengths: jax.Array, *, fill: float = 0.5) -> jax.Array:
    """Applies one operation to each image.

    Args:
      images: [b h w c] with 1 or 3 channels, bytes or floats in 0..1, which are rounded to 256 levels.
      ops: i32[b], indices into `OPS`.
      strengths: f32[b], the argument of the operation: bits that posterize keeps; threshold of solarize, in levels
        0..255; factor of brightness, contrast, saturation and sharpness; degrees counter-clockwise; shear in pixels per
        pixel; translation in pixels. The first three operations have no argument.
      fill: the value outside the image in warps, in 0..1. Warps take the nearest pixel and keep the centre in place.

    Returns:
      [b h w c], of the same type.
    """
    # Each barrier ends a stage. Otherwise XLA would fuse a stage into every read of the next one, and compute it again.
    stage = jax.lax.optimization_barrier
    levels = stage(to_bytes(images))
    levels = stage(look_up(levels, stage(_tables(levels, ops, strengths))))
    values = unscaled(levels)
    factors = per_image(jnp.where(_is(ops, *_BLENDS), strengths, 1), values)
    levels = stage(restored(factors * values + (1 - factors) * _blend_targets(values, ops), levels))
    return from_bytes(warp(levels, _matrices(ops, strengths), fill=round(255 * fill), method="nearest"), images)


_BLENDS = ("brightness", "contrast", "saturation", "sharpness")


def _is(ops: jax.Array, *names: str) -> jax.Array:
    """Returns bool[b], True if the operation is one of `names`."""
    return jnp.isin(ops, jnp.array([OPS.index(name) for name in names], ops.dtype))


def _tables(levels: jax.Array, ops: jax.Array, strengths: jax.Array) -> jax.Array:
    choices = {
        "autocontrast": autocontrast_table(levels),
        "equalize": equalize_table(levels),
        "posterize": posterize_table(levels, jnp.round(jnp.clip(strengths, 0, 8)).astype(jnp.int32)),
        "solarize": solarize_table(levels, strengths),
    }
    table = identity_table(levels)
    for name, choice in choices.items():
        table = jnp.where(_is(ops, name)[:, None, None], choice, table)
    return table


def _blend_targets(values: jax.Array, ops: jax.Array) -> jax.Array:
    """Returns the image with which each image is blended: black for brightness and for operations without a blend."""
    gray = jnp.broadcast_to(grayscale(values), values.shape)
    mean = jnp.broadcast_to(mean_gray(values), values.shape)
    other = jnp.zeros_like(values)
    for name, choice in {"contrast": mean, "saturation": gray, "sharpness": blurred(values)}.items():
        other = jnp.where(_is(ops, name)[:, None, None, None], choice, other)
    return other


def _matrices(ops: jax.Array, strengths: jax.Array) -> jax.Array:
    of = lambda name: jnp.where(_is(ops, name), strengths, 0)  # noqa: E731
    shifts = jnp.stack([of("translate_y"), of("translate_x")], axis=1)
    shears = jnp.stack([of("shear_y"), of("shear_x")], axis=1)
    return affine_matrices(of("rotate"), shifts, shears)


class _Reach(NamedTuple):
    """The largest strengths: degrees, shear, pixels along each axis, distance of a factor from 1, dropped bits."""

    rotate: float
    shear: float
    translate_x: float
    translate_y: float
    blend: float
    bits: float


def _strengths(ops: jax.Array, levels: jax.Array, signs: jax.Array, reach: _Reach) -> jax.Array:
    """Returns f32[b], the strengths of ops i32[b] at levels f32[b] in 0..1, in the direction of signs f32[b]."""
    neutral_reach_signed = {
        "posterize": (8, -reach.bits, 0),
        "solarize": (255, -255, 0),
        **dict.fromkeys(_BLENDS, (1, reach.blend, 1)),
        "rotate": (0, reach.rotate, 1),
        "shear_x": (0, reach.shear, 1),
        "shear_y": (0, reach.shear, 1),
        "translate_x": (0, reach.translate_x, 1),
        "translate_y": (0, reach.translate_y, 1),
    }
    rows = np.array([neutral_reach_signed.get(name, (0, 0, 0)) for name in OPS], np.float32)
    neutral, span, signed = (jnp.asarray(column)[ops] for column in rows.T)
    return neutral + jnp.where(signed > 0, signs, 1) * levels * span


def _draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws ops i32[b], levels f32[b] among 0, 1/30, ..., 1, and signs f32[b]."""
    op_key, level_key, sign_key = jax.random.split(key, 3)
    ops = drawn(partial(jax.random.randint, minval=0, maxval=len(OPS)), op_key, (count,))
    levels = drawn(partial(jax.random.randint, minval=0, maxval=31), level_key, (count,)).astype(jnp.float32) / 30
    return ops, levels, drawn(partial(jax.random.rademacher, dtype=jnp.float32), sign_key, (count,))


def rand_augment(
    key: jax.Array, images: jax.Array, *, layers: int = 2, magnitude: float = 9, fill: float = 0.5
) -> jax.Array:
    """Applies `layers` operations, drawn uniformly from `OPS`, to each image (Cubuk et al. 2020, "RandAugment").

    Args:
      key: for the draw.
      images: [b h w c] with 1 or 3 channels, bytes or floats of 0..1.
      layers: number of operations, one after the other; N in the paper.
      magnitude: strength of all operations, in 0..30; M in the paper. At 30 they rotate by 30 degrees, shear by 0.3,
        move by 150/331 of the side, change factors by 0.9, drop 4 bits and invert all levels. Directions are random.
      fill: the value outside the image in warps, in 0..1.

    Returns:
      [b h w c], of the same type.

    Raises:
      ValueError: if the magnitude is not in 0..30.
    """
    if not 0 <= magnitude <= 30:
        raise ValueError(f"magnitude is {magnitude}, but must be in 0..30.")
    height, width = images.shape[1:3]
    reach = _Reach(30, 0.3, 150 / 331 * width, 150 / 331 * height, 0.9, 4)
    for layer_key in jax.random.split(key, layers):
        ops, _, signs = _draw(layer_key, images.shape[0])
        strengths = _strengths(ops, jnp.full(ops.shape, magnitude / 30, jnp.float32), signs, reach)
        images = apply_ops(images, ops, strengths, fill=fill)
    return images


def trivial_augment(key: jax.Array, images: jax.Array, *, fill: float = 0.5) -> jax.Array:
    """Applies one operation of random strength to each image (Mueller & Hutter 2021, "TrivialAugment", wide space).

    Args:
      key: for the draw.
      images: [b h w c] with 1 or 3 channels, bytes or floats in 0..1.
      fill: the value outside the image in warps, in 0..1.

    Returns:
      [b h w c], of the same type. The strength is one of 31 steps from no change up to 135 degrees, shear 0.99, 32
      pixels, factors 0.01 or 1.99, 6 dropped bits, all levels inverted. Directions are random.
    """
    ops, levels, signs = _draw(key, images.shape[0])
    strengths = _strengths(ops, levels, signs, _Reach(135, 0.99, 32, 32, 0.99, 6))
    return apply_ops(images, ops, strengths, fill=fill)
