"""Filters for a first layer, computed from images: they make the values of a patch uncorrelated, with size 1."""

import jax
import jax.numpy as jnp

from flaxcls.errors import InputError


def whitening_kernel(images: jax.Array, size: int, *, epsilon: float = 5e-4) -> jax.Array:
    """Returns the kernel f32[k k c 2*k*k*c] of a whitening convolution of `size` k.

    v and e are the eigenvectors and eigenvalues of the second moment (the mean is not subtracted) of all k x k patches
    of the images. The filters are v / sqrt(e + epsilon), largest e first, and then their negatives, so that one filter
    of a pair keeps what an activation cuts off from the other (Page 2018, "How to Train Your ResNet", in the form of
    Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU").

    Args:
      images: f32[n h w c], normalised like those that the model gets; a few thousand are enough.
      size: height and width of a patch, in pixels.
      epsilon: bounds the filters in directions in which patches hardly vary, by 1 / sqrt(epsilon).

    Raises:
      InputError: if the images are smaller than a patch.
    """
    if min(images.shape[1:3]) < size:
        raise InputError(
            f"images of {images.shape[1]}x{images.shape[2]} pixels have no {size}x{size} patch: use larger images."
        )
    patch = size * size * images.shape[3]
    height, width = (side - size + 1 for side in images.shape[1:3])
    taps = [images[:, row : row + height, column : column + width] for row in range(size) for column in range(size)]
    patches = jnp.concatenate(taps, axis=-1, dtype=jnp.float32).reshape(-1, patch)
    # by default a GPU uses TensorFloat-32, whose errors are larger than the small eigenvalues
    moment = jnp.matmul(patches.T, patches, precision="highest") / patches.shape[0]
    values, vectors = jnp.linalg.eigh(moment)
    filters = (vectors / jnp.sqrt(values + epsilon)[None])[:, ::-1]
    return jnp.concatenate([filters, -filters], axis=1).reshape(size, size, images.shape[3], 2 * patch)
