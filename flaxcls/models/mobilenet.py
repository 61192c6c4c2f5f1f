"""MobileNetV2 (Sandler et al. 2018, "Inverted Residuals and Linear Bottlenecks")."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.models.layers import ACTIVATIONS, CLASSIFIER_INIT, HE_DEPTHWISE, HE_FAN_OUT, check_size, normalize

# Table 2 of the paper.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetV2(nn.Module):
    """Blocks of a 1x1 convolution that widens, a 3x3 per channel, and a 1x1 without activation that narrows.

    The image is halved five times, so a 32x32 image becomes a single pixel.

    num_classes: k, the number of logits.
    stages: rows of (expansion, channels, blocks, stride of the first block).
    norm: a name in `layers.NORMS`; `layers.normalize` explains them.
    activation: a name in `layers.ACTIVATIONS`.
    dropout: probability that an input of the classifier is dropped in training.
    dtype: type of the computation; parameters and statistics are float32.
    axis_name: the mapped axis over which batch statistics are computed under pmap or shard_map; jit needs none.
    """

    num_classes: int
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    norm: str = "batch"
    activation: str = "relu6"
    dropout: float = 0.2
    dtype: jnp.dtype = jnp.dtype("float32")
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images f32[b h w c] to logits f32[b k]. Raises InputError if the images are too small."""
        check_size(images, 2 * math.prod(stride for *_, stride in self.stages), "use larger images, or another network")
        norm = partial(normalize, norm=self.norm, train=train, dtype=self.dtype, axis_name=self.axis_name)
        activation = ACTIVATIONS[self.activation]
        conv = partial(nn.Conv, use_bias=self.norm == "none", kernel_init=HE_FAN_OUT, dtype=self.dtype)

        x = activation(norm(conv(32, (3, 3), strides=2, padding=1)(images.astype(self.dtype))))
        for expansion, channels, blocks, first_stride in self.stages:
            for index in range(blocks):
                stride = first_stride if index == 0 else 1
                y, width = x, x.shape[-1] * expansion
                if expansion > 1:
                    y = activation(norm(conv(width, (1, 1))(y)))
                depthwise = conv(
                    width, (3, 3), strides=stride, padding=1, feature_group_count=width, kernel_init=HE_DEPTHWISE
                )
                y = activation(norm(depthwise(y)))
                y = norm(conv(channels, (1, 1))(y))
                x = x + y if x.shape == y.shape else y
        x = activation(norm(conv(1280, (1, 1))(x)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean(axis=(1, 2)))
        logits = nn.Dense(self.num_classes, kernel_init=CLASSIFIER_INIT, dtype=self.dtype, name="classifier")(x)
        return logits.astype(jnp.float32)


def mobilenet_v2(num_classes: int, **options: Any) -> MobileNetV2:
    """Returns the network of table 2 of the paper, at width 1."""
    return MobileNetV2(num_classes, **options)
