"""train_step and eval_step on one device."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from flaxcls import create_state, eval_step, train_step
from flaxcls.losses import cross_entropy, l2
from flaxcls.models import CNN
from flaxcls.optim import sam
from tests.conftest import make_stripes

KEY = jax.random.key(0)


def make_batch(count=16, seed=0):
    images, labels = make_stripes(count, seed)
    return {"image": jnp.array(images), "label": jnp.array(labels, jnp.int32)}


def small(**options):
    return CNN(3, widths=(4,), dense=(8,), **options)


def setup(model, tx, **options):
    state = create_state(KEY, model, tx, image_shape=(8, 8, 1), ema="ema_decay" in options)
    return state, jax.jit(partial(train_step, model=model, tx=tx, **options))


def test_golden_step():
    """Three steps of everything at once, against numbers that were right when they were written down."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=1e-2))
    state, step = setup(small(norm="batch", dropout=0.1), tx, regularizer=lambda p: 1e-3 * l2(p), ema_decay=0.9)
    for seed in range(3):
        state, metrics = step(state, make_batch(seed=seed), KEY)
    measured = {name: float(value) for name, value in metrics.items()}
    measured["params"] = float(optax.tree.norm(state.params))
    measured["ema"] = float(optax.tree.norm(state.ema))
    golden = {
        "loss": 0.83584,
        "regularization": 0.019272,
        "accuracy": 0.8125,
        "grad_norm": 1.07573,
        "params": 4.81437,
        "ema": 4.81358,
    }
    assert measured == pytest.approx(golden, rel=1e-3), (
        "The numbers of a training step have changed. If that is meant, say so in CHANGELOG.md (old runs no longer "
        "resume to the same bits) and write the new ones here."
    )


