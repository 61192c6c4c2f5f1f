"""The models: plain linen modules called as `model(images, train=bool)`. `MODELS` maps names to models."""

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

# name -> (num_classes -> module), with default options that train well
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

    options: further fields of the module. Raises InputError if `config` has an option that the model does not take.
    """
    model = MODELS[config.name](num_classes)
    accepted = {field.name for field in dataclasses.fields(model)}
    if config.name != "cnn":
        accepted -= {"widths"}  # the name of an architecture fixes them
    common = {"name", "init_images"}  # they are not fields of the modules
    chosen = {name: value for name, value in vars(config).items() if name not in common and value is not None}
    for name, value in chosen.items():
        if name not in accepted:
            available = sorted(accepted & set(vars(config)) - common)
            raise InputError(
                f"model.{name} is {value!r}, but {config.name} does not take it: leave it out. "
                f"Its options in model.* are {', '.join(available)}."
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
