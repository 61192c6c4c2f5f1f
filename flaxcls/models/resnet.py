"""Residual networks, one class for the family.

Sources: He et al. 2016, "Deep Residual Learning for Image Recognition", and, with pre-activation, Zagoruyko and
Komodakis 2016, "Wide Residual Networks".
"""

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


class ResidualBlock(nn.Module):
    """Convolutions whose output is added to their input. A norm follows each, and an activation all but the last.

    width: channels of the convolutions; a bottleneck returns four times as many.
    stride: stride of the first 3x3 convolution, also in a bottleneck (the "v1.5" of Goyal et al. 2017).
    drop: probability that the convolutions are skipped in training.

    The other fields are the same as in `ResNet`.
    """

    width: int
    stride: int
    bottleneck: bool
    projection: bool
    norm: str
    activation: str
    drop: float
    squeeze_excitation: bool
    zero_init: bool
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [b h w c] to [b h/stride w/stride width], or 4 width; sizes are rounded up."""
        activation = ACTIVATIONS[self.activation]
        norm = partial(normalize, norm=self.norm, train=train, dtype=self.dtype, axis_name=self.axis_name)
        scale_init = nn.initializers.zeros if self.zero_init else nn.initializers.ones

        y = x
        if self.bottleneck:
            y = activation(norm(self._conv(y, self.width, kernel=1)))
            y = activation(norm(self._conv(y, self.width, stride=self.stride)))
            y = norm(self._conv(y, 4 * self.width, kernel=1), scale_init=scale_init)
        else:
            y = activation(norm(self._conv(y, self.width, stride=self.stride)))
            y = norm(self._conv(y, self.width), scale_init=scale_init)
        if self.squeeze_excitation:
            y = SqueezeExcitation(dtype=self.dtype)(y)
        y = stochastic_depth(y, self.drop, train)

        channels = y.shape[-1]
        if self.projection and x.shape != y.shape:
            x = norm(self._conv(x, channels, kernel=1, stride=self.stride))
        elif x.shape != y.shape:
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, channels - x.shape[-1])))
        return activation(x + y)

    def _conv(self, x: jax.Array, width: int, *, kernel: int = 3, stride: int = 1) -> jax.Array:
        return nn.Conv(
            width,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,  # both sides, like the published weights; with stride 2 "SAME" pads one side
            use_bias=self.norm == "none",
            kernel_init=HE_FAN_OUT,
            dtype=self.dtype,
        )(x)


class PreActivationBlock(nn.Module):
    """Norm, activation and 3x3 convolution, twice, added to the input, with dropout between the convolutions.

    drop: probability that the convolutions are skipped in training. The other fields are the same as in `ResNet`.
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


