"""The plain loop that `fit` is compared with."""

import time
from collections.abc import Callable
from typing import Any

import jax

from flaxcls.run.setup import Setup


def step_seconds(
    setup: Setup, batches: Callable[[int], Any], dispatches: int, after: Callable[[int, Any], None] = lambda *_: None
) -> float:
    """Returns the seconds a dispatch of the compiled steps of `fit` takes, called one after the other.

    Args:
      setup: has the steps; they are compiled first if they are not yet.
      batches: number of a dispatch, from 0 -> what it trains on; 0 is not measured.
      dispatches: how many are.
      after: given the number of steps so far and the metrics after each dispatch.
    """
    key = jax.random.key(0)
    state, _ = setup.train(setup.create(key), batches(0), key)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for number in range(1, dispatches + 1):
        state, (metrics, _) = setup.train(state, batches(number), key)
        after(number * setup.plan.dispatch_steps, metrics)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / dispatches
