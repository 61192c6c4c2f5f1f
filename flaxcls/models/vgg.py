"""VGG networks (Simonyan and Zisserman 2015, "Very Deep Convolutional Networks"), with batch normalisation."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.models.layers import ACTIVATIONS, CLASSIFIER_INIT, HE_FAN_OUT, check_size, max_pool, normalize


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each ended by a 2x2 pooling, then dense layers on the flattened feature map.

    The feature map is 7x7 for the 224x224 pixels of the paper, and 1x1 for the 32x32 pixels of CIFAR, where the first
    dense layer is 49 times smaller. Therefore the parameters fit one image size only.

    num_classes: k, the number of logits.
    depths, widths: number of convolutions in each stage, and their channels.
    dense: units of each hidden dense layer.
    norm: a name in `layers.NORMS`; `layers.normalize` explains them. The paper has none.
    activation: a name in `layers.ACTIVATIONS`.
    dropout: probability that a unit of a hidden dense layer is dropped in training.
    dtype: type of the computation; parameters and statistics are float32.
    axis_name: the mapped axis over which batch statistics are computed under pmap or shard_map; jit needs none.
    """

    num_classes: int
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    dense: tuple[int, ...] = (4096, 4096)
    norm: str = "batch"
    activation: str = "relu"
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.dtype("float32")
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images f32[b h w c] to logits f32[b k]. Raises InputError if the images are too small."""
        check_size(images, 2 ** len(self.depths), "use larger images")
        activation = ACTIVATIONS[self.activation]
        x = images.astype(self.dtype)
        for depth, width in zip(self.depths, self.widths, strict=True):
            for _ in range(depth):
                # before a norm a bias has no effect, but the published networks have it
                x = nn.Conv(width, (3, 3), padding=1, kernel_init=HE_FAN_OUT, dtype=self.dtype)(x)
                x = activation(normalize(x, self.norm, train, dtype=self.dtype, axis_name=self.axis_name))
            x = max_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        for units in self.dense:
            x = activation(nn.Dense(units, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = nn.Dense(self.num_classes, kernel_init=CLASSIFIER_INIT, dtype=self.dtype, name="classifier")(x)
        return logits.astype(jnp.float32)


def vgg11(num_classes: int, **options: Any) -> VGG:
    """Returns the 11 layers of configuration A."""
    return VGG(num_classes, depths=(1, 1, 2, 2, 2), **options)
