"""Convolution for `linen.Conv(conv_general_dilated=...)`, with a kernel gradient that is fast on CPUs.

XLA's CPU code reads the whole gradient of the output again for each number of the kernel's gradient, or nearly so: two
to four times slower than the convolution itself as soon as that gradient does not fit in the cache of a core.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Of a part's output gradient; a core's own cache holds 1 to 2 MiB. `python -m experiments.benchmarks.gradients`
# measures the gain (experiments/benchmarks/NOTES.md).
PART_BYTES = 2**20
MOST_PARTS = 32  # each is a convolution to be compiled


def convolve(images: jax.Array, kernel: jax.Array, window_strides: Any, padding: Any, **options: Any) -> jax.Array:
    """Is `lax.conv_general_dilated`, whose arguments it takes, for reverse-mode differentiation.

    On CPUs the gradient of the kernel is the sum of those of parts of the batch, each small enough for the cache. What
    is convolved, and the gradient of the images, are XLA's own, as is all on GPUs and TPUs.
    """

    def plain(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(images, kernel, window_strides, padding, **options)

    def kernel_gradient(images: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda w: plain(images, w), kernel)[1](gradient)[0]

    def sum_of_parts(images: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        parts = _parts(gradient)
        # every parts-th image, which keeps each on its device
        x, g = (array.reshape(len(array) // parts, parts, *array.shape[1:]) for array in (images, gradient))
        return reduce(jnp.add, (kernel_gradient(x[:, part], kernel, g[:, part]) for part in range(parts)))

    @jax.custom_vjp
    def convolved(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return plain(images, kernel)

    def forward(images: jax.Array, kernel: jax.Array) -> Any:
        return plain(images, kernel), (images, kernel)

    def backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, kernel = saved
        of_images = jax.vjp(lambda x: plain(x, kernel), images)[1](gradient)[0]
        return of_images, lax.platform_dependent(images, kernel, gradient, cpu=sum_of_parts, default=kernel_gradient)

    convolved.defvjp(forward, backward)
    layout = lax.conv_dimension_numbers(images.shape, kernel.shape, options.get("dimension_numbers"))
    batch_first = layout.lhs_spec[0] == layout.out_spec[0] == 0 and options.get("batch_group_count", 1) == 1
    return convolved(images, kernel) if batch_first else plain(images, kernel)


def _parts(gradient: jax.Array) -> int:
    """Returns into how many equal parts to cut the batch of `gradient` [b ...]."""
    batch, size = gradient.shape[0], gradient.size * gradient.dtype.itemsize
    possible = [parts for parts in range(1, MOST_PARTS + 1) if batch % parts == 0]
    return next((parts for parts in possible if size <= parts * PART_BYTES), possible[-1])
