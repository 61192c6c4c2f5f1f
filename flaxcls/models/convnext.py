"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s")."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.models.layers import check_size, stochastic_depth

INIT = nn.initializers.truncated_normal(0.02)


class ConvNeXtBlock(nn.Module):
    """A 7x7 convolution per channel, a norm, and two dense layers at each position, scaled and added to the input.

    drop: probability that all of them are skipped in training. The other fields are the same as in `ConvNeXt`.
    """

    drop: float
    layer_scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [b h w c] to the same shape."""
        channels = x.shape[-1]
        y = nn.Conv(channels, (7, 7), padding=3, feature_group_count=channels, kernel_init=INIT, dtype=self.dtype)(x)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(y)
        y = nn.gelu(nn.Dense(4 * channels, kernel_init=INIT, dtype=self.dtype)(y), approximate=False)
        y = nn.Dense(channels, kernel_init=INIT, dtype=self.dtype)(y)
        scale = self.param("layer_scale", nn.initializers.constant(self.layer_scale), (channels,))
        y = y * scale.reshape(1, 1, 1, channels).astype(self.dtype)
        return x + stochastic_depth(y, self.drop, train)


class ConvNeXt(nn.Module):
    """A stem that cuts the image into 4x4 patches, stages of blocks that halve it, global mean, norm, classifier.

    The norm is over channels: examples do not depend on each other, and any batch size works.

    num_classes: k, the number of logits.
    depths, widths: number of blocks in each stage, and their channels.
    stochastic_depth: probability that the last block is skipped in training; it rises linearly from 0 for the first.
    layer_scale: initial scale of each block's branch, per channel.
    dtype: type of the computation; parameters are float32.
    """

    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stochastic_depth: float = 0.1
    layer_scale: float = 1e-6
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images f32[b h w c] to logits f32[b k]. Raises InputError if the images are too small."""
        check_size(images, 2 ** (len(self.depths) + 1), "use larger images, or another network")
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        x = images.astype(self.dtype)
        count = 0
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            patch = 4 if stage == 0 else 2
            x = x if stage == 0 else norm()(x)
            x = nn.Conv(width, (patch, patch), strides=patch, padding="VALID", kernel_init=INIT, dtype=self.dtype)(x)
            x = norm()(x) if stage == 0 else x
            for index in range(depth):
                x = ConvNeXtBlock(
                    drop=self.stochastic_depth * count / max(sum(self.depths) - 1, 1),
                    layer_scale=self.layer_scale,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x, train)
                count += 1
        x = norm()(x.mean(axis=(1, 2)))
        logits = nn.Dense(self.num_classes, kernel_init=INIT, dtype=self.dtype, name="classifier")(x)
        return logits.astype(jnp.float32)


def convnext_tiny(num_classes: int, **options: Any) -> ConvNeXt:
    """Returns the smallest network of the paper."""
    return ConvNeXt(num_classes, depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), **options)
