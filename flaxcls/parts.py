"""Into how many parts a CPU takes a batch, so that what the model makes of one stays in its caches.

The gradient of a batch is the sum of those of its parts. One after the other, they are faster than the whole as soon as
that comes from memory: for the tutorial's network and batches of 512, 1.5 times, in a fifth of the memory
(experiments/benchmarks/NOTES.md).
"""

from collections.abc import Iterator
from typing import Any

import jax
from flax import linen as nn

PART_BYTES = 8 * 2**20  # of the largest array that the model makes of a part
MOST_PARTS = 16  # each is compiled


def cache_parts(model: nn.Module, variables: Any, images: jax.Array) -> int:
    """Returns into how many equal parts to take a batch; 1 wherever more would change numbers, but for their rounding.

    More are taken on a single CPU alone, by jax 0.12 or later (earlier ones run the parts beside each other), of models
    that neither keep a state, such as the statistics of batch normalisation, nor draw random numbers.

    Args:
      model: as for `train_step`.
      variables: its parameters and state.
      images: f32[b h w c].
    """
    single = jax.default_backend() == "cpu" and jax.device_count() == 1 and jax.__version_info__ >= (0, 12)
    if not single or variables.keys() > {"params"}:
        return 1
    traced = jax.make_jaxpr(lambda v, x, key: model.apply(v, x, train=True, rngs={"params": key}))(
        variables, images, jax.random.key(0)
    )
    operations = [*_operations(traced.jaxpr)]
    if any(operation.primitive.name == "random_bits" for operation in operations):
        return 1
    arrays = [array.aval for operation in operations for array in operation.outvars if array.aval.shape]
    largest = max((array.size * array.dtype.itemsize for array in arrays), default=0)
    fits = [n for n in range(1, MOST_PARTS + 1) if len(images) % n == 0 and largest <= n * PART_BYTES]
    return min(fits, default=1)


def _operations(jaxpr: Any) -> Iterator[Any]:
    """Yields the operations of a program, and those within them."""
    for operation in jaxpr.eqns:
        yield operation
        for value in jax.tree.leaves(list(operation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _operations(inner)
