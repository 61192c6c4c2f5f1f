"""A dispatch: several steps as one program, on batches that it is given or picks from a split on the devices."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict

import jax
import numpy as np
from jax.sharding import Sharding

from flaxcls.config import Config
from flaxcls.data import Split
from flaxcls.sharding import on_devices
from flaxcls.state import TrainState
from flaxcls.step import drop_not_finite, train_steps
from flaxcls.types import Batch


class Picked(TypedDict):
    """k batches of a split that the devices hold.

    split: its n examples, as a batch.
    chosen: index i32[k b], which of them make up each batch, and what else the maker says of each.
    """

    split: Batch
    chosen: dict[str, jax.Array]


def placed_split(split: Split, layout: Sharding) -> Batch:
    """Puts all examples on the devices, as they are stored."""
    images = split.images if isinstance(split.images, np.ndarray) else split.images[:]
    placed: Batch = on_devices({"image": images, "label": split.labels}, layout)
    return placed


def make_dispatch(
    config: Config, step: Callable[..., Any], logged: Callable[..., Any], layout: Sharding
) -> Callable[..., Any]:
    """Returns (state, batches, key, frozen=()) -> (state, (metrics, extra)), which `Setup.train` compiles.

    Args:
      config: says what happens to an update that is not finite, and where batches come from.
      step: (state, batch, key, frozen=globs) -> (state, metrics).
      logged: (state, globs) -> extra, of the state before each step.
      layout: of a batch over the devices.
    """

    def dispatch(state: TrainState, batches: Any, key: jax.Array, frozen: tuple[str, ...] = ()) -> Any:
        update: Callable[..., Any] = partial(step, frozen=frozen)
        if config.loop.on_nan == "skip":
            update = drop_not_finite(update)

        def one(state: TrainState, batch: Batch, key: jax.Array) -> Any:
            new, metrics = update(state, batch, key)
            return new, (metrics, logged(state, frozen))

        if not config.data.on_device:
            return train_steps(state, batches, key, step=one)

        def picking(state: TrainState, chosen: Any, key: jax.Array) -> Any:
            return one(state, _pick(batches["split"], layout, **chosen), key)

        return train_steps(state, batches["chosen"], key, step=picking)

    return dispatch


def _pick(split: Batch, layout: Sharding, *, index: jax.Array, **more: jax.Array) -> Any:
    """Returns the examples at `index`, i32[b], none of which is negative or past the end."""
    batch = jax.tree.map(lambda array: array.at[index].get(mode="promise_in_bounds"), split)
    return jax.lax.with_sharding_constraint({**batch, **more}, layout)
