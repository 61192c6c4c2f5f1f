"""The number of microbatches in which a CPU takes a batch, so that the arrays of each fit in its caches.

The gradient of a batch is the sum of the gradients of its microbatches. One after the other, they are faster than the
whole batch as soon as the whole no longer fits in the caches (experiments/benchmarks/NOTES.md has the measurements).
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.state import TrainState

MICROBATCH_BYTES = 8 * 2**20  # the largest array that the model may make of a microbatch
MOST_MICROBATCHES = 32  # in all steps of a dispatch, because each is compiled


def choose_microbatches(
    model: nn.Module, state: TrainState, image_shape: tuple[int, ...], *, batch_size: int, steps_per_dispatch: int
) -> int:
    """Returns the number of equal microbatches in which to take a batch, where the configuration asks for none.

    The number is 1, except on a single CPU with jax 0.12 or later (earlier releases run the microbatches at the same
    time), for models that neither keep a state, such as the statistics of batch normalisation, nor draw random numbers,
    such as for dropout.

    Args:
      model: one of the package's own, in which examples depend on each other only through batch normalisation.
      state: its shapes.
      image_shape: (h, w, c).
      batch_size: examples of a step.
      steps_per_dispatch: steps that are compiled into one program.
    """
    single = jax.default_backend() == "cpu" and jax.device_count() == 1 and jax.__version_info__ >= (0, 12)
    if not single or state.model_state:
        return 1
    traced = jax.make_jaxpr(
        lambda params, x, key: model.apply({"params": params}, x, train=True, rngs={"params": key})
    )(state.params, jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32), jax.random.key(0))
    operations = [*_operations(traced.jaxpr)]
    if any(operation.primitive.name.startswith(("random_bits", "random_gamma", "rng_")) for operation in operations):
        return 1
    arrays = [array.aval for operation in operations for array in operation.outvars]
    largest = max(math.prod(array.shape) * array.dtype.itemsize for array in arrays if array.shape[:1] == (batch_size,))
    most = MOST_MICROBATCHES // steps_per_dispatch
    possible = [count for count in range(1, most + 1) if batch_size % count == 0] or [1]
    return next((count for count in possible if largest <= count * MICROBATCH_BYTES), possible[-1])


def _operations(jaxpr: Any) -> Iterator[Any]:
    """Yields the operations of a program, with those of the programs inside it."""
    for operation in jaxpr.eqns:
        yield operation
        for value in jax.tree.leaves([*operation.params.values()]):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _operations(inner)
