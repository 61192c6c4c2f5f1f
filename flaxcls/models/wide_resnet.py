"""Wide residual networks (Zagoruyko and Komodakis 2016, "Wide Residual Networks"), for small images."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.models.layers import (
    ACTIVATIONS,
    CLASSIFIER_INIT,
    HE_FAN_OUT,
    SqueezeExcitation,
    check_size,
    normalize,
    stochastic_depth,
)


class PreActivationBlock(nn.Module):
    """Norm, activation and 3x3 convolution, twice, added to the input; dropout lies between the convolutions.

    drop: probability that the convolutions are skipped in training. The other fields are those of `WideResNet`.
    """

    width: int
    stride: int
    norm: str
    activation: str
    dropout: float
    drop: float
    squeeze_excitation: bool
    zero_init: bool
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [b h w c] to [b h/stride w/stride width]; sizes are rounded up."""
        activation = ACTIVATIONS[self.activation]
        norm = partial(normalize, norm=self.norm, train=train, dtype=self.dtype, axis_name=self.axis_name)
        conv = partial(nn.Conv, use_bias=self.norm == "none", kernel_init=HE_FAN_OUT, dtype=self.dtype)

        y = activation(norm(x))
        if x.shape[-1] != self.width or self.stride > 1:
            x = conv(self.width, (1, 1), strides=self.stride, padding=0)(y)
        y = conv(self.width, (3, 3), strides=self.stride, padding=1)(y)
        y = nn.Dropout(self.dropout, deterministic=not train)(activation(norm(y)))
        last_init = nn.initializers.zeros if self.zero_init else HE_FAN_OUT
        y = conv(self.width, (3, 3), padding=1, kernel_init=last_init)(y)
        if self.squeeze_excitation:
            y = SqueezeExcitation(dtype=self.dtype)(y)
        return x + stochastic_depth(y, self.drop, train)


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of pre-activation blocks, a last norm and activation, global mean, classifier.

    num_classes: k, how many logits there are.
    depth: convolutions counted along the path, 6 n + 4 for n blocks a stage.
    widen: how many times wider than 16, 32 and 64 channels the stages are.
    norm: a name in `layers.NORMS`; `layers.normalize` says what each means.
    activation: a name in `layers.ACTIVATIONS`.
    dropout: probability that a value between a block's convolutions is dropped in training; the paper has 0.3.
    stochastic_depth: probability that the last block is skipped in training; block l of L is with l / L of it.
    squeeze_excitation: whether each block scales its channels by what all of the image holds.
    zero_init: whether the last convolution of each block starts at zero, as a block ends in no scale that could; a
      scale of zero before the activation would never be trained. The paper starts none at zero.
    dtype: of the computation; parameters and statistics are float32.
    axis_name: the mapped axis over which batch statistics are taken under pmap or shard_map; jit needs none.
    """

    num_classes: int
    depth: int
    widen: int
    norm: str = "batch"
    activation: str = "relu"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    squeeze_excitation: bool = False
    zero_init: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images f32[b h w c] to logits f32[b k]. Raises InputError where the images are too small."""
        check_size(images, 4, "use larger images")
        blocks, remainder = divmod(self.depth - 4, 6)
        if remainder or blocks < 1:
            raise ValueError(f"depth is {self.depth}, but must be 6 n + 4 for n blocks a stage: 10, 16, 22, 28, 40.")
        x = nn.Conv(16, (3, 3), padding=1, use_bias=self.norm == "none", kernel_init=HE_FAN_OUT, dtype=self.dtype)(
            images.astype(self.dtype)
        )
        count = 0
        for stage, width in enumerate((16, 32, 64)):
            for index in range(blocks):
                count += 1
                x = PreActivationBlock(
                    width * self.widen,
                    stride=2 if stage > 0 and index == 0 else 1,
                    norm=self.norm,
                    activation=self.activation,
                    dropout=self.dropout,
                    drop=self.stochastic_depth * count / (3 * blocks),
                    squeeze_excitation=self.squeeze_excitation,
                    zero_init=self.zero_init,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x, train)
        x = normalize(x, self.norm, train, dtype=self.dtype, axis_name=self.axis_name)
        x = ACTIVATIONS[self.activation](x).mean(axis=(1, 2))
        logits = nn.Dense(self.num_classes, kernel_init=CLASSIFIER_INIT, dtype=self.dtype, name="classifier")(x)
        return logits.astype(jnp.float32)


def wide_resnet_28_10(num_classes: int, **options: Any) -> WideResNet:
    """28 layers, ten times as wide: the paper's best on CIFAR."""
    return WideResNet(num_classes, depth=28, widen=10, **options)


def wide_resnet_16_4(num_classes: int, **options: Any) -> WideResNet:
    """16 layers, four times as wide: a small one."""
    return WideResNet(num_classes, depth=16, widen=4, **options)
