"""How the state and a batch are laid out over the devices."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


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
