"""The training step and the evaluation step: pure functions that the caller jits.

`model`, `tx` and the other keyword arguments are static: bind them with `functools.partial`, then transform the
resulting function with `jax.jit`, `jax.pmap` or `jax.shard_map`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from flaxcls.augment import to_float
from flaxcls.losses import correct, cross_entropy
from flaxcls.metrics import MetricSums
from flaxcls.parameters import matching
from flaxcls.state import TrainState
from flaxcls.types import Batch, LossFn, Regularizer, Transform


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    loss_fn: LossFn = cross_entropy,
    regularizer: Regularizer | None = None,
    transform: Transform | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    axis_name: str | None = None,
    frozen: Sequence[str] = (),
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update on one batch, and the metrics of the batch before the update.

    Args:
      state: from `create_state` or an earlier step.
      batch: the global batch under jit, this device's share of it under `axis_name`. Masked examples do not count.
      key: the run's key, the same at every step. The step number is folded into it.
      model: a linen module called as `model(images, train=True)`. It may draw from any rng stream and update any of its
        collections.
      tx: the optax optimizer, with clipping, decay and schedule. It receives the loss as `value` and, as `grad_fn`,
        (params, index) -> gradient of the same batch at `params`. The random numbers do not depend on the index, and
        the batch statistics are kept from the first pass.
      loss_fn: (logits f32[b k], labels) -> f32[b].
      regularizer: params -> f32[], added to the loss.
      transform: (key, batch) -> batch, before the model. If it returns unsigned bytes, they are scaled to 0..1.
      accumulate: microbatches into which the batch is split, one after the other. The update equals that of the whole
        batch.
      ema_decay: decay of `state.ema`; at step t at most (1 + t) / (10 + t), so that early values fade.
      axis_name: the mapped axis under pmap or shard_map. Gradients and metrics are reduced over it, and random numbers
        differ along it. A model with batch normalisation needs the same axis name to share its statistics.
      frozen: globs over the paths of parameters, such as "Conv_0/*", that keep every bit. Their gradients, and values
        that only those need, are not computed. The optimizer receives zeros for them, and its updates are dropped.

    Returns:
      The new state, and f32[] metrics: loss (including the regularizer), accuracy, grad_norm (before clipping) and,
      with a regularizer, regularization.

    Raises:
      ValueError: if `accumulate` does not divide the batch, if only one of `ema_decay` and `state.ema` is given, or if
        one of `frozen` matches no parameter.
    """
    _check(state, batch, accumulate, ema_decay)
    is_frozen = matching(frozen, state.params, "frozen")
    key = jax.random.fold_in(key, state.step)
    if axis_name is not None:  # the first device keeps the key that jit would use: `make_transform` relies on it
        index = jax.lax.axis_index(axis_name)
        key = jnp.where(index == 0, key, jax.random.fold_in(key, index))
    transform_key, model_key = jax.random.split(key)
    batch = _prepare(batch, transform, transform_key)
    images, labels, weights = batch["image"], batch["label"], _example_weights(batch, axis_name)

    def stop_frozen(params: Any) -> Any:
        return jax.tree.map(lambda fixed, x: jax.lax.stop_gradient(x) if fixed else x, is_frozen, params)

    def weighted_loss(params: Any, model_state: Any, microbatch: Any) -> Any:
        images, labels, weights, key = microbatch
        variables = {"params": stop_frozen(params), **model_state}
        logits, updated = model.apply(variables, images, train=True, rngs={"params": key}, mutable=list(model_state))
        loss = _weighted_sum(weights, loss_fn(logits, labels))
        return loss, (updated, _weighted_sum(weights, correct(logits, labels).astype(jnp.float32)))

    def microbatch_gradient(params: Any, model_state: Any, microbatch: Any) -> Any:
        loss_and_gradient = jax.value_and_grad(weighted_loss, has_aux=True)
        (loss, (model_state, accuracy)), grads = loss_and_gradient(params, model_state, microbatch)
        return model_state, {"loss": loss, "accuracy": accuracy, "grads": grads}

    def batch_gradient(shared_params: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
        # shard_map would sum gradients with respect to shared values over the shards, and the psum below a second time
        params, model_state = _mark_per_shard((shared_params, state.model_state), axis_name)
        if accumulate == 1:
            model_state, sums = microbatch_gradient(params, model_state, (images, labels, weights, model_key))
        else:
            microbatches = (*_split((images, labels, weights), accumulate), jax.random.split(model_key, accumulate))
            zero = jnp.zeros_like(weights[0])
            zeros = {"loss": zero, "accuracy": zero, "grads": jax.tree.map(jnp.zeros_like, params)}
            model_state, sums = _sum_over(microbatches, partial(microbatch_gradient, params), model_state, zeros)

        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
            model_state = jax.tree.map(lambda x: _average_over_shards(x, axis_name), model_state)
        grads, metrics = sums.pop("grads"), sums
        if regularizer is not None:
            penalty, penalty_grads = jax.value_and_grad(lambda params: regularizer(stop_frozen(params)))(shared_params)
            grads = jax.tree.map(jnp.add, grads, penalty_grads)
            metrics = {**metrics, "loss": metrics["loss"] + penalty, "regularization": penalty}
        return grads, model_state, metrics

    grads, model_state, metrics = batch_gradient(state.params)
    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads,
        state.opt_state,
        state.params,
        value=metrics["loss"],
        grad_fn=lambda params, index: batch_gradient(_mark_shared(params, axis_name))[0],
    )
    updated_params = optax.apply_updates(state.params, updates)
    new_params = jax.tree.map(lambda fixed, old, new: old if fixed else new, is_frozen, state.params, updated_params)
    new_state = TrainState(
        step=state.step + 1,
        params=new_params,
        model_state=model_state,
        opt_state=opt_state,
        ema=_update_average(state, new_params, ema_decay),
    )
    return new_state, {**metrics, "grad_norm": optax.tree.norm(grads)}


