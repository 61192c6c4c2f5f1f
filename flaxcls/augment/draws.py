"""Random numbers for the examples of a batch that do not depend on how the batch is split over devices.

Under `jit` this needs no work. Under `pmap` and `shard_map` a function sees only its device's part of the batch. There,
each device draws the numbers of the whole batch and takes those of its own examples.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp

_AXIS: ContextVar[str | None] = ContextVar("axis", default=None)


@contextmanager
def along(axis_name: str | None) -> Iterator[None]:
    """While open, `drawn` returns the numbers of this device's examples along a mapped axis; None: of all examples."""
    token = _AXIS.set(axis_name)
    try:
        yield
    finally:
        _AXIS.reset(token)


def drawn(
    sample: Callable[[jax.Array, tuple[int, ...]], jax.Array], key: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Returns sample(key, shape) for the b examples that the function sees, with shape [b ...]."""
    axis_name = _AXIS.get()
    if axis_name is None:
        return sample(key, shape)
    whole = sample(key, (shape[0] * jax.lax.axis_size(axis_name), *shape[1:]))
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(axis_name) * shape[0], shape[0])


def of_first(key: jax.Array, axis_name: str) -> jax.Array:
    """Returns, on all devices along a mapped axis, the key of the first device."""
    data = jax.random.key_data(key)
    data = jax.lax.psum(jnp.where(jax.lax.axis_index(axis_name) == 0, data, 0), axis_name)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
