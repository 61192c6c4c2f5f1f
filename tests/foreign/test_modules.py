"""Modules that others wrote: `train_step`, `fit`, resuming, `load_run` and explaining take them, or say what to do."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.nnx import bridge
from jax.sharding import PartitionSpec

from flaxcls import create_state, eval_step, train_step
from flaxcls.analysis.activations import grad_cam
from flaxcls.data import from_arrays
from flaxcls.errors import InputError, Interrupted
from flaxcls.run import fit
from flaxcls.sharding import make_mesh
from tests.foreign import modules
from tests.foreign.runs import assert_resumes_and_loads
from tests.slow import all_slow_but, slow
from tests.test_step import KEY, make_batch, setup

pytestmark = pytest.mark.usefixtures("shared_programs")

TX = optax.adam(1e-2)


def steps(model, count=3, tx=TX, **options):
    """Returns the state after some steps, the metrics of the last, and the number of compiled programs."""
    state, step = setup(model, tx, **options)
    for seed in range(count):
        state, metrics = step(state, make_batch(seed=seed), KEY)
    return state, metrics, step._cache_size()


def test_the_average_of_parameters_of_16_bits_has_32():
    state, _, programs = steps(modules.Bfloat16(), ema_decay=0.9)
    assert programs == 1
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.ema)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("accumulate", [slow(1), 2])
def test_sown_losses_are_added_to_the_loss_and_are_no_state(accumulate):
    model, batch = modules.Sowing(), make_batch()
    state, metrics, programs = steps(model, accumulate=accumulate)
    assert (programs, dict(state.model_state)) == (1, {})
    state, step = setup(model, optax.sgd(1.0), accumulate=accumulate)
    new, metrics = step(state, batch, KEY)

    def loss(params):
        logits, sown = model.apply({"params": params}, batch["image"] / 255, train=True, mutable="losses")
        (activity,) = sown["losses"]["activity"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean() + activity, activity

    (expected, activity), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["auxiliary"], activity, rtol=1e-5)
    step_by_hand = jax.tree.map(jnp.subtract, state.params, gradient)
    chex.assert_trees_all_close(new.params, step_by_hand, rtol=1e-4, atol=1e-6)


def test_padding_has_no_part_in_how_much_a_sown_loss_counts():
    batch = make_batch(8)
    masked = {**batch, "mask": jnp.ones(8, bool)}
    state, step = setup(modules.Sowing(), TX)
    chex.assert_trees_all_close(step(state, masked, KEY)[1], step(state, batch, KEY)[1], rtol=1e-6)


def test_a_sown_loss_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"activity/0, sown into losses, has the shape \[16\], but must be f32\[\]"):
        steps(modules.SowingVectors())


@pytest.mark.parametrize("accumulate", [slow(1), 2])
def test_scales_of_8_bits_are_overwritten_by_their_gradients(accumulate):
    model = modules.EightBits()
    before, _ = setup(model, TX)
    after, metrics, programs = steps(model, count=8, accumulate=accumulate)
    assert programs == 1
    assert metrics["loss"] < 1.1
    for old, new in zip(*(jax.tree.leaves(state.model_state) for state in (before, after)), strict=True):
        assert not np.array_equal(old, new)
    (scales,) = after.model_state["_overwrite_with_gradient"]["Dense_0"].values()
    assert 0.5 < scales["input_amax_history"].max() <= 1  # of pixels


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (modules.SowingMetrics(), r"\.model_state\['metrics'\]\['activity'\]\[1\] is not there before .* float32\[\]"),
        (modules.ChangingAType(), r"\.model_state\['counters'\]\['seen'\] is bfloat16\[\] before .* float32\[\] after"),
        (modules.ReturningATuple(), r"ReturningATuple returns tuple instead of logits[\s\S]*class Wrapped"),
        (modules.Deterministic(), r"Deterministic is not called as model\(images, train=bool\)[\s\S]*not train"),
        (modules.KeepingNone(), r"keeps None in extra/nothing, which a checkpoint cannot hold"),
        (modules.KeepingAnEmptyArray(), r"keeps an array of the shape \[0, 3\] in extra/empty, which a checkpoint"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_does_not_fit_is_refused_before_anything_is_written(model, message, stripes, small_config, tmp_path):
    with pytest.raises(InputError, match=message):
        fit(small_config, dataset=stripes, model=model, tx=TX, workdir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    if "checkpoint" not in message:
        with pytest.raises(ValueError, match=message):
            steps(model, count=1)


@pytest.mark.parametrize(
    ("init", "update", "message"),
    [
        (
            jnp.float32(0),
            lambda x: x.astype(jnp.bfloat16),
            r"state is float32\[\] before it and bfloat16\[\] after",
        ),
        (jnp.float32(0), lambda x: 0, r"\.opt_state is float32\[\] before it and int32\[\] after"),
        ((jnp.float32(0), None), lambda x: [x[0], None], "does not give back the structure of the state"),
    ],
)
def test_an_optimizer_that_changes_its_state_is_refused(init, update, message):
    tx = optax.GradientTransformation(lambda params: init, lambda grads, state, params: (grads, update(state)))
    with pytest.raises(ValueError, match=message):
        steps(modules.Network(), tx=tx)


def test_each_stream_of_random_numbers_has_its_own():
    found = []
    for key in ("dropout", "noise", "default"):

        class One(modules.Network):
            kept = key

            def between(self, x, train):
                if train:
                    self.sow("losses", "drawn", jax.random.normal(self.make_rng(self.kept), ()))
                return x

        found.append(float(steps(One(), count=1)[1]["auxiliary"]))
    assert len(set(found)) == 3


def test_a_name_that_the_step_itself_returns_is_refused():
    def loss_fn(logits, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses, {"accuracy": losses}

    with pytest.raises(ValueError, match="loss_fn returns a metric called accuracy, which the step itself returns"):
        steps(modules.Network(), loss_fn=loss_fn)


def test_shards_agree_with_one_device_on_sown_losses_scales_and_keys():
    whole, split = PartitionSpec(), PartitionSpec("data")
    for model in (modules.Sowing(), modules.EightBits(), modules.KeepingAKey()):
        state, step = setup(model, TX)
        mapped = partial(train_step, model=model, tx=TX, axis_name="data")
        specs = {"mesh": make_mesh(), "in_specs": (whole, split, whole), "out_specs": whole}
        sharded, metrics = jax.jit(jax.shard_map(mapped, **specs))(state, make_batch(), KEY)
        one, expected = step(state, make_batch(), KEY)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.05)
        if not isinstance(model, modules.KeepingAKey):  # which draws numbers
            chex.assert_trees_all_close(sharded.model_state, one.model_state, rtol=1e-4, atol=1e-6)


def test_a_wrapper_as_the_message_shows_it_works():
    class Wrapped(nn.Module):
        inner: nn.Module

        def __call__(self, images, train):
            return self.inner(images, deterministic=not train)

    _, metrics, _ = steps(Wrapped(modules.Deterministic()), count=10)
    assert np.isfinite(metrics["loss"])


def item(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


WHOLE = {
    "bfloat16": modules.Bfloat16(),
    "nnx": bridge.ToLinen(modules.InNNX),
    "sown": modules.Sowing(),
    "fp8": modules.EightBits(),
    "partitioned": modules.Partitioned(),
    "remat": modules.Rematerialised(),
    "key": modules.KeepingAKey(),
    "ConfigDict": modules.ByConfigDict(modules.ConfigDict(features=4)),
}


@pytest.mark.parametrize("name", all_slow_but(WHOLE, "bfloat16", "nnx"))
def test_a_run_with_it_resumes_to_the_same_bits_and_loads(name, stripes, small_config, tmp_path, quiet):
    assert_resumes_and_loads(small_config, stripes, WHOLE[name], TX, tmp_path, quiet)


def test_a_module_that_cannot_be_hashed_is_explained():
    model = modules.ByConfigDict(modules.ConfigDict(features=4))
    with pytest.raises(TypeError, match="unhashable"):
        hash(model)
    state, _ = setup(model, TX)
    pictures = grad_cam(model, state.eval_variables, np.ones((2, 8, 8, 1), np.float32), np.array([0, 1]))
    assert pictures.shape == (2, 8, 8)


def test_the_parts_of_a_batch_may_be_the_axis_of_a_vmap():
    model, tx, batch = modules.Network(), optax.sgd(0.1), make_batch()
    state, step = setup(model, tx)
    whole, metrics = step(state, batch, KEY)
    halves = jax.tree.map(lambda x: x.reshape(2, 8, *x.shape[1:]), batch)
    mapped = partial(train_step, model=model, tx=tx, axis_name="half")
    parts, in_parts = jax.vmap(mapped, in_axes=(None, 0, None), axis_name="half")(state, halves, KEY)
    for half in range(2):
        chex.assert_trees_all_close(item(parts, half), whole, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(in_parts["loss"][half], metrics["loss"], rtol=1e-6)


def test_several_seeds_train_in_one_program():
    model, batch = modules.Network(), make_batch()
    keys = jax.random.split(KEY, 3)
    states = jax.vmap(partial(create_state, model=model, tx=TX, image_shape=(8, 8, 1)))(keys)
    step = jax.jit(jax.vmap(partial(train_step, model=model, tx=TX), in_axes=(0, None, 0)))
    for _ in range(2):
        states, metrics = step(states, batch, keys)
    alone = jax.jit(partial(train_step, model=model, tx=TX))
    for index, key in enumerate(keys):
        state = create_state(key, model, TX, image_shape=(8, 8, 1))
        for _ in range(2):
            state, expected = alone(state, batch, key)
        np.testing.assert_allclose(metrics["loss"][index], expected["loss"], rtol=1e-5)
        chex.assert_trees_all_close(item(states.params, index), state.params, atol=1e-5)


@pytest.mark.parametrize("accumulate", [slow(1), 2])
def test_metrics_of_ones_own_come_from_the_loss(accumulate):
    def loss_fn(logits, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses, {"confidence": jax.nn.softmax(logits).max(axis=1)}

    batch = {**make_batch(), "mask": jnp.arange(16) < 12}
    state, step = setup(modules.Network(), TX, loss_fn=loss_fn, accumulate=accumulate)
    _, metrics = step(state, batch, KEY)
    logits = modules.Network().apply({"params": state.params}, batch["image"][:12] / 255, train=True)
    np.testing.assert_allclose(metrics["confidence"], jax.nn.softmax(logits).max(axis=1).mean(), rtol=1e-5)
    assert eval_step(state, batch, model=modules.Network(), loss_fn=loss_fn).count == 12


def test_evaluation_with_a_key_is_random_as_training_is():
    model = bridge.ToLinen(modules.InNNX)
    state, _ = setup(model, TX)
    evaluate = jax.jit(partial(eval_step, model=model))
    first, again, other = (evaluate(state, make_batch(), key=jax.random.key(seed)).loss for seed in (1, 1, 2))
    assert first == again != other
    assert evaluate(state, make_batch()).loss not in (first, other)


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_integers_other_than_bytes_are_refused_unless_a_transform_scales_them(kind):
    batch = {**make_batch(), "image": make_batch()["image"].astype(kind)}
    state, step = setup(modules.Network(), TX)
    with pytest.raises(ValueError, match=rf"the images are {np.dtype(kind)}, but must be unsigned bytes .* or floats"):
        step(state, batch, KEY)
    with pytest.raises(ValueError, match="the images are"):
        eval_step(state, batch, model=modules.Network())
    scaled = partial(train_step, transform=lambda key, batch: {**batch, "image": batch["image"] / 255})
    _, metrics = scaled(state, batch, KEY, model=modules.Network(), tx=TX)
    np.testing.assert_allclose(metrics["loss"], step(state, make_batch(), KEY)[1]["loss"], rtol=1e-6)


def test_labels_outside_of_the_classes_are_refused(stripes, small_config, tmp_path):
    labels = stripes.train.labels.copy()
    labels[0] = 3
    wrong = from_arrays(stripes.train.images, labels, class_names=("a", "b", "c", "d"))
    dataset = wrong.__class__(**{**vars(wrong), "class_names": ("a", "b", "c")})
    with pytest.raises(InputError, match=r"the labels of the train split of .* are 0 to 3, but there are 3 classes"):
        fit(small_config, dataset=dataset, workdir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "tx", "message"),
    [
        slow(modules.Sowing(), TX, r"differs in model: Network\("),
        (
            modules.Network(),
            optax.adam(3.0),
            "differs in the operations of a step, by its model, its optimizer",
        ),
    ],
)
def test_another_one_of_equal_shapes_is_refused(model, tx, message, stripes, small_config, tmp_path, quiet):
    options = {"dataset": stripes, "workdir": tmp_path / "run", "console": quiet}
    with pytest.raises(Interrupted):
        fit(small_config, model=modules.Network(), tx=TX, stop_after=4, **options)
    with pytest.raises(InputError, match=message):
        fit(small_config, model=model, tx=tx, resume=True, **options)
    with pytest.raises(Interrupted):
        fit(small_config, model=modules.Network(), tx=optax.adam(1e-2), resume=True, stop_after=5, **options)
    fit(small_config, model=model, tx=tx, resume=True, allow_changes=True, **options)
