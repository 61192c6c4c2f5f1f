"""Layers that more than one model uses."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.errors import InputError, unknown

ACTIVATIONS = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "leaky_relu": nn.leaky_relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": nn.tanh,
    "sigmoid": nn.sigmoid,
}

NORMS = ("batch", "group", "layer", "none")

# He et al. 2015, "Delving Deep into Rectifiers", in the form that preserves the variance of gradients.
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Each output of a depthwise convolution has one input channel, so its fan-in equals the outputs that an input reaches.
HE_DEPTHWISE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1: initial predictions are nearly uniform.
CLASSIFIER_INIT = nn.initializers.normal(0.01)
# Uniform within 1 / sqrt(fan_in), the default of PyTorch (LeCun et al. 1998).
UNIFORM_FAN_IN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def identity_init(base: nn.initializers.Initializer = UNIFORM_FAN_IN) -> nn.initializers.Initializer:
    """Returns the initializer of kernels [k k c_in c_out] whose first filters pass the input through.

    Output i is input i, for the first min(c_in, c_out) channels. `base` initialises the remaining filters (Zagoruyko
    and Komodakis 2017, "DiracNets", fill all of them). So initially no information is lost, however deep the network.
    """

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        height, width, c_in, c_out = shape
        same = min(c_in, c_out)
        kernel = base(key, shape, dtype).at[..., :same].set(0)
        channels = jnp.arange(same)
        return kernel.at[height // 2, width // 2, channels, channels].set(1)

    return init


def unit_deviation(base: nn.initializers.Initializer = UNIFORM_FAN_IN) -> nn.initializers.Initializer:
    """Returns the initializer `base` with its values divided by their standard deviation."""

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        kernel = base(key, shape, dtype)
        return kernel / jnp.std(kernel)

    return init


def check_size(images: jax.Array, smallest: int, advice: str) -> None:
    """Raises InputError, with the `advice`, if images [b h w c] are not at least `smallest` pixels high and wide."""
    height, width = images.shape[1:3]
    if min(height, width) < smallest:
        raise InputError(
            f"the image is too small for the network: {height}x{width} pixels, but it halves the image until "
            f"{smallest}x{smallest} pixels become one, so it needs at least that many; {advice}."
        )


def normalize(
    x: jax.Array,
    norm: str,
    train: bool,
    *,
    dtype: jnp.dtype,
    axis_name: str | None = None,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> jax.Array:
    """Normalises x [b h w c] with a norm of the calling module, followed by a scale and a bias per channel.

    norm: a name in `NORMS`.
      batch: over the batch and all positions (Ioffe and Szegedy 2015); evaluation uses running averages. With fewer
        than about 16 examples the statistics are too noisy, and with one example they mean nothing. They mix examples,
        so no example has a gradient of its own, which differential privacy needs for clipping.
      group: per example, over all positions and the channels of a group (Wu and He 2018). It works with any batch size
        and with private training. There are up to 32 groups, as in the paper, of 4 channels or more.
      layer: over the channels at each position (Ba et al. 2016, in the form of ConvNeXt). Batch size and privacy as
        with group.
      none: x itself. Batch size and privacy as with group; deep networks then need lower learning rates.
    axis_name: with batch, the mapped axis over which the statistics are shared under pmap or shard_map.
    scale_init: initializer of the scale.
    """
    if norm == "batch":
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, dtype=dtype, axis_name=axis_name, scale_init=scale_init
        )(x)
    if norm == "group":
        channels = x.shape[-1]
        groups = max(1, min(math.gcd(channels, 32), channels // 4))
        return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=dtype, scale_init=scale_init)(x)
    if norm == "layer":
        return nn.LayerNorm(dtype=dtype, scale_init=scale_init)(x)
    if norm == "none":
        return x
    raise InputError(unknown("norm", norm, NORMS))


def stochastic_depth(branch: jax.Array, rate: float, train: bool) -> jax.Array:
    """Drops the whole residual branch [b h w c] of an example with probability `rate` in training.

    Kept branches are scaled by 1 / (1 - rate), so that evaluation needs no correction (Huang et al. 2016, "Deep
    Networks with Stochastic Depth", scale evaluation instead).
    """
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)(branch)


class SqueezeExcitation(nn.Module):
    """A scaling of channels that depends on the whole image (Hu et al. 2018, "Squeeze-and-Excitation Networks").

    reduction: channels divided by the units of the hidden layer.
    """

    reduction: int = 16
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b h w c] to the same shape."""
        channels = x.shape[-1]
        squeezed = x.mean(axis=(1, 2), keepdims=True)
        hidden = nn.relu(nn.Dense(max(channels // self.reduction, 1), dtype=self.dtype)(squeezed))
        return x * nn.sigmoid(nn.Dense(channels, dtype=self.dtype)(hidden))


def _windows(images: jax.Array, size: int) -> jax.Array:
    """Cuts [b h w c] into tiling windows [b h/size size w/size size c]; drops remaining rows and columns."""
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    if min(rows, columns) == 0:
        raise InputError(
            f"a {size}x{size} pooling window does not fit a feature map of {height}x{width}: "
            "the image is too small for the network; use larger images or fewer model.widths."
        )
    return images[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, channels)


def max_pool(images: jax.Array, size: int) -> jax.Array:
    """Returns the largest value of each tiling window: [b h w c] -> [b h//size w//size c].

    It equals `nn.max_pool` with that window and stride. The gradient goes to the first largest value of a window, row
    by row. It is computed by comparisons, because a select-and-scatter is slow on CPUs and GPUs. Second derivatives are
    computed as if a window had no equal values.
    """
    return _max_of(_windows(images, size))


@jax.custom_jvp
def _max_of(windows: jax.Array) -> jax.Array:
    """Returns the largest value of each window: [b r s c s k] -> [b r c k]."""
    return windows.max(axis=(2, 4))


@_max_of.defjvp
def _max_of_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (windows,), (changes,) = primals, tangents
    largest, place = jax.lax.platform_dependent(windows, cpu=_largest_then_place, default=_largest_and_place)
    at_place = _places(windows.shape) == place[:, :, None, :, None]
    return largest, jnp.where(at_place, changes, 0).sum(axis=(2, 4))


def _places(shape: tuple[int, ...]) -> jax.Array:
    """Returns the number of each place within windows [b r s c s k], row by row."""
    size = shape[2]
    small = jnp.int8 if size < 12 else jnp.int32  # bytes make this a third faster on CPUs
    row, column = (jax.lax.broadcasted_iota(small, shape, axis) for axis in (2, 4))
    return row * size + column


def _largest_and_place(windows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the largest value of each window without NaN, and its first place, both [b r c k].

    It never asks which value equals the largest: XLA may compute a value a second time and round it differently, then
    no value would, and the gradient of the window would be lost.
    """
    size = windows.shape[2]
    largest = windows[:, :, 0, :, 0]
    place = jnp.zeros_like(largest, _places(windows.shape).dtype)
    for number in range(1, size**2):
        value = windows[:, :, number // size, :, number % size]
        place = jnp.where(value > largest, jnp.asarray(number, place.dtype), place)
        largest = jnp.maximum(largest, value)
    return largest, place


def _largest_then_place(windows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Like `_largest_and_place`, but reads the windows twice, which is faster on a CPU.

    There, a step of the tutorial's network takes a tenth longer with one reading, and on jax 0.12 up to a fifth with
    one comparison after another (experiments/benchmarks/NOTES.md).
    """
    if jax.__version_info__ < (0, 12):  # on 0.10.2, XLA ignores the barrier on a CPU, and the comparisons cost nothing
        return windows.max(axis=(2, 4)), _largest_and_place(windows)[1]
    windows = jax.lax.optimization_barrier(windows)  # each value is computed once, so one of them equals the largest
    largest = windows.max(axis=(2, 4), keepdims=True)
    places = jnp.where(windows == largest, _places(windows.shape), windows.shape[2] ** 2)
    return largest[:, :, 0, :, 0], places.min(axis=(2, 4))


def average_pool(images: jax.Array, size: int) -> jax.Array:
    """Returns the mean of each tiling window: [b h w c] -> [b h//size w//size c]."""
    return _windows(images, size).mean(axis=(2, 4))


POOLINGS = {"max": max_pool, "average": average_pool}