class ResNet(nn.Module):
    """A stem, stages of residual blocks that halve the image and widen the channels, global mean, classifier.

    num_classes: k, the number of logits.
    depths: number of blocks in each stage.
    widths: channels of each stage; with `bottleneck`, channels of its 3x3 convolutions.
    bottleneck: True if a block is 1x1, 3x3, 1x1 with four times the channels at its ends; False if it is 3x3, 3x3.
    small_images: True if the stem is a 3x3 convolution (section 4.2); False if it is a 7x7 with stride 2 and a pooling.
    projection: True if a shortcut between different shapes is a 1x1 convolution (option B of the paper); False if it
      takes every other pixel and adds channels of zeros, without parameters (option A).
    pre_activation: True if norm and activation come before each convolution of a block, and once more at the end;
      False if they come after it. True excludes bottlenecks and shortcuts of option A.
    stem_width: channels of the stem; None: the channels of the first stage.
    norm: a name in `layers.NORMS`; `layers.normalize` explains them.
    activation: a name in `layers.ACTIVATIONS`.
    dropout: probability that an input of the classifier is dropped in training; with `pre_activation`, that a value
      between the convolutions of a block is dropped (0.3 in the paper on wide networks).
    stochastic_depth: probability that the last block is skipped in training; for block l of L it is l / L of that.
    squeeze_excitation: True if each block scales its channels by `SqueezeExcitation`.
    zero_init: True if the last norm of each block starts with scale zero, so that blocks start as the identity (Goyal
      et al. 2017). It has no effect if norm is "none". With `pre_activation` the last convolution starts at zero
      instead, because a scale of zero before an activation would never be trained.
    dtype: type of the computation; parameters and statistics are float32.
    axis_name: the mapped axis over which batch statistics are computed under pmap or shard_map; jit needs none.
    """

    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck: bool = False
    small_images: bool = False
    projection: bool = True
    pre_activation: bool = False
    stem_width: int | None = None
    norm: str = "batch"
    activation: str = "relu"
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    squeeze_excitation: bool = False
    zero_init: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images f32[b h w c] to logits f32[b k]. Raises InputError if the images are too small."""
        if self.pre_activation and (self.bottleneck or not self.projection):
            raise ValueError("pre_activation is True, but then bottleneck must be False and projection True.")
        halvings = len(self.depths) - 1 + (0 if self.small_images else 2)
        check_size(images, 2**halvings, "use larger images, or a network with small_images, such as resnet20")
        x = self._stem(images.astype(self.dtype))
        if not self.pre_activation:
            x = self._normalize_and_activate(x, train)
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

        count = 0
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for index in range(depth):
                count += 1
                block = self._block(
                    width,
                    stride=2 if stage > 0 and index == 0 else 1,
                    norm=self.norm,
                    activation=self.activation,
                    drop=self.stochastic_depth * count / sum(self.depths),
                    squeeze_excitation=self.squeeze_excitation,
                    zero_init=self.zero_init,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"stage{stage + 1}_block{index + 1}",
                )
                x = block(x, train)
        if self.pre_activation:
            x = self._normalize_and_activate(x, train)
        x = x.mean(axis=(1, 2))
        if not self.pre_activation:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = nn.Dense(self.num_classes, kernel_init=CLASSIFIER_INIT, dtype=self.dtype, name="classifier")(x)
        return logits.astype(jnp.float32)

    def _stem(self, images: jax.Array) -> jax.Array:
        return nn.Conv(
            self.stem_width or self.widths[0],
            (3, 3) if self.small_images else (7, 7),
            strides=1 if self.small_images else 2,
            padding=1 if self.small_images else 3,
            use_bias=self.norm == "none",
            kernel_init=HE_FAN_OUT,
            dtype=self.dtype,
        )(images)

    def _normalize_and_activate(self, x: jax.Array, train: bool) -> jax.Array:
        x = normalize(x, self.norm, train, dtype=self.dtype, axis_name=self.axis_name)
        return ACTIVATIONS[self.activation](x)

    def _block(self, width: int, **options: Any) -> nn.Module:
        if self.pre_activation:
            return PreActivationBlock(width, dropout=self.dropout, **options)
        return ResidualBlock(width, bottleneck=self.bottleneck, projection=self.projection, **options)


def resnet18(num_classes: int, **options: Any) -> ResNet:
    """Returns 18 layers for images of 32 pixels or more; with small_images=True, the form often used for CIFAR."""
    return ResNet(num_classes, depths=(2, 2, 2, 2), **options)


def resnet34(num_classes: int, **options: Any) -> ResNet:
    """Returns 34 layers for images of 32 pixels or more."""
    return ResNet(num_classes, depths=(3, 4, 6, 3), **options)


def resnet50(num_classes: int, **options: Any) -> ResNet:
    """Returns 50 layers in bottlenecks, for images of 32 pixels or more."""
    return ResNet(num_classes, depths=(3, 4, 6, 3), bottleneck=True, **options)


def resnet20(num_classes: int, **options: Any) -> ResNet:
    """Returns the 20 layers of section 4.2, for small images."""
    return _cifar(num_classes, 3, options)


def resnet56(num_classes: int, **options: Any) -> ResNet:
    """Returns the 56 layers of section 4.2, for small images."""
    return _cifar(num_classes, 9, options)


def _cifar(num_classes: int, depth: int, options: dict[str, Any]) -> ResNet:
    shape = {"depths": (depth,) * 3, "widths": (16, 32, 64), "small_images": True, "projection": False}
    return ResNet(num_classes, **{**shape, **options})


def wide_resnet_28_10(num_classes: int, **options: Any) -> ResNet:
    """Returns 28 layers, ten times as wide, for small images: the best of the paper on CIFAR."""
    return wide_resnet(num_classes, 28, 10, **options)


def wide_resnet_16_4(num_classes: int, **options: Any) -> ResNet:
    """Returns 16 layers, four times as wide, for small images: a small wide network."""
    return wide_resnet(num_classes, 16, 4, **options)


def wide_resnet(num_classes: int, depth: int, widen: int, **options: Any) -> ResNet:
    """Returns a pre-activation network with stages of `widen` times 16, 32 and 64 channels.

    depth: 6 n + 4 layers for n blocks per stage. Raises ValueError for another depth.
    """
    blocks, remainder = divmod(depth - 4, 6)
    if remainder or blocks < 1:
        raise ValueError(f"depth is {depth}, but must be 6 n + 4 for n blocks per stage: 10, 16, 22, 28, 40.")
    shape = {"depths": (blocks,) * 3, "widths": tuple(width * widen for width in (16, 32, 64)), "stem_width": 16}
    # in the paper no scale starts at zero
    kind = {"small_images": True, "pre_activation": True, "zero_init": False}
    return ResNet(num_classes, **{**shape, **kind, **options})
