"""The models, plain linen modules called as `model(images, train=bool)`. `MODELS` maps their names to them."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from flaxcls.config import ModelConfig
from flaxcls.models.cnn import CNN

MODELS = {"cnn": CNN}


def build_model(config: ModelConfig, num_classes: int, **options: Any) -> nn.Module:
    """Returns the module that `config` describes, for `num_classes` classes."""
    return MODELS[config.name](
        num_classes=num_classes,
        widths=config.widths,
        dense=config.dense,
        kernel_size=config.kernel_size,
        padding=config.padding,
        activation=config.activation,
        pooling=config.pooling,
        norm=config.norm,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
        **options,
    )


__all__ = ["CNN", "MODELS", "build_model"]
