"""What training changes: one pytree of arrays, which is what a checkpoint holds."""

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
    """The state of training.

    step: i32[], optimizer updates so far.
    params: what is trained.
    model_state: every other collection of the module, such as batch_stats.
    opt_state: the optimizer's.
    ema: the moving average of params, or None; where there is one, evaluation uses it.
    """

    step: jax.Array
    params: Params
    model_state: Params
    opt_state: optax.OptState
    ema: Params | None

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The module's variables as evaluation uses them."""
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
      key: decides the initial parameters.
      model: a linen module called as `model(images, train=bool)`.
      tx: the optax optimizer.
      image_shape: (h, w, c) of one image.
      images: f32[n h w c], transformed, for a model that makes its parameters from data when it is initialised; None:
        it is initialised on an image of zeros.
      ema: whether to keep a moving average of the parameters.

    The collections that a call with train=False creates are kept; a training step updates those and no others, and
    must leave their shapes as they are.

    It can be jitted, with images as an argument, and then computes no more of the forward pass than the parameters
    need; `jax.eval_shape` of it gives the state's shapes without computing anything.

    Raises:
      ValueError: where the images are of another shape.
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
