"""What in an image a model answers to, by its gradients and by hiding parts of the image.

The methods take any function `logits_fn` of images f32[b h w c] to logits f32[b k] in which no example
depends on another. `partial(model.apply, variables, train=False)` is one; a `jax.tree_util.Partial` of it compiles once
for all parameters. They explain the logit of one class for each image, in the units of the images that they are given.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from flaxcls.errors import InputError

LogitsFn = Callable[[jax.Array], jax.Array]

# Images that are computed at once, as long as one call is no larger than the caller's own batch.
BATCH = 32
# Of integrated gradients: parts of the line, and how far a sum may be off, as a part of the difference of the logits.
MOST_STEPS = 1024
TOLERANCE = 0.01


def integrated_gradients(
    logits_fn: LogitsFn,
    images: jax.Array | np.ndarray,
    classes: jax.Array | np.ndarray,
    *,
    baseline: float | jax.Array | np.ndarray,
    steps: int = 64,
) -> np.ndarray:
    """Returns f32[b h w c] that sums, over an image, to the logit of it minus the logit of the baseline.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks": the gradient, averaged over the line from the
    baseline to the image, times their difference. The average is taken at the middle of equal parts of the line, as a
    network of piecewise linear activations has gradients that jump, for which no rule of a higher order is better.

    Args:
      logits_fn: see above.
      images: f32[b h w c].
      classes: i32[b], whose logits are explained.
      baseline: what stands for the absence of an image: a number, f32[c] or f32[h w c].
      steps: parts of the line. They are doubled, up to `MOST_STEPS`, until the sum of each image is within 1 % of the
        difference of the logits. `completeness_gap` says by how much it is off where that is not reached, as for a
        logit that all but jumps.
    """
    images, start = _ends(images, baseline)

    def points(indices: np.ndarray) -> jax.Array:
        parts = jnp.asarray((indices + 0.5) / steps, jnp.float32).reshape(-1, 1, 1, 1, 1)
        return start[None] + parts * (images - start)[None]

    difference = _difference(logits_fn, start, images, classes)
    while True:
        found = np.asarray(images - start) * _mean_gradient(logits_fn, points, steps, classes)
        if 2 * steps > MOST_STEPS or np.all(_gaps(found, difference) <= TOLERANCE):
            return found
        steps *= 2


def completeness_gap(
    found: np.ndarray,
    logits_fn: LogitsFn,
    images: jax.Array | np.ndarray,
    classes: jax.Array | np.ndarray,
    *,
    baseline: float | jax.Array | np.ndarray,
) -> np.ndarray:
    """Returns f32[b], how far the sums of integrated gradients are off the differences of the logits, as part of these.

    Args:
      found: f32[b h w c], what `integrated_gradients` has returned for the other arguments.
      logits_fn, images, classes, baseline: as they were given to it.
    """
    images, start = _ends(images, baseline)
    return _gaps(found, _difference(logits_fn, start, images, classes))


def smooth_grad(
    logits_fn: LogitsFn,
    images: jax.Array | np.ndarray,
    classes: jax.Array | np.ndarray,
    *,
    key: jax.Array,
    noise: float = 0.15,
    samples: int = 50,
) -> np.ndarray:
    """Returns f32[b h w c], the gradient averaged over noisy copies of each image.

    Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise".

    Args:
      logits_fn: see above.
      images: f32[b h w c].
      classes: i32[b], whose logits are explained.
      key: of the noise.
      noise: standard deviation, in the units of the images; the paper has 0.1 to 0.2 of the range of their values.
      samples: noisy copies of each image.
    """
    images = jnp.asarray(images, jnp.float32)
    keys = jax.random.split(key, samples)

    def points(indices: np.ndarray) -> jax.Array:
        return images[None] + noise * jax.vmap(lambda key: jax.random.normal(key, images.shape))(keys[indices])

    return _mean_gradient(logits_fn, points, samples, classes)


def occlusion(
    logits_fn: LogitsFn,
    images: jax.Array | np.ndarray,
    classes: jax.Array | np.ndarray,
    *,
    size: int,
    stride: int,
    fill: float | jax.Array | np.ndarray,
) -> np.ndarray:
    """Returns f32[b h w], by how much the logit falls where a square hides the pixel, averaged over such squares.

    Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2.

    Args:
      logits_fn: see above.
      images: f32[b h w c].
      classes: i32[b], whose logits are explained.
      size, stride: of the square and of the grid that it is moved on, in pixels; the last row and column of squares
        end with the image.
      fill: what the square shows: a number, f32[c] or f32[h w c].

    Raises InputError where a square is larger than the image, or the grid leaves pixels between squares.
    """
    images = jnp.asarray(images, jnp.float32)
    height, width = images.shape[1:3]
    if not 1 <= stride <= size <= min(height, width):
        raise InputError(
            f"a square of {size} pixels every {stride} pixels was given, but stride must be 1 or more, size no less "
            f"than that, and no more than the {min(height, width)} pixels of the image."
        )
    places = [(row, column) for row in _places(height, size, stride) for column in _places(width, size, stride)]
    filled = jnp.broadcast_to(jnp.asarray(fill, jnp.float32), images.shape)
    logits_fn, classes = _compiled_once(logits_fn), jnp.asarray(classes, jnp.int32)
    whole = np.asarray(_class_logits(logits_fn, images[None], classes))
    falls, counts = np.zeros((len(images), height, width), np.float64), np.zeros((height, width))
    for indices, weights in _groups(len(places), len(images)):
        squares = [_square(places[index], size) for index in indices]
        hidden = np.zeros((len(squares), height, width), bool)
        for mask, square in zip(hidden, squares, strict=True):
            mask[square] = True
        points = jnp.where(hidden[:, None, :, :, None], filled[None], images[None])
        logits = np.asarray(_class_logits(logits_fn, points, classes))
        for square, weight, fall in zip(squares, weights, whole - logits, strict=True):
            falls[:, *square] += weight * fall[:, None, None]
            counts[square] += weight
    return (falls / counts).astype(np.float32)


def _ends(images: jax.Array | np.ndarray, baseline: float | jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Returns images and baseline, both f32[b h w c]."""
    images = jnp.asarray(images, jnp.float32)
    return images, jnp.broadcast_to(jnp.asarray(baseline, jnp.float32), images.shape)


