"""The same step over two devices: jit over a mesh, pmap and shard_map agree with one device."""

import functools
from functools import partial

import chex
import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from flaxcls import create_state, eval_step, train_step
from flaxcls.losses import l2
from flaxcls.models import CNN
from flaxcls.optim import sam
from flaxcls.sharding import batch_sharding, make_mesh, replicated
from tests.conftest import make_stripes
from tests.slow import slow

KEY = jax.random.key(0)
TX = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))
SAM = sam(TX, 0.1)  # its state is that of TX
OPTIONS = {"regularizer": lambda params: 1e-3 * l2(params), "ema_decay": 0.9}
STEPS = 5


def model(norm="batch", **options):
    return CNN(3, widths=(4,), dense=(8,), norm=norm, **options)


def batches(norm, count=16):
    for seed in range(STEPS):
        images, labels = make_stripes(count, seed)
        batch = {"image": images, "label": labels.astype(np.int32)}
        # unlike counts on the two devices
        yield batch if norm == "batch" else {**batch, "mask": np.arange(count) % 5 > 0}


def initial(norm="batch"):
    return create_state(KEY, model(norm), TX, image_shape=(8, 8, 1), ema=True)


def train(step, state, place=lambda batch: batch, norm="batch"):
    for batch in batches(norm):
        state, metrics = step(state, place(batch), KEY)
    return state, metrics


@functools.cache
def on_one_device(tx, accumulate, norm):
    step = jax.jit(partial(train_step, model=model(norm), tx=tx, accumulate=accumulate, **OPTIONS))
    return train(step, initial(norm), norm=norm)


each_case = pytest.mark.parametrize(
    ("tx", "accumulate", "norm"),
    [
        pytest.param(SAM, 2, "batch", id="sam-2"),
        slow(SAM, 1, "batch", id="sam-1"),
        slow(TX, 1, "batch", id="sgd-1"),
        slow(TX, 2, "batch", id="sgd-2"),
        pytest.param(TX, 2, "layer", id="masked-2"),
        slow(TX, 1, "layer", id="masked-1"),
    ],
)


def assert_agree(result, expected):
    (state, metrics), (expected_state, expected_metrics) = result, expected
    chex.assert_trees_all_close(state, expected_state, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-4)


def test_there_are_two_devices():
    assert jax.device_count() == 2


@pytest.mark.slow
@each_case
def test_jit_over_a_mesh(tx, accumulate, norm):
    mesh = make_mesh()
    step = jax.jit(
        partial(train_step, model=model(norm), tx=tx, accumulate=accumulate, **OPTIONS),
        donate_argnums=0,
        out_shardings=replicated(mesh),
    )
    state = jax.device_put(initial(norm), replicated(mesh))
    result = train(step, state, lambda batch: jax.device_put(batch, batch_sharding(mesh)), norm)
    assert_agree(result, on_one_device(tx, accumulate, norm))


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
@each_case
def test_shard_map(tx, accumulate, norm, check_vma):
    whole, split = PartitionSpec(), PartitionSpec("data")
    step = jax.jit(
        jax.shard_map(
            partial(
                train_step,
                model=model(norm, axis_name="data"),
                tx=tx,
                accumulate=accumulate,
                axis_name="data",
                **OPTIONS,
            ),
            mesh=make_mesh(),
            in_specs=(whole, split, whole),
            out_specs=whole,
            check_vma=check_vma,
        )
    )
    assert_agree(train(step, initial(norm), norm=norm), on_one_device(tx, accumulate, norm))


def each_shards_own(grads, state, params, *, grad_fn, **extra):
    params_of_shard = jax.tree.map(lambda x: x + 0 * jax.lax.axis_index("data"), params)
    return TX.update(grad_fn(params_of_shard, 0), state, params)


@pytest.mark.parametrize("check_vma", [True, slow(False)])
def test_an_optimizer_asks_for_the_gradient_at_what_is_each_shards_own(check_vma):
    whole, split = PartitionSpec(), PartitionSpec("data")
    tx = optax.GradientTransformationExtraArgs(TX.init, each_shards_own)
    step = jax.jit(
        jax.shard_map(
            partial(train_step, model=model(axis_name="data"), tx=tx, axis_name="data", **OPTIONS),
            mesh=make_mesh(),
            in_specs=(whole, split, whole),
            out_specs=whole,
            check_vma=check_vma,
        )
    )
    assert_agree(train(step, initial()), on_one_device(TX, 1, "batch"))


