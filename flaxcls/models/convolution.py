"""Convolution for `linen.Conv(conv_general_dilated=...)`, with a kernel gradient that is fast on CPUs.

What a convolution gives is XLA's own everywhere, and so are both gradients on GPUs and TPUs. On CPUs XLA makes slow
code of the gradient of a kernel of few channels, which is one product of matrices over all windows of the images.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Kernels of fewer input channels get it: a first convolution, where it takes 0.54 times XLA's time on jax 0.12 and 0.33
# times on 0.10.2 (python -m experiments.benchmarks.gradients). With more, the windows take so much memory that getting
# it costs what is saved (experiments/benchmarks/NOTES.md).
FEW_CHANNELS = 8


def convolve(images: jax.Array, kernel: jax.Array, window_strides: Any, padding: Any, **options: Any) -> jax.Array:
    """Is `lax.conv_general_dilated`, whose arguments it takes, for reverse-mode differentiation.

    The gradient of the kernel [kh kw c k] is written as a product of matrices on CPUs where c is less than
    `FEW_CHANNELS`, strides and dilations are 1, and there is one group.
    """

    def plain(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(images, kernel, window_strides, padding, **options)

    if not _is_simple(images, kernel, window_strides, padding, options):
        return plain(images, kernel)
    named = isinstance(padding, str)
    pads = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], (1, 1), padding) if named else padding

    @jax.custom_vjp
    def convolved(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return plain(images, kernel)

    def forward(images: jax.Array, kernel: jax.Array) -> Any:
        return plain(images, kernel), (images, kernel)

    def backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, kernel = saved
        of_images = jax.vjp(lambda x: plain(x, kernel), images)[1](gradient)[0]
        of_kernel = lax.platform_dependent(
            images,
            kernel,
            gradient,
            cpu=lambda x, w, g: _kernel_gradient(x, g, w.shape, pads),
            default=lambda x, w, g: jax.vjp(lambda w: plain(x, w), w)[1](g)[0],
        )
        return of_images, of_kernel

    convolved.defvjp(forward, backward)
    return convolved(images, kernel)


def _is_simple(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, options: dict[str, Any]) -> bool:
    layout = lax.conv_dimension_numbers(images.shape, kernel.shape, options.get("dimension_numbers"))
    usual = lax.conv_dimension_numbers(images.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    dilations = [*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())]
    ones = all(number == 1 for number in (*np.atleast_1d(strides), *dilations, options.get("feature_group_count", 1)))
    return layout == usual and ones and kernel.shape[2] < FEW_CHANNELS and images.dtype == jnp.float32


def _kernel_gradient(images: jax.Array, gradient: jax.Array, shape: Any, pads: Any) -> jax.Array:
    """Returns f32[kh kw c k]: the windows of all images, as a matrix, times the gradient of what they became."""
    height, width, channels, features = shape
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)))
    windows = _gathered(padded, (height, width), (gradient.shape[1], gradient.shape[2]))
    return (windows.reshape(-1, height * width * channels).T @ gradient.reshape(-1, features)).reshape(shape)


def _gathered(images: jax.Array, window: tuple[int, int], places: tuple[int, int]) -> jax.Array:
    """Returns the windows [b, rows * columns * kh * kw * c] of images [b h w c], by the place of each number."""
    batch, _, width, channels = images.shape
    row, column, down, right = np.ogrid[: places[0], : places[1], : window[0], : window[1] * channels]
    at = (row + down) * width * channels + column * channels + right
    return jnp.take(images.reshape(batch, -1), at.reshape(-1), axis=1)
