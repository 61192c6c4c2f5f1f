"""A plain convolutional network."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.errors import InputError
from flaxcls.models.convolution import convolve
from flaxcls.models.layers import ACTIVATIONS, POOLINGS, normalize


class CNN(nn.Module):
    """Blocks of convolution, normalisation, activation and 2x2 pooling (none after the last), then dense layers.

    num_classes: k, the number of logits.
    widths: channels of each convolution.
    dense: units of each hidden dense layer.
    kernel_size: height and width of the convolutions, in pixels.
    padding: "same" or "valid".
    activation: a name in `layers.ACTIVATIONS`.
    pooling: a name in `layers.POOLINGS`.
    norm: a name in `layers.NORMS`; `layers.normalize` explains them.
    dropout: probability that a unit of a hidden dense layer is dropped in training.
    dtype: type of the computation; parameters and statistics are float32.
    axis_name: the mapped axis over which batch statistics are computed under pmap or shard_map; jit needs none.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 64)
    dense: tuple[int, ...] = (64,)
    kernel_size: int = 3
    padding: str = "same"
    activation: str = "relu"
    pooling: str = "max"
    norm: str = "none"
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.dtype("float32")
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images f32[b h w c] to logits f32[b k]. Raises InputError if the images are too small."""
        activation, pool = ACTIVATIONS[self.activation], POOLINGS[self.pooling]
        initializer = nn.initializers.glorot_uniform()
        x = images.astype(self.dtype)
        for index, width in enumerate(self.widths):
            if index > 0:
                x = pool(x, 2)
            self._check_fits(x)
            x = nn.Conv(
                width,
                (self.kernel_size, self.kernel_size),
                padding=self.padding.upper(),
                use_bias=self.norm == "none",
                kernel_init=initializer,
                dtype=self.dtype,
                conv_general_dilated=convolve,
            )(x)
            x = activation(normalize(x, self.norm, train, dtype=self.dtype, axis_name=self.axis_name))
        x = x.reshape(x.shape[0], -1)
        for units in self.dense:
            x = activation(nn.Dense(units, kernel_init=initializer, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = nn.Dense(self.num_classes, kernel_init=initializer, dtype=self.dtype)(x)
        return logits.astype(jnp.float32)

    def _check_fits(self, x: jax.Array) -> None:
        height, width = x.shape[1:3]
        if self.padding == "valid" and min(height, width) < self.kernel_size:
            raise InputError(
                f"a {self.kernel_size}x{self.kernel_size} convolution with padding 'valid' does not fit a feature map "
                f"of {height}x{width}: the image is too small for the network; use larger images, padding 'same' "
                "or fewer model.widths."
            )
