"""The layout of the state and of batches over the devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

__all__ = [
    "AXES",
    "SMALLEST",
    "batch_sharding",
    "batches_sharding",
    "local_rows",
    "make_mesh",
    "on_devices",
    "replicated",
    "rows_on_devices",
    "state_sharding",
]

AXES = ("data", "fsdp")  # the batch is split over both
SMALLEST = 1024  # numbers; smaller arrays are not worth splitting


def make_mesh(fsdp: int = 1) -> Mesh:
    """Returns a mesh [data fsdp] of all devices, in which each group of `fsdp` neighbours has one copy of the state.

    Raises ValueError if `fsdp` does not divide the number of devices.
    """
    devices = np.asarray(jax.devices())
    if fsdp < 1 or devices.size % fsdp:
        raise ValueError(f"fsdp is {fsdp}, but must divide the {devices.size} devices.")
    return Mesh(devices.reshape(-1, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the layout of arrays that are whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(tree: Any, mesh: Mesh) -> Any:
    """Returns the layout of each array of a state (Zhao et al. 2023, "PyTorch FSDP").

    An array is split over the mesh axis fsdp along its longest axis that divides evenly; of several equally long axes,
    along the last. An array with fewer than `SMALLEST` numbers, or without such an axis, is whole on each device. No
    array is split over the mesh axis data.

    tree: arrays, or anything that has their shapes.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _partition(leaf.shape, mesh.shape["fsdp"])), tree)


def _partition(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    axes = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or not axes or np.prod(shape) < SMALLEST:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(None,) * longest, "fsdp")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the layout of a batch: split along its first axis over all devices, in their order."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def batches_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the layout of stacked batches [k b ...]: each is split along its own first axis."""
    return NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))


def local_rows(sharding: Sharding, size: int) -> slice:
    """Returns the contiguous rows on this process's devices, if `size` rows are split over all devices."""
    indices = sharding.addressable_devices_indices_map((size,)).values()
    parts = [index[0].indices(size) for index in indices if index is not None]
    return slice(min(start for start, _, _ in parts), max(stop for _, stop, _ in parts))


def rows_on_devices(tree: Any, sharding: Sharding, size: int, first: int) -> Any:
    """Puts arrays [size ...] on the devices. Those of `tree` are only this process's rows of them, from `first` on."""

    def put(array: np.ndarray) -> jax.Array:
        def rows_of_device(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return array[start - first : stop - first]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, rows_of_device)

    return jax.tree.map(put, tree)


def on_devices(tree: Any, sharding: Sharding | None) -> Any:
    """Puts NumPy arrays, which each process has whole, on the devices.

    A process sends only the parts for its own devices. Without a sharding, arrays go to the default device.
    """
    if sharding is None:
        return jax.device_put(tree)

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)