def train_steps(state: TrainState, batches: Any, key: jax.Array, *, step: Callable[..., Any]) -> tuple[TrainState, Any]:
    """Returns the state after several updates in one program, which saves the cost of dispatching each step.

    Args:
      state, key: as for `train_step`.
      batches: k batches for `step`, stacked: arrays with a leading axis [k].
      step: (state, batch, key) -> (state, metrics), such as `train_step` with its keyword arguments bound.

    Returns:
      The new state, and the metrics of the steps, f32[k] each.
    """
    return _scan(lambda state, batch: step(state, batch, key), state, batches)


def drop_not_finite(step: Callable[..., Any]) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns `step` with `keep_finite` applied to its result, so that an update that is not finite is dropped."""

    def guarded(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return keep_finite(state, *step(state, batch, key))

    return guarded


def keep_finite(
    old: TrainState, new: TrainState, metrics: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state `new` if it is finite, else `old` with the step number of `new`, and the metrics of the step.

    An update is not finite if NaN or infinity is in its loss, its gradient, its new parameters or the variables of
    evaluation. The returned metrics also have `skipped`, f32[]: 1 if the update is dropped, else 0.
    """
    good = all_finite((metrics["loss"], metrics["grad_norm"], new.params, new.eval_variables))
    kept: TrainState = jax.tree.map(partial(jnp.where, good), new, dataclasses.replace(old, step=new.step))
    return kept, {**metrics, "skipped": 1.0 - good.astype(jnp.float32)}


