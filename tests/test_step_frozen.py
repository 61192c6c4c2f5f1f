"""Parameters that a step leaves as they are."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from flaxcls import create_state, train_step
from flaxcls.errors import InputError
from flaxcls.losses import l2
from flaxcls.models import CNN
from flaxcls.optim import sam
from flaxcls.sharding import make_mesh
from tests.slow import slow
from tests.test_step import KEY, make_batch, setup, small

ADAMW = optax.adamw(1e-2, weight_decay=0.1)
SAM = sam(ADAMW, 0.1)


def leaves(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


@pytest.mark.parametrize(
    ("tx", "options"),
    [
        pytest.param(ADAMW, {"ema_decay": 0.5}, id="adamw"),
        slow(ADAMW, {"accumulate": 2, "regularizer": lambda params: 1e-2 * l2(params)}, id="accumulate"),
        pytest.param(SAM, {"accumulate": 2, "regularizer": lambda params: 1e-2 * l2(params)}, id="sam"),
    ],
)
def test_frozen_parameters_stay_bit_for_bit_and_the_others_learn_as_before(tx, options):
    model = small(norm="batch")
    state, step = setup(model, tx, frozen=("Conv_0/*", "*/bias"), **options)
    new = state
    for seed in range(2):
        new, metrics = step(new, make_batch(seed=seed), KEY)
    fixed = {"Conv_0/kernel", "Dense_0/bias", "Dense_1/bias", "BatchNorm_0/bias"}
    for tree in (new.params, new.params if new.ema is None else new.ema):
        stayed = {path for path, leaf in leaves(tree).items() if np.array_equal(leaf, leaves(state.params)[path])}
        assert stayed == fixed
    chex.assert_tree_all_finite(metrics)

    labels = ["frozen" if path in fixed else "trained" for path in leaves(state.params)]
    labels = jax.tree.unflatten(jax.tree.structure(state.params), labels)
    if tx is ADAMW:  # which, parameter by parameter, has nothing to do with what becomes of the others
        partitioned = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
        other, other_step = setup(model, partitioned, **options)
        for seed in range(2):
            other, _ = other_step(other, make_batch(seed=seed), KEY)
        chex.assert_trees_all_close(new.params, other.params, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("regularizer", [None, l2])
def test_the_norm_is_that_of_the_gradient_of_the_trained(regularizer):
    model, tx = small(), optax.trace(0.0)  # an update that is the gradient
    state, step = setup(model, tx, regularizer=regularizer)
    _, frozen_step = setup(model, tx, regularizer=regularizer, frozen=["Dense_*"])
    (whole, metrics), (part, frozen_metrics) = step(state, make_batch(), KEY), frozen_step(state, make_batch(), KEY)
    gradient = jax.tree.map(jnp.subtract, whole.params["Conv_0"], state.params["Conv_0"])
    assert float(frozen_metrics["grad_norm"]) == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-3)
    assert frozen_metrics["grad_norm"] < metrics["grad_norm"]
    assert frozen_metrics["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    chex.assert_trees_all_close(part.params["Conv_0"], whole.params["Conv_0"], rtol=1e-4, atol=1e-6)


def test_an_optimizer_sees_no_gradient_of_what_is_frozen():
    """So clipping by the global norm is by that of the others."""
    state, step = setup(small(), optax.trace(0.9), frozen=("Dense_0/*",))
    new, _ = step(state, make_batch(), KEY)
    for name, layer in new.opt_state.trace.items():
        assert all(bool(jnp.any(leaf)) != (name == "Dense_0") for leaf in layer.values())


def flops(frozen):
    model, tx = CNN(3, widths=(16, 16), dense=()), optax.sgd(0.1)
    state = jax.eval_shape(partial(create_state, model=model, tx=tx, image_shape=(16, 16, 16)), KEY)
    batch = {"image": jax.ShapeDtypeStruct((8, 16, 16, 16), "float32"), "label": jax.ShapeDtypeStruct((8,), "int32")}
    step = jax.jit(partial(train_step, model=model, tx=tx, frozen=frozen))
    return step.lower(state, batch, KEY).compile().cost_analysis()["flops"]


def taps(side):
    """Returns how many of the three taps at each place of a row lie inside the image: XLA counts no others."""
    return 3 * side - 2


def test_what_only_frozen_parameters_need_is_not_computed():
    """Per image, a convolution is c_in c_out taps^2 multiply-adds forward, and in either gradient as many again."""
    first, second = (2 * 8 * 16 * 16 * taps(side) ** 2 for side in (16, 8))
    whole = flops(())
    # the first kernel alone: its gradient, and that of the input of the second convolution
    assert whole - flops(("Conv_0/*",)) == pytest.approx(first + second, rel=0.1)
    # the second alone: its kernel's gradient, while the first still needs that of its input
    assert whole - flops(("Conv_1/*",)) == pytest.approx(second, rel=0.1)
    assert whole - flops(("Conv_*",)) == pytest.approx(first + 2 * second, rel=0.1)


@pytest.mark.parametrize("check_vma", [True, slow(False)])
@pytest.mark.parametrize("tx", [slow(ADAMW, id="adamw"), pytest.param(SAM, id="sam")])
def test_two_devices_agree_with_one(tx, check_vma):
    model, options = small(norm="batch"), {"frozen": ("Conv_0/*",), "regularizer": lambda p: 1e-2 * l2(p)}
    state, step = setup(model, tx, **options)
    whole, split = PartitionSpec(), PartitionSpec("data")
    sharded = jax.jit(
        jax.shard_map(
            partial(train_step, model=small(norm="batch", axis_name="data"), tx=tx, axis_name="data", **options),
            mesh=make_mesh(),
            in_specs=(whole, split, whole),
            out_specs=whole,
            check_vma=check_vma,
        )
    )
    (one, metrics), (two, same) = step(state, make_batch(), KEY), sharded(state, make_batch(), KEY)
    chex.assert_trees_all_close(two.params, one.params, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(same, metrics, rtol=1e-4)
    np.testing.assert_array_equal(two.params["Conv_0"]["kernel"], state.params["Conv_0"]["kernel"])


def test_a_glob_that_matches_nothing_is_refused():
    state, _ = setup(small(), optax.sgd(0.1))
    with pytest.raises(InputError, match=r"frozen: unknown parameter 'Conv_1/\*'.*Known: Conv_0/bias, Conv_0/kernel"):
        train_step(state, make_batch(), KEY, model=small(), tx=optax.sgd(0.1), frozen=("Conv_0/*", "Conv_1/*"))