def test_a_step_is_forward_gradient_update_by_hand():
    model, tx, batch = small(), optax.sgd(0.1), make_batch()
    state, step = setup(model, tx)

    def loss(params):
        return cross_entropy(model.apply({"params": params}, batch["image"] / 255, train=True), batch["label"]).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    new, metrics = step(state, batch, KEY)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    chex.assert_trees_all_close(new.params, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    assert new.step == 1


def test_one_batch_is_learned_by_heart():
    state, step = setup(CNN(3, widths=(8,), dense=(16,)), optax.adam(1e-2))
    for _ in range(60):
        state, metrics = step(state, make_batch(), KEY)
    assert metrics["loss"] < 0.05
    assert metrics["accuracy"] == 1


def test_metrics_are_scalars_of_float32_and_finite():
    state, step = setup(small(), optax.sgd(0.1), regularizer=l2)
    _, metrics = step(state, make_batch(), KEY)
    assert set(metrics) == {"loss", "accuracy", "grad_norm", "regularization"}
    for value in metrics.values():
        chex.assert_shape(value, ())
        chex.assert_type(value, jnp.float32)
    chex.assert_tree_all_finite(metrics)


def test_the_regularizer_is_part_of_loss_and_gradient():
    state, step = setup(small(), optax.sgd(1.0))
    _, penalised_step = setup(small(), optax.sgd(1.0), regularizer=lambda params: 0.5 * l2(params))
    (plain, metrics), (penalised, with_penalty) = (s(state, make_batch(), KEY) for s in (step, penalised_step))
    np.testing.assert_allclose(with_penalty["loss"], metrics["loss"] + 0.5 * l2(state.params), rtol=1e-5)
    kernel = state.params["Dense_0"]["kernel"]  # the gradient of the penalty is the weight itself
    difference = plain.params["Dense_0"]["kernel"] - penalised.params["Dense_0"]["kernel"]
    np.testing.assert_allclose(difference, kernel, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_gives_the_update_of_the_whole_batch(parts):
    state, step = setup(small(), optax.sgd(0.1))
    _, in_parts = setup(small(), optax.sgd(0.1), accumulate=parts)
    batch = {**make_batch(), "mask": jnp.arange(16) < 13}
    (whole, metrics), (sum_of_parts, same) = step(state, batch, KEY), in_parts(state, batch, KEY)
    chex.assert_trees_all_close(whole.params, sum_of_parts.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, same, rtol=1e-5)


def test_accumulation_on_a_cpu_is_no_loop():
    state, step = setup(small(), optax.sgd(0.1), accumulate=4)
    assert "while" not in step.lower(state, make_batch(), KEY).compile().as_text()


def test_masked_examples_do_not_count_whatever_they_hold():
    state, step = setup(small(), optax.sgd(0.1))
    batch = make_batch()
    batch["image"] = batch["image"].astype(jnp.float32) / 255
    part = jax.tree.map(lambda x: x[:10], batch)
    garbage = {"image": batch["image"].at[10:].set(jnp.nan), "label": batch["label"].at[10:].set(99)}
    masked = {**garbage, "mask": jnp.arange(16) < 10}
    (one, metrics), (other, same) = step(state, masked, KEY), step(state, part, KEY)
    chex.assert_trees_all_close(one.params, other.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, same, rtol=1e-5)


class OwnStatistics(nn.Module):
    """Keeps statistics in a collection of its own, a fixed kernel and a counter."""

    updates: bool = True

    @nn.compact
    def __call__(self, images, train):
        mean = self.variable("pixels", "mean", lambda: jnp.zeros(()))
        kernel = self.variable("constants", "kernel", lambda: jnp.ones((64, 8)))
        calls = self.variable("counters", "calls", lambda: jnp.int32(0))
        if train and not self.is_initializing():
            calls.value += 1
            if self.updates:
                mean.value = images.mean()
        return nn.Dense(3)((images.reshape(len(images), -1) - mean.value) @ kernel.value)


REFUSED = "the batch has a mask, but the model computes {} from the whole batch.* group or layer normalisation"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (CNN(3, widths=(4,), dense=(8,), norm="batch"), "batch_stats/BatchNorm_0/mean"),
        (OwnStatistics(), "pixels/mean"),
    ],
    ids=["batch", "own"],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_mask_is_refused_where_masked_examples_would_count_in_statistics(model, name, accumulate):
    state, step = setup(model, optax.sgd(0.1), accumulate=accumulate)
    masked = {**make_batch(), "mask": jnp.arange(16) < 10}
    with pytest.raises(ValueError, match=REFUSED.format(name)):
        jax.eval_shape(step, state, masked, KEY)
    jax.eval_shape(step, state, make_batch(), KEY)
    evaluate = partial(eval_step, model=model)
    assert jax.eval_shape(evaluate, state, masked).count.dtype == jnp.int32
    if name != "pixels/mean":
        with pytest.raises(ValueError, match=REFUSED.format(name)):
            jax.eval_shape(partial(evaluate, key=KEY), state, masked)


def test_a_mask_is_taken_where_the_state_holds_nothing_of_the_batch():
    model = OwnStatistics(updates=False)
    state, step = setup(model, optax.sgd(0.1))
    batch = make_batch()
    part = jax.tree.map(lambda x: x[:10], batch)
    (one, metrics), (other, same) = (
        step(state, {**batch, "mask": jnp.arange(16) < 10}, KEY),
        step(state, part, KEY),
    )
    chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(metrics, same, rtol=1e-5)
    assert one.model_state["counters"]["calls"] == 1


def test_soft_labels_train_like_the_classes_they_mean():
    state, step = setup(small(), optax.sgd(0.1))
    batch = make_batch()
    soft = {**batch, "label": jax.nn.one_hot(batch["label"], 3)}
    (one, metrics), (other, same) = step(state, batch, KEY), step(state, soft, KEY)
    chex.assert_trees_all_close(one.params, other.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, same, rtol=1e-5)


def test_randomness_depends_on_key_and_step_alone():
    state, step = setup(small(dropout=0.5), optax.sgd(0.0))
    loss = lambda state, key: float(step(state, make_batch(), key)[1]["loss"])  # noqa: E731
    assert loss(state, KEY) == loss(state, KEY)
    assert loss(state, KEY) != loss(state, jax.random.key(1))
    assert loss(state, KEY) != loss(state.replace(step=jnp.int32(1)), KEY)


def test_the_transform_is_given_a_key_in_training_and_none_in_evaluation():
    seen = []

    def transform(key, batch):
        seen.append(key is None)
        return {**batch, "image": batch["image"].astype(jnp.float32) / 510}

    model, tx = small(), optax.sgd(0.1)
    state, step = setup(model, tx, transform=transform)
    step(state, make_batch(), KEY)
    eval_step(state, make_batch(), model=model, transform=transform)
    assert seen == [False, True]


def test_the_average_is_by_hand():
    state, step = setup(small(), optax.sgd(0.1), ema_decay=0.15)
    new, _ = step(state, make_batch(), KEY)  # at step 0 the decay is 1/10, less than 0.15
    expected = jax.tree.map(lambda old, p: 0.1 * old + 0.9 * p, state.params, new.params)
    chex.assert_trees_all_close(new.ema, expected, rtol=1e-4, atol=1e-6)
    newer, _ = step(new, make_batch(), KEY)  # at step 1 it would be 2/11
    expected = jax.tree.map(lambda old, p: 0.15 * old + 0.85 * p, new.ema, newer.params)
    chex.assert_trees_all_close(newer.ema, expected, rtol=1e-4, atol=1e-6)


def test_the_optimizer_is_given_the_loss():
    tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    state, step = setup(small(), tx)
    for _ in range(2):
        state, _ = step(state, make_batch(), KEY)
    assert state.step == 2


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(3)(images.reshape(images.shape[0], -1))


def test_a_sharpness_aware_step_by_hand():
    batch = make_batch()
    state, step = setup(Linear(), sam(optax.sgd(0.1), 0.5), regularizer=lambda params: 0.01 * l2(params))
    new, metrics = step(state, batch, KEY)

    x = np.asarray(batch["image"], np.float64).reshape(16, -1) / 255
    x = np.concatenate([x, np.ones((16, 1))], axis=1)

    def gradient(w):
        p = np.exp(x @ w) / np.exp(x @ w).sum(axis=1, keepdims=True)
        return x.T @ (p - np.eye(3)[batch["label"]]) / 16 + 0.02 * np.concatenate([w[:-1], np.zeros((1, 3))])

    stacked = lambda params: np.vstack([params["Dense_0"]["kernel"], params["Dense_0"]["bias"]])  # noqa: E731
    w = stacked(state.params).astype(np.float64)
    g = gradient(w)
    expected = w - 0.1 * gradient(w + 0.5 * g / np.linalg.norm(g))
    np.testing.assert_allclose(stacked(new.params), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(g), rtol=1e-4)
    assert not np.allclose(expected, w - 0.1 * g, rtol=1e-4, atol=1e-6)


def difference(grads, state, params, *, grad_fn, **extra):
    return jax.tree.map(jnp.subtract, grad_fn(params, 1), grads), state


@pytest.mark.parametrize("parts", [1, 2])
def test_at_the_same_parameters_the_optimizers_gradient_is_the_same(parts):
    """So it is of the same batch, drops the same units and has the penalty in it."""
    tx = optax.GradientTransformationExtraArgs(optax.init_empty_state, difference)
    state, step = setup(small(norm="batch", dropout=0.5), tx, regularizer=l2, accumulate=parts)
    new, metrics = step(state, make_batch(), KEY)
    assert metrics["grad_norm"] > 1
    chex.assert_trees_all_close(new.params, state.params, atol=1e-5)


def test_batch_statistics_are_of_the_parameters_before_the_step():
    model = small(norm="batch")
    (plain, sharp) = (setup(model, tx) for tx in (optax.sgd(0.1), sam(optax.sgd(0.1), 5.0)))
    (plain, _), (sharp, _) = (step(state, make_batch(), KEY) for state, step in (plain, sharp))
    chex.assert_trees_all_close(plain.model_state, sharp.model_state, rtol=1e-6)
    assert not np.allclose(plain.params["Dense_0"]["kernel"], sharp.params["Dense_0"]["kernel"])


@pytest.mark.parametrize(("tx", "count"), [(optax.sgd(0.1), 1), (sam(optax.sgd(0.1), 0.5), 2)])
def test_a_second_gradient_is_taken_only_for_an_optimizer_that_asks(tx, count):
    passes = []

    def loss_fn(logits, labels):
        passes.append(logits)
        return cross_entropy(logits, labels)

    state, step = setup(small(), tx, loss_fn=loss_fn)
    step(state, make_batch(), KEY)
    assert len(passes) == count


class Counting(nn.Module):
    """A module that is not ours, with a collection and an rng stream of its own."""

    @nn.compact
    def __call__(self, images, train):
        calls = self.variable("counters", "calls", lambda: jnp.int32(0))
        x = images.reshape(images.shape[0], -1)
        if train:
            calls.value += 1
            x = x + 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(3)(x)


def test_a_module_with_its_own_collection_and_rng_stream():
    state, step = setup(Counting(), optax.sgd(0.1))
    for _ in range(3):
        state, metrics = step(state, make_batch(), KEY)
    assert state.model_state["counters"]["calls"] == 3
    chex.assert_tree_all_finite(metrics)
    assert eval_step(state, make_batch(), model=Counting()).count == 16


def test_batch_statistics_move_in_training_alone():
    model = small(norm="batch")
    state, step = setup(model, optax.sgd(0.1))
    new, _ = step(state, make_batch(), KEY)
    moved = jax.tree.map(lambda a, b: not jnp.array_equal(a, b), state.model_state, new.model_state)
    assert jax.tree.all(moved)


def test_eval_step_sums_over_what_is_not_masked():
    model = small()
    state = create_state(KEY, model, optax.sgd(0.1), image_shape=(8, 8, 1))
    batch = make_batch()
    logits = model.apply({"params": state.params}, batch["image"] / 255, train=False)
    losses = cross_entropy(logits, batch["label"])
    sums = eval_step(state, {**batch, "mask": jnp.arange(16) < 5}, model=model)
    np.testing.assert_allclose(sums.loss, losses[:5].sum(), rtol=1e-5)
    assert sums.correct == (logits.argmax(-1) == batch["label"])[:5].sum()
    assert sums.count == 5


def test_eval_step_uses_the_average_where_there_is_one():
    model = small()
    state = create_state(KEY, model, optax.sgd(0.1), image_shape=(8, 8, 1), ema=True)
    state = state.replace(ema=jax.tree.map(jnp.zeros_like, state.ema))
    sums = eval_step(state, make_batch(), model=model)
    np.testing.assert_allclose(sums.loss / sums.count, np.log(3), rtol=1e-5)  # all logits are 0


def test_what_does_not_go_together_is_refused():
    state, step = setup(small(), optax.sgd(0.1), accumulate=3)
    with pytest.raises(ValueError, match="accumulate is 3, but must divide the batch of 16"):
        step(state, make_batch(), KEY)
    state, _ = setup(small(), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"keeps a moving average .*, but the state has no `ema`: give create_"):
        train_step(state, make_batch(), KEY, model=small(), tx=optax.sgd(0.1), ema_decay=0.9)


def test_donation_leaves_no_stale_buffer():
    model, tx = small(), optax.adam(1e-2)
    state = create_state(KEY, model, tx, image_shape=(8, 8, 1), ema=True)
    step = jax.jit(partial(train_step, model=model, tx=tx, ema_decay=0.9), donate_argnums=0)
    for _ in range(3):
        state, metrics = step(state, make_batch(), KEY)
    chex.assert_tree_all_finite((state.params, state.ema, metrics))
