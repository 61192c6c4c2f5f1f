"""The models, plain linen modules called as `model(images, train=bool)`. `MODELS` maps their names to them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from flaxcls.config import ModelConfig
from flaxcls.errors import InputError
from flaxcls.models.cnn import CNN
from flaxcls.models.convnext import ConvNeXt, convnext_tiny
from flaxcls.models.mobilenet import MobileNetV2, mobilenet_v2
from flaxcls.models.resnet import (
    ResNet,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    resnet56,
    wide_resnet,
    wide_resnet_16_4,
    wide_resnet_28_10,
)
from flaxcls.models.vgg import VGG, vgg11

# num_classes -> module, with the options that it trains well with where none are given
MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": partial(CNN, dense=(128,), norm="batch", dropout=0.2),
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "wide_resnet_16_4": wide_resnet_16_4,
    "wide_resnet_28_10": wide_resnet_28_10,
    "vgg11": vgg11,
    "mobilenet_v2": mobilenet_v2,
    "convnext_tiny": convnext_tiny,
}


def build_model(config: ModelConfig, num_classes: int, **options: Any) -> nn.Module:
    """Returns the module that `config` describes, for `num_classes` classes.

    Raises InputError for an option that the model does not take.
    """
    model = MODELS[config.name](num_classes)
    takes = {field.name for field in dataclasses.fields(model)}
    if config.name != "cnn":
        takes -= {"widths"}  # they are what the name of an architecture stands for
    common = {"name", "init_images"}  # of every model
    chosen = {name: value for name, value in vars(config).items() if name not in common and value is not None}
    for name, value in chosen.items():
        if name not in takes:
            options_of = sorted(takes & set(vars(config)) - common)
            raise InputError(
                f"model.{name} is {value!r}, but {config.name} does not take it: leave it out. "
                f"Of model.* it takes {', '.join(options_of)}."
            )
    return model.clone(**{**chosen, "dtype": jnp.dtype(config.dtype)}, **options)


__all__ = [
    "CNN",
    "MODELS",
    "VGG",
    "ConvNeXt",
    "MobileNetV2",
    "ResNet",
    "build_model",
    "convnext_tiny",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "vgg11",
    "wide_resnet",
    "wide_resnet_16_4",
    "wide_resnet_28_10",
]
