import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from flaxcls import create_state
from flaxcls.models import CNN
from flaxcls.sharding import SMALLEST, batch_sharding, make_mesh, state_sharding


def cut(*shape):
    return state_sharding(jax.ShapeDtypeStruct(shape, np.float32), make_mesh(2)).spec


def test_an_array_is_cut_along_its_longest_axis_that_the_devices_share_evenly():
    assert cut(3, 3, 32, 64) == PartitionSpec(None, None, None, "fsdp")
    assert cut(3, 3, 64, 32) == PartitionSpec(None, None, "fsdp")
    assert cut(64, 64) == PartitionSpec(None, "fsdp")
    assert cut(2000, 33) == PartitionSpec("fsdp")
    assert cut(1001, 40) == PartitionSpec(None, "fsdp")


def test_small_and_odd_arrays_are_whole():
    assert cut(SMALLEST) == PartitionSpec("fsdp")
    assert cut(SMALLEST - 2) == PartitionSpec()
    assert cut() == cut(0) == cut(1001, 33) == PartitionSpec()


def test_without_fsdp_all_is_whole():
    mesh = make_mesh()
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1}
    assert state_sharding(jax.ShapeDtypeStruct((64, 64), np.float32), mesh).spec == PartitionSpec()


def test_the_batch_is_split_over_both_axes_in_the_order_of_the_devices():
    for fsdp in (1, 2):
        indices = batch_sharding(make_mesh(fsdp)).devices_indices_map((8, 3))
        assert [indices[device][0] for device in jax.devices()] == [slice(0, 4), slice(4, 8)]


def test_optimizer_state_and_averages_are_cut_as_the_parameters_are():
    model, tx = CNN(3, widths=(32, 64)), optax.adam(1e-3)
    state = create_state(jax.random.key(0), model, tx, image_shape=(8, 8, 1), ema=True)
    layout = state_sharding(state, make_mesh(2))
    assert layout.params == layout.ema == layout.opt_state[0].mu == layout.opt_state[0].nu
    assert layout.step.spec == PartitionSpec()
    large = layout.params["Conv_1"]["kernel"].spec
    assert large == PartitionSpec(None, None, None, "fsdp")


@pytest.mark.parametrize("fsdp", [0, 3])
def test_devices_that_do_not_divide(fsdp):
    with pytest.raises(ValueError, match=f"fsdp is {fsdp}, but must divide the 2 devices"):
        make_mesh(fsdp)