def _difference(
    logits_fn: LogitsFn, start: jax.Array, images: jax.Array, classes: jax.Array | np.ndarray
) -> np.ndarray:
    """Returns f32[b], the logits of the classes for the images minus those for `start`."""
    points = jnp.stack([start, images])
    logits = np.asarray(_class_logits(_compiled_once(logits_fn), points, jnp.asarray(classes, jnp.int32)))
    return logits[1] - logits[0]


def _gaps(found: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Returns f32[b], how far the sums of f32[b h w c] are off f32[b], as a part of it: of 0, nothing or infinite."""
    off = np.abs(found.sum(axis=(1, 2, 3)) - difference)
    part = np.where(off > 0, np.float32(np.inf), np.float32(0))
    return np.divide(off, np.abs(difference), out=part, where=difference != 0)


def _mean_gradient(
    logits_fn: LogitsFn, points: Callable[[np.ndarray], jax.Array], count: int, classes: jax.Array | np.ndarray
) -> np.ndarray:
    """Returns the mean f32[b h w c] of the gradients at `points` of the indices [g] below `count`, [g b h w c]."""
    logits_fn, classes = _compiled_once(logits_fn), jnp.asarray(classes, jnp.int32)
    # A loop in Python, as convolutions inside one of XLA lose their threads on CPUs.
    total = np.zeros((), np.float64)
    for indices, weights in _groups(count, len(classes)):
        total = total + np.asarray(_gradient(logits_fn, points(indices), classes, weights), np.float64)
    return (total / count).astype(np.float32)


def _groups(count: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns indices below `count` in groups of one length, so that one program does, with weights 0 for repeats."""
    length = min(count, max(1, BATCH // batch))
    padded = np.arange(math.ceil(count / length) * length)
    indices, weights = np.minimum(padded, count - 1), (padded < count).astype(np.float32)
    return list(zip(indices.reshape(-1, length), weights.reshape(-1, length), strict=True))


def _compiled_once(logits_fn: LogitsFn) -> Partial:
    return logits_fn if isinstance(logits_fn, Partial) else Partial(logits_fn)


@jax.jit
def _class_logits(logits_fn: Partial, points: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns f32[g b] of points f32[g b h w c]."""
    groups, batch, *shape = points.shape
    logits = logits_fn(points.reshape(groups * batch, *shape)).reshape(groups, batch, -1)
    chosen = jnp.broadcast_to(classes[None, :, None], (groups, batch, 1))
    return jnp.take_along_axis(logits, chosen, axis=2)[..., 0]


@jax.jit
def _gradient(logits_fn: Partial, points: jax.Array, classes: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns f32[b h w c], the sum of the gradients at points f32[g b h w c] with weights f32[g]."""
    gradients = jax.grad(lambda points: _class_logits(logits_fn, points, classes).sum())(points)
    return (gradients * weights.reshape(-1, 1, 1, 1, 1)).sum(axis=0)


def _places(length: int, size: int, stride: int) -> list[int]:
    """Returns where squares start along an axis."""
    return sorted({*range(0, length - size + 1, stride), length - size})


def _square(place: tuple[int, int], size: int) -> tuple[slice, slice]:
    row, column = place
    return slice(row, row + size), slice(column, column + size)
