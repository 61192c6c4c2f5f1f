"""Methods that show which parts of an image a model responds to: its gradients, and hidden parts of the image.

The methods take a function `logits_fn` from images f32[b h w c] to logits f32[b k], in which no example depends on
another. An example is `partial(model.apply, variables, train=False)`; a `jax.tree_util.Partial` of it compiles once for
all parameters. The methods explain the logit of one class for each image, in the units of the given images.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from flaxcls.errors import InputError

LogitsFn = Callable[[jax.Array], jax.Array]

# Images computed at once, unless the caller's batch is larger.
BATCH = 32
# For integrated gradients: the most parts of the line, and the relative error that a sum may have.
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
    """Returns f32[b h w c]; its sum over an image is the logit of the image minus the logit of the baseline.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks": the gradient, averaged over the line from the
    baseline to the image, times their difference. The average uses the middle of equal parts of the line. A network
    with piecewise linear activations has gradients that jump, so no rule of a higher order is better.

    Args:
      logits_fn: a function from images to logits, see the module.
      images: f32[b h w c].
      classes: i32[b], the classes whose logits are explained.
      baseline: the image that stands for "no image": a number, f32[c] or f32[h w c].
      steps: number of parts of the line. It is doubled, up to `MOST_STEPS`, until each sum is within 1 % of the
        difference of the logits. A logit that almost jumps may not reach this; `completeness_gap` returns the error.
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
    """Returns f32[b], the relative error of the sums of integrated gradients.

    The error is the distance between a sum and the difference of the logits, divided by that difference.

    Args:
      found: f32[b h w c], the result of `integrated_gradients` for the other arguments.
      logits_fn, images, classes, baseline: the arguments that it was given.
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
      logits_fn: a function from images to logits, see the module.
      images: f32[b h w c].
      classes: i32[b], the classes whose logits are explained.
      key: random key for the noise.
      noise: standard deviation in the units of the images; the paper uses 0.1 to 0.2 of the range of their values.
      samples: number of noisy copies of each image.
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
    """Returns f32[b h w]: the fall of the logit when a square hides the pixel, averaged over all such squares.

    Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2.

    Args:
      logits_fn: a function from images to logits, see the module.
      images: f32[b h w c].
      classes: i32[b], the classes whose logits are explained.
      size: side of the square, in pixels.
      stride: distance between neighbouring squares, in pixels; the last row and column of squares end at the image's
        edge.
      fill: content of the square: a number, f32[c] or f32[h w c].

    Raises InputError if a square is larger than the image, or if the squares leave pixels between them.
    """
    images = jnp.asarray(images, jnp.float32)
    height, width = images.shape[1:3]
    if not 1 <= stride <= size <= min(height, width):
        raise InputError(
            f"a square of {size} pixels every {stride} pixels was given, but stride must be 1 or more, and size "
            f"must lie between stride and the {min(height, width)} pixels of the image."
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
    """Returns the images and the baseline, both f32[b h w c]."""
    images = jnp.asarray(images, jnp.float32)
    return images, jnp.broadcast_to(jnp.asarray(baseline, jnp.float32), images.shape)


def _difference(
    logits_fn: LogitsFn, start: jax.Array, images: jax.Array, classes: jax.Array | np.ndarray
) -> np.ndarray:
    """Returns f32[b]: the logits of the classes for `images`, minus the logits for `start`."""
    points = jnp.stack([start, images])
    logits = np.asarray(_class_logits(_compiled_once(logits_fn), points, jnp.asarray(classes, jnp.int32)))
    return logits[1] - logits[0]


def _gaps(found: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Returns f32[b], the relative error of the sums of f32[b h w c]; if the difference is 0, it is 0 or infinite."""
    off = np.abs(found.sum(axis=(1, 2, 3)) - difference)
    part = np.where(off > 0, np.float32(np.inf), np.float32(0))
    return np.divide(off, np.abs(difference), out=part, where=difference != 0)


def _mean_gradient(
    logits_fn: LogitsFn, points: Callable[[np.ndarray], jax.Array], count: int, classes: jax.Array | np.ndarray
) -> np.ndarray:
    """Returns the mean gradient f32[b h w c] at the points of all indices < count; `points`: [g] -> [g b h w c]."""
    logits_fn, classes = _compiled_once(logits_fn), jnp.asarray(classes, jnp.int32)
    # a loop in Python: inside a loop of XLA, convolutions lose their threads on CPUs
    total = np.zeros((), np.float64)
    for indices, weights in _groups(count, len(classes)):
        total = total + np.asarray(_gradient(logits_fn, points(indices), classes, weights), np.float64)
    return (total / count).astype(np.float32)


def _groups(count: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns groups of one length, for one program: indices below `count`, and weights, which are 0 for repeats."""
    length = min(count, max(1, BATCH // batch))
    padded = np.arange(math.ceil(count / length) * length)
    indices, weights = np.minimum(padded, count - 1), (padded < count).astype(np.float32)
    return list(zip(indices.reshape(-1, length), weights.reshape(-1, length), strict=True))


def _compiled_once(logits_fn: LogitsFn) -> Partial:
    return logits_fn if isinstance(logits_fn, Partial) else Partial(logits_fn)


@jax.jit
def _class_logits(logits_fn: Partial, points: jax.Array, classes: jax.Array) -> jax.Array:
    """Returns the logits f32[g b] of the classes at points f32[g b h w c]."""
    groups, batch, *shape = points.shape
    logits = logits_fn(points.reshape(groups * batch, *shape)).reshape(groups, batch, -1)
    chosen = jnp.broadcast_to(classes[None, :, None], (groups, batch, 1))
    return jnp.take_along_axis(logits, chosen, axis=2)[..., 0]


@jax.jit
def _gradient(logits_fn: Partial, points: jax.Array, classes: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns f32[b h w c], the sum of the gradients at points f32[g b h w c], weighted by f32[g]."""
    gradients = jax.grad(lambda points: _class_logits(logits_fn, points, classes).sum())(points)
    return (gradients * weights.reshape(-1, 1, 1, 1, 1)).sum(axis=0)


def _places(length: int, size: int, stride: int) -> list[int]:
    """Returns the start of each square along an axis."""
    return sorted({*range(0, length - size + 1, stride), length - size})


def _square(place: tuple[int, int], size: int) -> tuple[slice, slice]:
    row, column = place
    return slice(row, row + size), slice(column, column + size)
