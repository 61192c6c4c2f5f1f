"""The state of training: one pytree of arrays, which a checkpoint stores."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from flaxcls.contract import check_not_wrapped, find_eval_params, init_variables, strongly_typed
from flaxcls.types import Params

__all__ = ["TrainState", "create_state"]


@struct.dataclass
class TrainState:
    """Everything that training changes.

    step: i32[], optimizer updates so far.
    params: the trained parameters.
    model_state: every other collection of the module, such as batch_stats.
    opt_state: the state of the optimizer.
    ema: the parameters that evaluation uses in place of params, or None: their moving average, or those of an optimizer
      that trains others.
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
      ema: True to keep a moving average of the parameters, or parameters for evaluation. Optimizers that need them, by
        `find_eval_params`, get them without being asked. They have 32 bits, or those of the parameters if that is more.

    The state has the collections that a call with train=False creates, without the sown losses. A training step updates
    only these, and must keep their shapes. Parameters are unboxed, as `nn.with_partitioning` makes them.

    It is compiled, and only the part of the forward pass that the parameters need is computed. `jax.eval_shape` of this
    function returns the shapes of the state and computes nothing.

    Raises:
      ValueError: if the images have another shape, if the model is not called as above, or if the optimizer wraps the
        parameters.
    """
    if images is None:
        images = jnp.zeros((1, *image_shape), jnp.float32)
    if images.shape[1:] != tuple(image_shape):
        raise ValueError(f"images are {list(images.shape)}, but must be [n {' '.join(map(str, image_shape))}].")
    try:
        hash((model, tx))
    except TypeError:  # by a field like a ConfigDict; this compiles at each call
        return strongly_typed(jax.jit(partial(_create, model=model, tx=tx, ema=ema))(key, images))
    return strongly_typed(_compiled(key, images, model=model, tx=tx, ema=ema))


def _create(
    key: jax.Array, images: jax.Array, *, model: nn.Module, tx: optax.GradientTransformation, ema: bool
) -> TrainState:
    variables = init_variables(model, key, images)
    params = variables.pop("params")
    opt_state = tx.init(params)
    check_not_wrapped(opt_state)
    averages = ema or find_eval_params(opt_state) is not None
    return TrainState(
        step=jnp.int32(0),
        params=params,
        model_state=variables,
        opt_state=opt_state,
        ema=jax.tree.map(_start_average, params) if averages else None,
    )


_compiled = jax.jit(_create, static_argnames=("model", "tx", "ema"))


def _start_average(x: jax.Array) -> jax.Array:
    """Returns a copy with at least 32 bits: with fewer, an average soon stops to move."""
    wide = jnp.promote_types(x.dtype, jnp.float32) if jnp.issubdtype(x.dtype, jnp.inexact) else x.dtype
    return jnp.array(x, dtype=wide, copy=True)
