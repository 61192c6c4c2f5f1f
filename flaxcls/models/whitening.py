"""A first layer whose filters come from the images: it makes the values of every patch uncorrelated, of size 1."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.errors import InputError


def whitening_init(images: jax.Array, *, epsilon: float = 5e-4) -> nn.initializers.Initializer:
    """Returns the initializer (key, shape, dtype) -> kernel f32[k k c 2*k*k*c] of a whitening convolution.

    With v and e the eigenvectors and eigenvalues of the second moment (the mean is not taken off) of all k x k patches
    of the images, the filters are v / sqrt(e + epsilon), largest e first, and then their negatives, so that what an
    activation cuts off of one is kept by the other (Page 2018, "How to Train Your ResNet", as Jordan 2024, "94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU", has it). No random number is drawn.

    Nothing is computed before the initializer is called, and then it is on the device. Under jit the images should be
    an argument of the jitted function, or they become a constant of its program.

    Args:
      images: f32[n h w c], as the model gets them, so normalised; a few thousand are enough.
      epsilon: bounds the filters where patches hardly vary, by 1 / sqrt(epsilon).

    Raises:
      InputError: from the initializer, if the kernel's shape is another or the images are smaller than a patch.
    """

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        _check(tuple(shape), images.shape)
        size, patch = shape[0], shape[0] * shape[1] * shape[2]
        height, width = (side - size + 1 for side in images.shape[1:3])
        taps = [images[:, row : row + height, column : column + width] for row in range(size) for column in range(size)]
        patches = jnp.concatenate(taps, axis=-1, dtype=jnp.float32).reshape(-1, patch)
        # on a GPU the default precision is that of TensorFloat-32, whose errors the small eigenvalues would drown in
        moment = jnp.matmul(patches.T, patches, precision="highest") / patches.shape[0]
        values, vectors = jnp.linalg.eigh(moment)
        filters = (vectors / jnp.sqrt(values + epsilon)[None])[:, ::-1]
        return jnp.concatenate([filters, -filters], axis=1).reshape(shape).astype(dtype)

    return init


def _check(shape: tuple[int, ...], images: tuple[int, ...]) -> None:
    if len(images) != 4:
        raise InputError(f"the images have the shape {images}: whitening needs [n h w c].")
    channels = images[3]
    if len(shape) != 4 or shape[0] != shape[1] or shape[2:] != (channels, 2 * shape[0] * shape[0] * channels):
        size = shape[0]
        raise InputError(
            f"the kernel has the shape {shape}, but that of a {size}x{size} whitening of images with {channels} "
            f"channels is {(size, size, channels, 2 * size * size * channels)}: as many filters as a patch has values, "
            "and their negatives."
        )
    if min(images[1:3]) < shape[0]:
        raise InputError(
            f"images of {images[1]}x{images[2]} pixels have no {shape[0]}x{shape[0]} patch: use larger images."
        )
