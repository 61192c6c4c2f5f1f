"""The state of training: one pytree of arrays, which a checkpoint stores."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from flaxcls.types import Params


@struct.dataclass
class TrainState:
    """Everything that training changes.

    step: i32[], optimizer updates so far.
    params: the trained parameters.
    model_state: every other collection of the module, such as batch_stats.
    opt_state: the state of the optimizer.
    ema: the moving average of params, or None. Evaluation uses it if there is one.
    """

    step: jax.Array
    params: Params
    model_state: Params
    opt_state: optax.OptState
    ema: Params | None

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The variables of the module for evaluation."""
        return {"params": self.params if self.ema is None else self.ema, **self.model_state}


def create_state(
    key: jax.Array,
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    image_shape: Sequence[int],
    images: jax.Array | None = None,
    ema: bool = False,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      key: random key of the initial parameters.
      model: a linen module called as `model(images, train=bool)`.
      tx: the optax optimizer.
      image_shape: (h, w, c) of one image.
      images: f32[n h w c], transformed, for a model that makes its parameters from data at initialisation; None: an
        image of zeros.
      ema: True to keep a moving average of the parameters.

    The state has the collections that a call with train=False creates. A training step updates only these, and must
    keep their shapes.

    Under `jax.jit`, with images as an argument, only the part of the forward pass that the parameters need is computed.
    `jax.eval_shape` of this function returns the shapes of the state and computes nothing.

    Raises:
      ValueError: if the images have another shape.
    """
    if images is None:
        images = jnp.zeros((1, *image_shape), jnp.float32)
    if images.shape[1:] != tuple(image_shape):
        raise ValueError(f"images are {list(images.shape)}, but must be [n {' '.join(map(str, image_shape))}].")
    variables = dict(model.init({"params": key}, images, train=False))
    params = variables.pop("params")
    return TrainState(
        step=jnp.int32(0),
        params=params,
        model_state=variables,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )
