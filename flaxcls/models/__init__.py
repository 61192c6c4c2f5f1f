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

# num_classes -> module, with the options that a model trains well with where none are given
MODELS: dict[str, Callable[[int], nn.Module]] = {"cnn": partial(CNN, dense=(128,), norm="batch", dropout=0.2)}


def build_model(config: ModelConfig, num_classes: int, **options: Any) -> nn.Module:
    """Returns the module that `config` describes, for `num_classes` classes.

    Raises InputError for an option that the model does not take.
    """
    model = MODELS[config.name](num_classes)
    takes = {field.name for field in dataclasses.fields(model)}
    chosen = {name: value for name, value in vars(config).items() if name != "name" and value is not None}
    for name, value in chosen.items():
        if name not in takes:
            options_of = sorted(takes & set(vars(config)) - {"name"})
            raise InputError(
                f"model.{name} is {value!r}, but {config.name} does not take it: leave it out. "
                f"Of model.* it takes {', '.join(options_of)}."
            )
    return model.clone(**{**chosen, "dtype": jnp.dtype(config.dtype)}, **options)


__all__ = ["CNN", "MODELS", "build_model"]
