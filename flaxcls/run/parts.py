"""Into how many parts a CPU takes a batch, so that what the model makes of one stays in its caches.

The gradient of a batch is the sum of those of its parts. One after the other, they are faster than the whole as soon as
that comes from memory (experiments/benchmarks/NOTES.md: what sketches of the step measured).
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcls.config import Config
from flaxcls.state import TrainState

PART_BYTES = 8 * 2**20  # of the largest array that the model makes of a part
MOST_PARTS = 32  # of all steps of a dispatch, as each is compiled


def cache_parts(config: Config, model: nn.Module, state: TrainState, image_shape: tuple[int, ...]) -> int:
    """Returns into how many equal parts to take a batch where the configuration asks for none.

    That is 1 but on a single CPU, by jax 0.12 or later (earlier ones run the parts beside each other), for models that
    neither keep a state, such as the statistics of batch normalisation, nor draw random numbers, such as for dropout.

    Args:
      config: says how large batches and dispatches are.
      model: one of the package's own, in which examples meet nowhere but in batch normalisation.
      state: its shapes.
      image_shape: (h, w, c).
    """
    single = jax.default_backend() == "cpu" and jax.device_count() == 1 and jax.__version_info__ >= (0, 12)
    if not single or state.model_state:
        return 1
    batch = config.loop.batch_size
    traced = jax.make_jaxpr(
        lambda params, x, key: model.apply({"params": params}, x, train=True, rngs={"params": key})
    )(state.params, jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32), jax.random.key(0))
    operations = [*_operations(traced.jaxpr)]
    if any(operation.primitive.name.startswith(("random_bits", "random_gamma", "rng_")) for operation in operations):
        return 1
    arrays = [array.aval for operation in operations for array in operation.outvars]
    largest = max(math.prod(array.shape) * array.dtype.itemsize for array in arrays if array.shape[:1] == (batch,))
    most = MOST_PARTS // config.loop.steps_per_dispatch
    possible = [parts for parts in range(1, most + 1) if batch % parts == 0] or [1]
    return next((parts for parts in possible if largest <= parts * PART_BYTES), possible[-1])


def _operations(jaxpr: Any) -> Iterator[Any]:
    """Yields the operations of a program, and those within them."""
    for operation in jaxpr.eqns:
        yield operation
        for value in jax.tree.leaves([*operation.params.values()]):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _operations(inner)
