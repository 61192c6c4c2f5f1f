"""The two gradients that flaxcls computes in its own way on CPUs, each alone, beside XLA's and linen's.

The first is the kernel gradient of a 3x3 convolution of 64 images, by `flaxcls.models.convolution.convolve` and by XLA,
for the shapes of the tutorial's network. The second is the gradient of relu and 2x2 pooling: by
`flaxcls.models.layers.max_pool`, by the maximum over the window's axes, which shares it between equal values, and by
`linen.max_pool`. They are measured in turn, each repeat starting with another.

Command:   python -m experiments.benchmarks.gradients
Hardware:  2 cores of an Intel Xeon, otherwise idle, Python 3.13 with jax 0.12.0.1 and Python 3.11 with jax 0.10.2
Result:    README.md
"""

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from flax import linen as nn
from jax import lax

from experiments.benchmarks.measure import Row, compare, in_turn, report
from flaxcls.models.convolution import convolve
from flaxcls.models.layers import max_pool

BATCH = 64
SHAPES = ((32, 3, 32), (15, 32, 64), (6, 64, 64))  # side, channels and features of each convolution


def kernel_gradient(convolution: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a function (images, kernel, gradient of the output) -> gradient of the kernel."""

    def gradient(images: jax.Array, kernel: jax.Array, output: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.vjp(lambda w: convolution(images, w, (1, 1), "VALID", dimension_numbers=layout), kernel)[1](output)[
            0
        ]

    return gradient


def pooling_gradient(pool: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """Returns a function (images, gradient of the output) -> gradient of the images, for relu and pooling."""
    return lambda images, output: jax.vjp(lambda x: pool(nn.relu(x)), images)[1](output)[0]


def shared_max_pool(images: jax.Array) -> jax.Array:
    """Returns the 2x2 max pooling of images with even sides; equal values share its gradient."""
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def milliseconds(call: Callable[..., Any], arguments: tuple[jax.Array, ...], calls: int) -> float:
    """Returns the mean time of a call over `calls` calls."""
    jax.block_until_ready(call(*arguments))
    began = time.perf_counter()
    for _ in range(calls):
        result = call(*arguments)
    jax.block_until_ready(result)
    return 1e3 * (time.perf_counter() - began) / calls


def rows_of(
    quantity: str, systems: dict[str, Callable[..., Any]], arguments: tuple[jax.Array, ...], repeats: int, calls: int
) -> list[Row]:
    """Returns a row for each system."""
    compiled = {name: jax.jit(system) for name, system in systems.items()}
    values: dict[str, list[float]] = {name: [] for name in systems}
    for name in in_turn([*systems], repeats):
        values[name].append(milliseconds(compiled[name], arguments, calls))
    libraries = {"jax": version("jax"), "jaxlib": version("jaxlib")}
    return compare(quantity, "ms", values, versions=dict.fromkeys(systems, libraries))


def main(repeats: int = 15, calls: int = 20, out: Path = Path("build/gradients.json")) -> None:
    """Prints medians over the repeats, their spread, and the ratio of each pair within a repeat; less is better.

    Args:
      repeats: measurements of each variant.
      calls: calls of each measurement.
      out: JSON file for the rows.
    """
    rows, key = [], jax.random.key(0)
    for side, channels, features in SHAPES:
        images = jax.random.normal(key, (BATCH, side, side, channels))
        kernel = jax.random.normal(key, (3, 3, channels, features))
        output = jax.random.normal(key, (BATCH, side - 2, side - 2, features))
        systems = {"flaxcls": kernel_gradient(convolve), "XLA": kernel_gradient(lax.conv_general_dilated)}
        name = f"kernel gradient, {side}x{side}x{channels} to {features}"
        rows += rows_of(name, systems, (images, kernel, output), repeats, calls)
    pools = {
        "flaxcls": lambda x: max_pool(x, 2),
        "shared": shared_max_pool,
        "linen": lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)),
    }
    images, output = jax.random.normal(key, (BATCH, 30, 30, 32)), jnp.ones((BATCH, 15, 15, 32))
    gradients = {name: pooling_gradient(pool) for name, pool in pools.items()}
    rows += rows_of("gradient of relu and pooling, 30x30x32", gradients, (images, output), repeats, calls)
    report(rows, out, {"images": BATCH, "repeats": repeats, "calls": calls, "device": jax.devices()[0].device_kind})


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.gradients")