def in_halves(batch):
    return jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)


@each_case
def test_pmap(tx, accumulate, norm):
    step = jax.pmap(
        partial(
            train_step, model=model(norm, axis_name="data"), tx=tx, accumulate=accumulate, axis_name="data", **OPTIONS
        ),
        axis_name="data",
        in_axes=(None, 0, None),
        out_axes=None,
    )
    assert_agree(train(step, initial(norm), in_halves, norm), on_one_device(tx, accumulate, norm))


@pytest.mark.parametrize("form", ["pmap", "shard_map"])
def test_a_mask_is_refused_with_batch_norm_whatever_the_axis(form):
    part = partial(train_step, model=model(axis_name="data"), tx=TX, axis_name="data", **OPTIONS)
    (batch, *_) = batches("layer")
    if form == "pmap":
        step, batch = jax.pmap(part, axis_name="data", in_axes=(None, 0, None), out_axes=None), in_halves(batch)
    else:
        specs = (PartitionSpec(), PartitionSpec("data"), PartitionSpec())
        step = jax.shard_map(part, mesh=make_mesh(), in_specs=specs, out_specs=PartitionSpec())
    with pytest.raises(ValueError, match="the batch has a mask, but the model computes batch_stats/BatchNorm_0/mean"):
        jax.eval_shape(step, initial(), batch, KEY)


def test_batch_norm_that_knows_no_axis_still_ends_equal_everywhere():
    whole, split = PartitionSpec(), PartitionSpec("data")
    step = jax.jit(
        jax.shard_map(
            partial(train_step, model=model(), tx=TX, axis_name="data", **OPTIONS),
            mesh=make_mesh(),
            in_specs=(whole, split, whole),
            out_specs=whole,
        )
    )
    state, metrics = train(step, initial())
    chex.assert_tree_all_finite((state.params, state.model_state, metrics))


@pytest.mark.parametrize("form", ["pmap", "shard_map"])
def test_dropout_differs_between_the_shards(form):
    """With the same image everywhere, and one shard masked out, the loss tells which units the other one dropped."""
    dropped, tx = CNN(3, widths=(4,), dense=(32,), dropout=0.5), optax.sgd(0.1)
    state = create_state(KEY, dropped, tx, image_shape=(8, 8, 1))
    part = partial(train_step, model=dropped, tx=tx, axis_name="data")
    if form == "pmap":
        step = jax.pmap(part, axis_name="data", in_axes=(None, 0, None), out_axes=None)
    else:
        step = jax.jit(
            jax.shard_map(
                part,
                mesh=make_mesh(),
                in_specs=(PartitionSpec(), PartitionSpec("data"), PartitionSpec()),
                out_specs=PartitionSpec(),
            )
        )

    def loss(counts):
        batch = {"image": np.ones((2, 8, 8, 1), np.float32), "label": np.zeros(2, np.int32), "mask": np.array(counts)}
        if form == "pmap":
            batch = jax.tree.map(lambda x: x[:, None], batch)
        return float(step(state, batch, KEY)[1]["loss"])

    first, second = loss([True, False]), loss([False, True])
    assert first != second
    assert loss([True, True]) == pytest.approx((first + second) / 2, rel=1e-5)


@pytest.mark.parametrize("form", ["jit", "shard_map", "pmap"])
def test_eval_step_counts_every_example_once(form):
    state = initial()
    images, labels = make_stripes(16)
    batch = {"image": images, "label": labels.astype(np.int32), "mask": np.arange(16) < 11}
    expected = jax.jit(partial(eval_step, model=model()))(state, batch)
    step = partial(eval_step, model=model(), axis_name=None if form == "jit" else "data")
    if form == "jit":
        sums = jax.jit(step)(state, jax.device_put(batch, batch_sharding(make_mesh())))
    elif form == "shard_map":
        specs = (PartitionSpec(), PartitionSpec("data"))
        sums = jax.jit(jax.shard_map(step, mesh=make_mesh(), in_specs=specs, out_specs=PartitionSpec()))(state, batch)
    else:
        sums = jax.pmap(step, axis_name="data", in_axes=(None, 0), out_axes=None)(state, in_halves(batch))
    assert sums.count == 11
    assert sums.correct == expected.correct
    np.testing.assert_allclose(sums.loss, expected.loss, rtol=1e-5)
