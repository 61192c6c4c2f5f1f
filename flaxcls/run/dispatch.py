"""A dispatch: several training steps, compiled as one program."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Sharding

from flaxcls.finite import keep_finite
from flaxcls.run.loader import pick
from flaxcls.state import TrainState
from flaxcls.step import train_steps


def make_dispatch(
    step: Callable[..., Any],
    optimizer_metrics: Callable[..., dict[str, jax.Array]],
    *,
    skips_not_finite: bool = False,
    picked_layout: Sharding | None = None,
    gather: Callable[[TrainState], TrainState] = lambda state: state,
    scatter: Callable[[TrainState], TrainState] = lambda state: state,
) -> Callable[..., Any]:
    """Returns (state, batches, key, frozen=()) -> (state, (metrics, optimizer metrics)), to be compiled.

    Args:
      step: (state, batch, key, frozen=globs) -> (state, metrics).
      optimizer_metrics: (state, globs) -> metrics, measured before each step.
      skips_not_finite: an update that is not finite is dropped.
      picked_layout: the layout of a batch over the devices, where `batches` is `Picked`; None: `batches` are arrays.
      gather: makes the parameters of a state whole on each device, before each step.
      scatter: leaves each device its part of a new state.
    """

    def dispatch(state: TrainState, batches: Any, key: jax.Array, frozen: tuple[str, ...] = ()) -> Any:
        def one_step(state: TrainState, batch: Any, key: jax.Array) -> Any:
            if picked_layout is not None:
                batch = pick(batches["split"], picked_layout, **batch)
            new, metrics = step(gather(state), batch, key, frozen=frozen)
            new = scatter(new)
            if skips_not_finite:
                new, metrics = keep_finite(state, new, metrics)
            return new, (metrics, optimizer_metrics(state, frozen))

        return train_steps(state, batches if picked_layout is None else batches["chosen"], key, step=one_step)

    return dispatch
