"""Updates that are not finite: how a step drops them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxcls.state import TrainState
from flaxcls.types import Batch

__all__ = ["all_finite", "drop_not_finite", "keep_finite"]


def drop_not_finite(step: Callable[..., Any]) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns `step` with `keep_finite` applied to its result, so that an update that is not finite is dropped."""

    def guarded(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return keep_finite(state, *step(state, batch, key))

    return guarded


def keep_finite(
    old: TrainState, new: TrainState, metrics: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state `new` if it is finite, else `old` with the step number of `new`, and the metrics of the step.

    An update is not finite if NaN or infinity is in its loss, its gradient, its new parameters or the variables of
    evaluation. The returned metrics also have `skipped`, f32[]: 1 if the update is dropped, else 0.
    """
    good = all_finite((metrics["loss"], metrics["grad_norm"], new.params, new.eval_variables))
    kept: TrainState = jax.tree.map(partial(jnp.where, good), new, dataclasses.replace(old, step=new.step))
    return kept, {**metrics, "skipped": 1.0 - good.astype(jnp.float32)}


def all_finite(tree: Any) -> jax.Array:
    """Returns bool[], True if every floating-point number in `tree` is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))
