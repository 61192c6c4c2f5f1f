"""Random numbers for each example of a batch, the same however the batch is split over devices.

Under `jit` they are so by themselves. Under `pmap` and `shard_map`, where a function sees its device's part alone, the
numbers of the whole batch are drawn on each device, which then takes those of its own examples.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp

_AXIS: ContextVar[str | None] = ContextVar("axis", default=None)


@contextmanager
def along(axis_name: str | None) -> Iterator[None]:
    """While open, what is `drawn` is for the examples of this device along a mapped axis; None: for all there are."""
    token = _AXIS.set(axis_name)
    try:
        yield
    finally:
        _AXIS.reset(token)


def drawn(
    sample: Callable[[jax.Array, tuple[int, ...]], jax.Array], key: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Returns sample(key, shape) for the examples at hand, of which shape [b ...] counts b."""
    axis_name = _AXIS.get()
    if axis_name is None:
        return sample(key, shape)
    whole = sample(key, (shape[0] * jax.lax.axis_size(axis_name), *shape[1:]))
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(axis_name) * shape[0], shape[0])


def of_first(key: jax.Array, axis_name: str) -> jax.Array:
    """Returns, on all devices along a mapped axis, the key of the first."""
    data = jax.random.key_data(key)
    data = jax.lax.psum(jnp.where(jax.lax.axis_index(axis_name) == 0, data, 0), axis_name)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
