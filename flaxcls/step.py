"""The training step and the evaluation step: pure functions that the caller jits.

`model`, `tx` and the other keyword arguments are static: bind them with `functools.partial`, then transform the
resulting function with `jax.jit`, `jax.pmap` or `jax.shard_map`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from flaxcls.augment import to_float
from flaxcls.contract import (
    OVERWRITTEN,
    SOWN,
    check_logits,
    check_no_statistics,
    check_unchanged,
    extra_arguments,
    find_eval_params,
    random_streams,
    sown_loss,
    strongly_typed,
)
from flaxcls.finite import drop_not_finite
from flaxcls.losses import correct, cross_entropy, with_metrics
from flaxcls.metrics import MetricSums
from flaxcls.parameters import matching
from flaxcls.parts import join_shards, mark_per_shard, mark_shared, scan, split, sum_over
from flaxcls.state import TrainState
from flaxcls.types import Batch, EvalParams, LossFn, Regularizer, Transform

__all__ = ["drop_not_finite", "eval_step", "train_step", "train_steps"]


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
    eval_params: EvalParams | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state after one update on one batch, and the metrics of the batch before the update.

    Args:
      state: from `create_state` or an earlier step.
      batch: the global batch under jit, this device's share of it under `axis_name`. Masked examples do not count, and
        the model sees them as black images. Losses that it sows are its own affair: they are not masked.
      key: the run's key, the same at every step. The step number is folded into it.
      model: a linen module called as `model(images, train=True)`. It may draw from any rng stream and update any of its
        collections. What it sows into the collection `losses`, f32[] each, is added to the loss. A collection
        `_overwrite_with_gradient`, such as the scales of `nn.Fp8DotGeneralOp`, becomes its own gradient.
      tx: the optax optimizer, with clipping, decay and schedule. Of the following it receives what its `update` names,
        or all if that takes any: the loss as `value`, its gradient as `grad`, params -> loss of the same batch as
        `value_fn` and `obj_fn`, and (params, index) -> gradient of the same batch as `grad_fn`. The random numbers do
        not depend on the index, and the batch statistics are kept from the first pass.
      loss_fn: (logits f32[b k], labels) -> f32[b], or (f32[b], {name: f32[b]}) with metrics of its own.
      regularizer: params -> f32[], added to the loss.
      transform: (key, batch) -> batch, before the model. If it returns unsigned bytes, they are scaled to 0..1.
      accumulate: microbatches into which the batch is split, one after the other. The update equals that of the whole
        batch.
      ema_decay: decay of `state.ema`; at step t at most (1 + t) / (10 + t), so that early values fade.
      axis_name: the mapped axis under pmap or shard_map. Gradients and metrics are reduced over it, and random numbers
        differ along it. A model with batch normalisation needs the same axis name to share its statistics.
      frozen: globs over the paths of parameters, such as "Conv_0/*", that keep every bit. Their gradients, and values
        that only those need, are not computed. The optimizer receives zeros for them, and its updates are dropped.
      eval_params: (opt_state, params) -> the parameters to evaluate, if these are not the ones that it trains. They are
        kept, or averaged by `ema_decay`, in `state.ema`. `find_eval_params` finds those of optax's own optimizers.

    Returns:
      The new state, and f32[] metrics: loss (including all that is added to it), accuracy, grad_norm (before clipping),
      with a regularizer regularization, with sown losses auxiliary, and the means of the metrics of `loss_fn`.

    Raises:
      ValueError: if `accumulate` does not divide the batch, if `state.ema` is missing or not asked for, if one of
        `frozen` matches no parameter, if images are integers other than bytes, if the model does not return logits, if
        the new state would have another structure, shape or type, or if the batch has a mask and the model keeps
        statistics of batches, such as batch normalisation, in which masked examples would count.
    """
    eval_params = eval_params or find_eval_params(state.opt_state)
    _check(state, batch, accumulate, averages=ema_decay is not None or eval_params is not None)
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

    def weighted_loss(params: Any, overwritten: Any, model_state: Any, microbatch: Any) -> Any:
        images, labels, weights, key = microbatch
        variables = {"params": stop_frozen(params), **model_state, **overwritten}
        mutable = [*model_state, *overwritten, SOWN]
        streams = random_streams(key, "dropout")
        logits, updated = model.apply(variables, images, train=True, rngs=streams, mutable=mutable)
        if "mask" in batch:
            check_no_statistics(model_state, {name: updated[name] for name in [*model_state, *overwritten]})
        losses, own = with_metrics(loss_fn, check_logits(logits, model), labels)
        _check_names(own)
        values = {**own, "loss": losses, "accuracy": correct(logits, labels).astype(jnp.float32)}
        sums = {name: _weighted_sum(weights, value) for name, value in values.items()}
        if SOWN in updated:
            sums["auxiliary"] = jnp.sum(weights) * sown_loss(updated[SOWN])
            sums["loss"] += sums["auxiliary"]
        return sums["loss"], ({name: updated[name] for name in model_state}, sums)

    def microbatch_gradient(params: Any, model_state: Any, microbatch: Any) -> Any:
        overwritten = {name: values for name, values in model_state.items() if name == OVERWRITTEN}
        kept = {name: values for name, values in model_state.items() if name != OVERWRITTEN}
        loss_and_gradient = jax.value_and_grad(weighted_loss, argnums=(0, 1), has_aux=True)
        (_, (kept, sums)), (grads, overwritten) = loss_and_gradient(params, overwritten, kept, microbatch)
        return {**kept, **overwritten}, {**sums, "grads": grads}

    def batch_gradient(shared_params: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
        # shard_map would sum gradients with respect to shared values over the shards, and the psum below a second time
        params, model_state = mark_per_shard((shared_params, state.model_state), axis_name)
        if accumulate == 1:
            model_state, sums = microbatch_gradient(params, model_state, (images, labels, weights, model_key))
        else:
            microbatches = (*split((images, labels, weights), accumulate), jax.random.split(model_key, accumulate))
            model_state, sums = sum_over(microbatches, partial(microbatch_gradient, params), model_state, axis_name)

        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
            model_state = {
                name: jax.tree.map(partial(join_shards, axis_name=axis_name, largest=name == OVERWRITTEN), values)
                for name, values in model_state.items()
            }
        grads, metrics = sums.pop("grads"), sums
        if regularizer is not None:
            penalty, penalty_grads = jax.value_and_grad(lambda params: regularizer(stop_frozen(params)))(shared_params)
            grads = jax.tree.map(jnp.add, grads, penalty_grads)
            metrics = {**metrics, "loss": metrics["loss"] + penalty, "regularization": penalty}
        return grads, model_state, metrics

    def keep_frozen(new: Any) -> Any:
        return jax.tree.map(lambda fixed, old, new: old if fixed else new, is_frozen, state.params, new)

    @jax.custom_vjp
    def batch_loss(params: Any) -> jax.Array:
        return batch_gradient(mark_shared(params, axis_name))[2]["loss"]

    def loss_and_gradient(params: Any) -> tuple[jax.Array, Any]:
        grads, _, metrics = batch_gradient(mark_shared(params, axis_name))
        return metrics["loss"], grads

    batch_loss.defvjp(loss_and_gradient, lambda grads, change: (jax.tree.map(lambda g: change * g, grads),))

    def value_fn(params: Any, *, grad_fn: Any = None, obj_fn: Any = None) -> jax.Array:
        return batch_loss(keep_frozen(params))  # a line search calls it with the arguments that it does not take itself

    grads, model_state, metrics = batch_gradient(state.params)
    extra = {
        "value": metrics["loss"],
        "grad": grads,
        "value_fn": value_fn,
        "obj_fn": value_fn,
        "grad_fn": lambda params, index: batch_gradient(mark_shared(params, axis_name))[0],
    }
    updates, opt_state = tx.update(grads, state.opt_state, state.params, **extra_arguments(tx.update, extra))
    new_params = keep_frozen(optax.apply_updates(state.params, updates))
    evaluated = new_params if eval_params is None else keep_frozen(eval_params(opt_state, new_params))
    new_state = TrainState(
        step=state.step + 1,
        params=new_params,
        model_state=model_state,
        opt_state=opt_state,
        ema=None if state.ema is None else _update_average(state, evaluated, ema_decay),
    )
    check_unchanged(state, new_state)
    return strongly_typed(new_state), {**metrics, "grad_norm": optax.tree.norm(grads)}


def train_steps(state: TrainState, batches: Any, key: jax.Array, *, step: Callable[..., Any]) -> tuple[TrainState, Any]:
    """Returns the state after several updates in one program, which saves the cost of dispatching each step.

    Args:
      state, key: as for `train_step`.
      batches: k batches for `step`, stacked: arrays with a leading axis [k].
      step: (state, batch, key) -> (state, metrics), such as `train_step` with its keyword arguments bound.

    Returns:
      The new state, and the metrics of the steps, f32[k] each.
    """
    return scan(lambda state, batch: step(state, batch, key), state, batches)


def eval_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    loss_fn: LossFn = cross_entropy,
    transform: Transform | None = None,
    axis_name: str | None = None,
    eval_params: EvalParams | None = None,
    key: jax.Array | None = None,
) -> MetricSums:
    """Returns the sums of losses and of correct answers over a batch. Masked examples do not count.

    `state.ema` is used if there is one. `transform` gets the key None. Under `axis_name` the sums are over all devices.

    Args:
      eval_params: (opt_state, params) -> the parameters to evaluate, for a state that does not keep them in `ema`.
      key: evaluates with random numbers, as in training: `model(images, train=True)`, for example with dropout. Give
        another key for each batch. Batch normalisation then uses the statistics of this batch, and updates none.

    Metrics that `loss_fn` returns beside the losses are left out.

    Raises ValueError for a batch with a mask and a key, if the model has such statistics, as `train_step` does.
    """
    batch = _prepare(batch, transform, None)
    variables = state.eval_variables
    if eval_params is not None:
        variables = {**variables, "params": eval_params(state.opt_state, state.params)}
    if key is None:
        logits: Any = model.apply(variables, batch["image"], train=False)
    else:
        mutable = list(state.model_state)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        streams = random_streams(key, "dropout")
        logits, updated = model.apply(variables, batch["image"], train=True, rngs=streams, mutable=mutable)
        if "mask" in batch:
            check_no_statistics(state.model_state, updated)
    losses, _ = with_metrics(loss_fn, check_logits(logits, model), batch["label"])
    right = correct(logits, batch["label"])
    mask = batch.get("mask", jnp.ones(losses.shape, bool))
    sums = MetricSums(
        loss=jnp.sum(jnp.where(mask, losses, 0)),
        correct=jnp.sum(right & mask, dtype=jnp.int32),
        count=jnp.sum(mask, dtype=jnp.int32),
    )
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def _check(state: TrainState, batch: Batch, accumulate: int, *, averages: bool) -> None:
    size = batch["image"].shape[0]
    if accumulate < 1 or size % accumulate:
        raise ValueError(f"accumulate is {accumulate}, but must divide the batch of {size} (on each device).")
    if averages != (state.ema is not None):
        raise ValueError(
            f"the step {'keeps' if averages else 'does not keep'} a moving average or evaluation parameters, but the "
            f"state has {'no' if averages else 'an'} `ema`: give create_state(..., ema=True) and "
            "train_step(..., ema_decay=...) or train_step(..., eval_params=...) together."
        )


def _check_names(own: dict[str, jax.Array]) -> None:
    """Raises ValueError if a metric of the loss has the name of one that the step itself returns."""
    taken = {"loss", "accuracy", "grad_norm", "grads", "regularization", "auxiliary", "skipped"} & own.keys()
    if taken:
        raise ValueError(f"loss_fn returns a metric called {min(taken)}, which the step itself returns: rename it.")


def _prepare(batch: Batch, transform: Transform | None, key: jax.Array | None) -> Batch:
    if transform is not None:
        batch = transform(key, batch)
    images = to_float(batch["image"])
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"the images are {images.dtype}, but must be unsigned bytes in 0..255 or floats: divide them by their "
            "largest possible value, or give a transform that does."
        )
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


def _update_average(state: TrainState, params: Any, decay: float | None) -> Any:
    if decay is None:
        return jax.tree.map(lambda old, new: new.astype(old.dtype), state.ema, params)
    step = state.step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    averages = optax.incremental_update(params, state.ema, 1 - keep)
    # the average of equal values, such as those of a frozen parameter, is not left to rounding
    return jax.tree.map(lambda new, old, x: jnp.where(x == old, old, new), averages, state.ema, params)
