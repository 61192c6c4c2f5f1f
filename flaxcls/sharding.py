"""How the state and a batch are laid out over the devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding


def make_mesh() -> Mesh:
    """Returns a mesh of all devices along one axis, data."""
    return Mesh(np.asarray(jax.devices()), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of the state: whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of a batch: split along its first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def batches_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of several batches [k b ...]: each split along its own first axis."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def local_rows(sharding: Sharding, size: int) -> slice:
    """Returns the rows, of `size` that are split over all devices, that this process's devices hold: they adjoin."""
    indices = sharding.addressable_devices_indices_map((size,)).values()
    parts = [index[0].indices(size) for index in indices if index is not None]
    return slice(min(start for start, _, _ in parts), max(stop for _, stop, _ in parts))


def on_devices(tree: Any, sharding: Sharding | None) -> Any:
    """Puts NumPy arrays, whole on each process, on the devices; a process sends its own devices' parts alone.

    Without a sharding, arrays go to the default device.
    """
    if sharding is None:
        return jax.device_put(tree)

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)
