"""A convolution for `linen.Conv(conv_general_dilated=...)`, whose kernel gradient is fast on CPUs.

For almost every number of the kernel's gradient, XLA's CPU code reads the whole output gradient again. This is two to
four times slower than the convolution itself as soon as the output gradient does not fit in the cache of a core.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Size of a chunk's output gradient; the cache of a core has 1 to 2 MiB. `python -m experiments.benchmarks.gradients`
# measures the gain (experiments/benchmarks/NOTES.md).
CHUNK_BYTES = 2**20
MOST_CHUNKS = 32  # each chunk compiles a convolution


def convolve(images: jax.Array, kernel: jax.Array, window_strides: Any, padding: Any, **options: Any) -> jax.Array:
    """Like `lax.conv_general_dilated`, with the same arguments, but differentiable in reverse mode only.

    On CPUs the kernel gradient is a sum over chunks of the batch that are small enough for the cache. The convolution
    and the image gradient are XLA's own. On GPUs and TPUs everything is XLA's own.
    """

    def plain(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(images, kernel, window_strides, padding, **options)

    def kernel_gradient(images: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda w: plain(images, w), kernel)[1](gradient)[0]

    def sum_over_chunks(images: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        chunks = _chunks(gradient)
        # each chunk takes every chunks-th image, so no image changes device
        x, g = (array.reshape(len(array) // chunks, chunks, *array.shape[1:]) for array in (images, gradient))
        return reduce(jnp.add, (kernel_gradient(x[:, chunk], kernel, g[:, chunk]) for chunk in range(chunks)))

    @jax.custom_vjp
    def convolved(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return plain(images, kernel)

    def forward(images: jax.Array, kernel: jax.Array) -> Any:
        return plain(images, kernel), (images, kernel)

    def backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, kernel = saved
        of_images = jax.vjp(lambda x: plain(x, kernel), images)[1](gradient)[0]
        return of_images, lax.platform_dependent(images, kernel, gradient, cpu=sum_over_chunks, default=kernel_gradient)

    convolved.defvjp(forward, backward)
    layout = lax.conv_dimension_numbers(images.shape, kernel.shape, options.get("dimension_numbers"))
    batch_first = layout.lhs_spec[0] == layout.out_spec[0] == 0 and options.get("batch_group_count", 1) == 1
    return convolved(images, kernel) if batch_first else plain(images, kernel)


def _chunks(gradient: jax.Array) -> int:
    """Returns the number of equal chunks of the batch of `gradient` [b ...]."""
    batch, size = gradient.shape[0], gradient.size * gradient.dtype.itemsize
    possible = [chunks for chunks in range(1, MOST_CHUNKS + 1) if batch % chunks == 0]
    return next((chunks for chunks in possible if size <= chunks * CHUNK_BYTES), possible[-1])
