"""How the state and a batch are laid out over the devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

AXES = ("data", "fsdp")  # both share the batch
SMALLEST = 1024  # numbers of an array that is worth cutting up


def make_mesh(fsdp: int = 1) -> Mesh:
    """Returns a mesh of all devices, [data fsdp]: each `fsdp` neighbours hold the state together, once.

    Raises ValueError if `fsdp` does not divide the number of devices.
    """
    devices = np.asarray(jax.devices())
    if fsdp < 1 or devices.size % fsdp:
        raise ValueError(f"fsdp is {fsdp}, but must divide the {devices.size} devices.")
    return Mesh(devices.reshape(-1, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of what is whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(tree: Any, mesh: Mesh) -> Any:
    """Returns the layout of each array of a state (Zhao et al. 2023, "PyTorch FSDP").

    It is cut along its longest axis that the devices of the mesh's axis fsdp share evenly, the last of several; an
    array of fewer than `SMALLEST` numbers, or without such an axis, is whole on each. Nothing is cut along data.

    tree: of arrays, or of anything that has their shapes.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _cut(leaf.shape, mesh.shape["fsdp"])), tree)


def _cut(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    axes = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or not axes or np.prod(shape) < SMALLEST:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(None,) * longest, "fsdp")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of a batch: split along its first axis over all devices, in their order."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def batches_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of several batches [k b ...]: each split along its own first axis."""
    return NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))


def local_rows(sharding: Sharding, size: int) -> slice:
    """Returns the rows, of `size` that are split over all devices, that this process's devices hold: they adjoin."""
    indices = sharding.addressable_devices_indices_map((size,)).values()
    parts = [index[0].indices(size) for index in indices if index is not None]
    return slice(min(start for start, _, _ in parts), max(stop for _, stop, _ in parts))


def rows_on_devices(tree: Any, sharding: Sharding, size: int, first: int) -> Any:
    """Puts on the devices arrays [size ...] of which this process has the rows of its own devices, from `first` on."""

    def put(array: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return array[start - first : stop - first]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, part)

    return jax.tree.map(put, tree)


def on_devices(tree: Any, sharding: Sharding | None) -> Any:
    """Puts NumPy arrays, whole on each process, on the devices; a process sends its own devices' parts alone.

    Without a sharding, arrays go to the default device.
    """
    if sharding is None:
        return jax.device_put(tree)

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)