def all_finite(tree: Any) -> jax.Array:
    """Returns bool[], True if every floating-point number in `tree` is finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def eval_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    loss_fn: LossFn = cross_entropy,
    transform: Transform | None = None,
    axis_name: str | None = None,
) -> MetricSums:
    """Returns the sums of losses and of correct answers over a batch. Masked examples do not count.

    The moving average of the parameters is used if there is one. `transform` gets the key None. Under `axis_name` the
    sums are over all devices.
    """
    batch = _prepare(batch, transform, None)
    logits: Any = model.apply(state.eval_variables, batch["image"], train=False)
    losses, right = loss_fn(logits, batch["label"]), correct(logits, batch["label"])
    mask = batch.get("mask", jnp.ones(losses.shape, bool))
    sums = MetricSums(
        loss=jnp.sum(jnp.where(mask, losses, 0)),
        correct=jnp.sum(right & mask, dtype=jnp.int32),
        count=jnp.sum(mask, dtype=jnp.int32),
    )
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def _check(state: TrainState, batch: Batch, accumulate: int, ema_decay: float | None) -> None:
    size = batch["image"].shape[0]
    if accumulate < 1 or size % accumulate:
        raise ValueError(f"accumulate is {accumulate}, but must divide the batch of {size} (on each device).")
    if (ema_decay is None) != (state.ema is None):
        raise ValueError(
            f"ema_decay is {ema_decay}, but the state has {'no' if state.ema is None else 'a'} moving average: "
            "give create_state(..., ema=True) and train_step(..., ema_decay=...) together."
        )


def _prepare(batch: Batch, transform: Transform | None, key: jax.Array | None) -> Batch:
    if transform is not None:
        batch = transform(key, batch)
    images = to_float(batch["image"])
    if "mask" in batch:  # padding may have any value, even NaN, and must not reach a gradient
        images = jnp.where(batch["mask"].reshape(-1, 1, 1, 1), images, 0)
    return {**batch, "image": images}


def _example_weights(batch: Batch, axis_name: str | None) -> jax.Array:
    """Returns f32[b]: 1 / n for each of the n examples that count in the global batch, 0 for the others."""
    mask = batch.get("mask", jnp.ones(batch["image"].shape[:1], bool)).astype(jnp.float32)
    count = jnp.sum(mask)
    if axis_name is not None:
        count = jax.lax.psum(count, axis_name)
    return mask / jnp.maximum(count, 1)


def _weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.sum(weights * jnp.where(weights > 0, values, 0))


def _mark_per_shard(tree: Any, axis_name: str | None) -> Any:
    """Marks values that all shards share as varying from shard to shard."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.pcast(x, axis_name, to="varying"), tree)


def _mark_shared(tree: Any, axis_name: str | None) -> Any:
    """Marks equal values as shared again if the optimizer has made them vary from shard to shard."""
    if axis_name is None:
        return tree

    def share(x: jax.Array) -> jax.Array:
        return _average_over_shards(x, axis_name) if axis_name in jax.typeof(x).manual_axis_type.varying else x

    return jax.tree.map(share, tree)


def _split(tree: Any, count: int) -> Any:
    """Reshapes [b ...] to [count b/count ...]. Each microbatch takes every count-th example, so none changes device."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), tree)


def _sum_over(microbatches: Any, gradient: Any, model_state: Any, sums: Any) -> Any:
    def add(carry: Any, microbatch: Any) -> Any:
        model_state, terms = gradient(carry[0], microbatch)
        return (model_state, jax.tree.map(jnp.add, carry[1], terms)), None

    return _scan(add, (model_state, sums), microbatches)[0]


def _scan(f: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """Like `jax.lax.scan`, unrolled on CPU.

    On CPU, XLA compiles convolutions in a loop to slow code, even if the loop has a single turn: a step of the
    tutorial's network takes 0.85 s instead of 0.024 s (batch 64, 2 cores, jax 0.12.0.1). Without the barriers XLA would
    run all turns at the same time, with memory for all of them.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.scan(f, carry, xs)
    outputs = []
    for turn in range(jax.tree.leaves(xs)[0].shape[0]):
        item = jax.tree.map(lambda x: x[turn], xs)  # noqa: B023 (it is called at once)
        if turn > 0:
            carry, item = jax.lax.optimization_barrier((carry, item))
        carry, output = f(carry, item)
        outputs.append(output)
    return carry, jax.tree.map(lambda *values: jnp.stack(values), *outputs)


def _average_over_shards(value: jax.Array, axis_name: str) -> jax.Array:
    """Averages floats over the shards. Other values, such as counters, are equal on all shards."""
    reduce = jax.lax.pmean if jnp.issubdtype(value.dtype, jnp.inexact) else jax.lax.pmax
    return reduce(value, axis_name)


def _update_average(state: TrainState, params: Any, decay: float | None) -> Any:
    if decay is None:
        return None
    step = state.step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, state.ema, 1 - keep)
