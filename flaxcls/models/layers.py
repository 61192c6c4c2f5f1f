"""Layers that more than one model uses."""

import jax
from flax import linen as nn

from flaxcls.errors import InputError

ACTIVATIONS = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": nn.tanh,
    "sigmoid": nn.sigmoid,
}


def _windows(images: jax.Array, size: int) -> jax.Array:
    """Cuts [b h w c] into tiling windows [b h/size size w/size size c]; rows and columns left over are dropped."""
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    if min(rows, columns) == 0:
        raise InputError(
            f"a {size}x{size} pooling window does not fit a feature map of {height}x{width}: "
            "the image is too small for the network; use larger images or fewer model.widths."
        )
    return images[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, channels)


def max_pool(images: jax.Array, size: int) -> jax.Array:
    """Largest value of each tiling window: [b h w c] -> [b h//size w//size c].

    Equal to `nn.max_pool` with that window and stride, and to its gradient where no values tie, but the gradient is
    a comparison instead of a select-and-scatter, which is slow on CPUs and GPUs.
    """
    return _windows(images, size).max(axis=(2, 4))


def average_pool(images: jax.Array, size: int) -> jax.Array:
    """Mean of each tiling window: [b h w c] -> [b h//size w//size c]."""
    return _windows(images, size).mean(axis=(2, 4))


POOLINGS = {"max": max_pool, "average": average_pool}
