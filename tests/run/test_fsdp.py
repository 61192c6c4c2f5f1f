"""Runs whose parameters, optimizer state and averages are shared out over the devices."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from flaxcls.config import AugmentConfig, MeshConfig
from flaxcls.errors import InputError, Interrupted
from flaxcls.run import fit
from flaxcls.run.hlo import collectives
from flaxcls.run.setup import make_setup
from tests.slow import slow

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture
def whole(small_config):
    model = replace(small_config.model, widths=(16, 32), dense=(64,), dropout=0.0)
    return replace(small_config, model=model, augment=AugmentConfig(crop_padding=0))


@pytest.fixture
def shared(whole):
    return replace(whole, mesh=MeshConfig(fsdp=2))


def compiled(config, dataset):
    setup = make_setup(config, dataset, None, None)
    return setup, setup.train.lower(
        setup.abstract_state, setup.loader.load(0, 1), jax.random.key(0), frozen=()
    ).compile()


@pytest.mark.slow
def test_the_numbers_are_those_of_a_run_that_is_whole_on_each_device(whole, shared, stripes, tmp_path, quiet):
    one = fit(whole, dataset=stripes, workdir=tmp_path / "whole", console=quiet)
    other = fit(shared, dataset=stripes, workdir=tmp_path / "shared", console=quiet)
    kernel = other.state.params["Dense_0"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2
    for ours, theirs in zip(jax.tree.leaves(other.state), jax.tree.leaves(one.state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert other.test == pytest.approx(one.test, rel=1e-3)


@pytest.mark.parametrize("first", [slow(1), 2])
def test_checkpoints_are_of_either_layout(first, whole, shared, stripes, tmp_path, quiet):
    configs = {1: whole, 2: shared}
    expected = fit(configs[first], dataset=stripes, workdir=tmp_path / "never stopped", console=quiet)
    with pytest.raises(Interrupted):
        fit(configs[first], dataset=stripes, workdir=tmp_path / "run", console=quiet, stop_after=6)
    result = fit(configs[3 - first], dataset=stripes, workdir=tmp_path / "run", console=quiet, resume=True)
    assert result.test["loss"] == pytest.approx(expected.test["loss"], rel=1e-3)


def test_a_run_of_this_layout_resumes_to_the_same_bits(shared, stripes, tmp_path, quiet):
    expected = fit(shared, dataset=stripes, workdir=tmp_path / "never stopped", console=quiet)
    with pytest.raises(Interrupted):
        fit(shared, dataset=stripes, workdir=tmp_path / "run", console=quiet, stop_after=6)
    assert fit(shared, dataset=stripes, workdir=tmp_path / "run", console=quiet, resume=True).fingerprint == (
        expected.fingerprint
    )


def test_each_device_holds_its_part_of_the_state_alone(whole, shared, stripes):
    (_, all_of_it), (setup, part) = compiled(whole, stripes), compiled(shared, stripes)
    held = [program.memory_analysis().argument_size_in_bytes for program in (all_of_it, part)]
    split = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(setup.abstract_state)
        if not leaf.sharding.is_fully_replicated
    )
    assert split > 0.9 * held[0] - 32 * 65  # of what is neither small nor the batch
    assert held[0] - held[1] == split // 2
    # the gathered parameters take the room of what a step of whole ones makes anew, or nearly so
    temporary = [program.memory_analysis().temp_size_in_bytes for program in (all_of_it, part)]
    assert temporary[1] - temporary[0] < (held[0] - held[1]) / 3


def test_gradients_are_reduced_once_and_the_batch_stays_where_it_is(whole, shared, stripes):
    for config in (whole, shared):
        setup, program = compiled(config, stripes)
        found = collectives(program.as_text(), 2)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(setup.abstract_state.params))
        reduced = sum(one.bytes for one in found if one.kind in ("all-reduce", "reduce-scatter"))
        # with statistics of batch norm, forward and backward, and the sums of loss and accuracy
        assert 4 * parameters <= reduced <= 1.05 * 4 * parameters
        gathered = [one for one in found if one.kind not in ("all-reduce", "reduce-scatter")]
        sizes = sorted(np.prod(shape) for one in gathered for shape in one.shapes)
        expected = [
            leaf.size for leaf in jax.tree.leaves(setup.abstract_state.params) if not leaf.sharding.is_fully_replicated
        ]
        assert sizes == sorted(expected)
        assert all(one.kind == "all-gather" for one in gathered)
        assert bool(gathered) == (config is shared)
        arithmetic = 4 * (parameters + sum(expected))
        assert arithmetic <= sum(one.bytes for one in found) <= 1.05 * arithmetic


def test_more_devices_than_there_are(whole, stripes, tmp_path, quiet):
    config = replace(whole, mesh=MeshConfig(fsdp=3))
    with pytest.raises(InputError, match=r"mesh\.fsdp is 3, but must divide .* which is 2: it can be 1, 2"):
        fit(config, dataset=stripes, workdir=tmp_path / "run", console=quiet)
    assert not (tmp_path / "run").exists()
