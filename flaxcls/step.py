"""One step of training and one of evaluation: pure functions, to be jitted by the caller.

`model`, `tx` and the other keyword arguments are static: bind them with `functools.partial`, then transform what is
left with `jax.jit`, `jax.pmap` or `jax.shard_map`.
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
    """Returns the state after one update on one batch, and what was measured before it.

    Args:
      state: as `create_state` made it.
      batch: a global batch under jit, this device's part of it under `axis_name`. Masked examples do not count.
      key: the run's key, the same at every step; the step number is folded into it.
      model: a linen module called as `model(images, train=True)`; it may draw from any rng stream and update any
        collection of its own.
      tx: the optax optimizer, with clipping, decay and schedule. It is given the loss as `value` and, as `grad_fn`,
        (params, index) -> the gradient of the same batch there, with the same random numbers whatever the index;
        batch statistics are those of the first pass.
      loss_fn: (logits f32[b k], labels) -> f32[b].
      regularizer: params -> f32[], added to the loss.
      transform: (key, batch) -> batch, before the model; unsigned bytes that it leaves are scaled to 0..1.
      accumulate: parts the batch is split into, one after the other; the update is that of the whole batch.
      ema_decay: decay of `state.ema`; at step t no more than (1 + t) / (10 + t), so that early values fade.
      axis_name: the mapped axis under pmap or shard_map; gradients and metrics are then reduced over it, random
        numbers differ along it. A model with batch normalisation needs the same axis name to share its statistics.
      frozen: globs over the paths of parameters, such as "Conv_0/*", that stay bit for bit as they are. Their gradients
        are not computed, nor what only those need; the optimizer is given zeros, and what it makes of them is dropped.

    Returns:
      The new state, and f32[] metrics: loss (regularizer included), accuracy, grad_norm (before clipping) and, with
      a regularizer, regularization.

    Raises:
      ValueError: if `accumulate` does not divide the batch, `ema_decay` and `state.ema` do not go together, or one of
        `frozen` matches no parameter.
    """
    _check(state, batch, accumulate, ema_decay)
    is_frozen = matching(frozen, state.params, "frozen")
    key = jax.random.fold_in(key, state.step)
    if axis_name is not None:  # the first device has the key of jit, as `make_transform` knows
        index = jax.lax.axis_index(axis_name)
        key = jnp.where(index == 0, key, jax.random.fold_in(key, index))
    transform_key, model_key = jax.random.split(key)
    batch = _prepare(batch, transform, transform_key)
    images, labels, weights = batch["image"], batch["label"], _example_weights(batch, axis_name)

    def stop_frozen(params: Any) -> Any:
        return jax.tree.map(lambda fixed, x: jax.lax.stop_gradient(x) if fixed else x, is_frozen, params)

    def weighted_loss(params: Any, model_state: Any, part: Any) -> Any:
        images, labels, weights, key = part
        logits, model_state = model.apply(
            {"params": stop_frozen(params), **model_state},
            images,
            train=True,
            rngs={"params": key},
            mutable=list(model_state),
        )
        loss = _weighted_sum(weights, loss_fn(logits, labels))
        return loss, (model_state, _weighted_sum(weights, correct(logits, labels).astype(jnp.float32)))

    def gradient(params: Any, model_state: Any, part: Any) -> Any:
        (loss, (model_state, accuracy)), grads = jax.value_and_grad(weighted_loss, has_aux=True)(
            params, model_state, part
        )
        return model_state, {"loss": loss, "accuracy": accuracy, "grads": grads}

    def whole_gradient(shared: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
        # Gradients with respect to what shards hold in common would be summed by shard_map, and by us once more.
        params, model_state = _per_shard((shared, state.model_state), axis_name)
        if accumulate == 1:
            model_state, sums = gradient(params, model_state, (images, labels, weights, model_key))
        else:
            parts = (*_split((images, labels, weights), accumulate), jax.random.split(model_key, accumulate))
            zero = jnp.zeros_like(weights[0])
            zeros = {"loss": zero, "accuracy": zero, "grads": jax.tree.map(jnp.zeros_like, params)}
            model_state, sums = _sum_over(parts, partial(gradient, params), model_state, zeros)

        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
            model_state = jax.tree.map(lambda x: _agree(x, axis_name), model_state)
        grads = sums.pop("grads")
        metrics = sums
        if regularizer is not None:
            penalty, penalty_grads = jax.value_and_grad(lambda params: regularizer(stop_frozen(params)))(shared)
            grads = jax.tree.map(jnp.add, grads, penalty_grads)
            metrics = {**metrics, "loss": metrics["loss"] + penalty, "regularization": penalty}
        return grads, model_state, metrics

    grads, model_state, metrics = whole_gradient(state.params)
    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads,
        state.opt_state,
        state.params,
        value=metrics["loss"],
        grad_fn=lambda params, index: whole_gradient(_shared(params, axis_name))[0],
    )
    updated = optax.apply_updates(state.params, updates)
    new_params = jax.tree.map(lambda fixed, old, new: old if fixed else new, is_frozen, state.params, updated)
    new_state = TrainState(
        step=state.step + 1,
        params=new_params,
        model_state=model_state,
        opt_state=opt_state,
        ema=_average(state, new_params, ema_decay),
    )
    return new_state, {**metrics, "grad_norm": optax.tree.norm(grads)}


def train_steps(state: TrainState, batches: Any, key: jax.Array, *, step: Callable[..., Any]) -> tuple[TrainState, Any]:
    """Returns the state after several updates, as one program, which saves the price of dispatching each by itself.

    Args:
      state, key: as for `train_step`.
      batches: what `step` takes as its batch, k of them: arrays with an axis [k] before that of the examples.
      step: (state, batch, key) -> (state, metrics), such as `train_step` with its keyword arguments bound.

    Returns:
      The state, and the metrics of each step, f32[k].
    """
    return _scan(lambda state, batch: step(state, batch, key), state, batches)


def drop_not_finite(step: Callable[..., Any]) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns `step` with `keep_finite` applied to each update: one that is not finite is dropped."""

    def guarded(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return keep_finite(state, *step(state, batch, key))

    return guarded


def keep_finite(
    old: TrainState, new: TrainState, metrics: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the state `new` if it is finite, else `old` with the step number of `new`, and the metrics of the step.

    An update is not finite if its loss, its gradient, its new parameters or the variables of evaluation hold NaN or
    infinity. The metrics gain `skipped`, f32[]: 1 if the update is dropped, else 0.
    """
    good = all_finite((metrics["loss"], metrics["grad_norm"], new.params, new.eval_variables))
    kept: TrainState = jax.tree.map(partial(jnp.where, good), new, dataclasses.replace(old, step=new.step))
    return kept, {**metrics, "skipped": 1.0 - good.astype(jnp.float32)}


def all_finite(tree: Any) -> jax.Array:
    """Returns bool[]: whether every floating-point number in `tree` is finite."""
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
    """Returns the sums of loss and right answers over a batch; masked examples do not count.

    The moving average of the parameters is used where the state has one. `transform` is called with no key. Under
    `axis_name` the sums are over all devices.
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
    if "mask" in batch:  # whatever padding holds, it must not reach a gradient
        images = jnp.where(batch["mask"].reshape(-1, 1, 1, 1), images, 0)
    return {**batch, "image": images}


def _example_weights(batch: Batch, axis_name: str | None) -> jax.Array:
    """Returns f32[b]: 1 / n at each of the n examples that count in the global batch, 0 at the others."""
    mask = batch.get("mask", jnp.ones(batch["image"].shape[:1], bool)).astype(jnp.float32)
    count = jnp.sum(mask)
    if axis_name is not None:
        count = jax.lax.psum(count, axis_name)
    return mask / jnp.maximum(count, 1)


def _weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.sum(weights * jnp.where(weights > 0, values, 0))


def _per_shard(tree: Any, axis_name: str | None) -> Any:
    """Marks what all shards hold in common as each shard's own."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.pcast(x, axis_name, to="varying"), tree)


def _shared(tree: Any, axis_name: str | None) -> Any:
    """Marks what is the same on all shards as held in common, where the optimizer has made it each shard's own."""
    if axis_name is None:
        return tree

    def share(x: jax.Array) -> jax.Array:
        return _agree(x, axis_name) if axis_name in jax.typeof(x).manual_axis_type.varying else x

    return jax.tree.map(share, tree)


def _split(tree: Any, parts: int) -> Any:
    """Reshapes [b ...] to [parts b/parts ...]; part i is every parts-th example, which keeps each on its device."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def _sum_over(parts: Any, gradient: Any, model_state: Any, sums: Any) -> Any:
    def add(carry: Any, part: Any) -> Any:
        model_state, terms = gradient(carry[0], part)
        return (model_state, jax.tree.map(jnp.add, carry[1], terms)), None

    return _scan(add, (model_state, sums), parts)[0]


def _scan(f: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """Is `jax.lax.scan`, but written out on CPU.

    There XLA makes slow code of the convolutions of a loop, even of one turn that it then optimises away: 0.85 s for a
    step of the tutorial's network instead of 0.024 s (batch 64, 2 cores, jax 0.12.0.1). It would also run the turns
    beside each other, in memory for all of them, so each waits for the one before.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.scan(f, carry, xs)
    outputs = []
    for turn in range(jax.tree.leaves(xs)[0].shape[0]):
        part = jax.tree.map(lambda x: x[turn], xs)  # noqa: B023 (it is called at once)
        if turn > 0:
            carry, part = jax.lax.optimization_barrier((carry, part))
        carry, output = f(carry, part)
        outputs.append(output)
    return carry, jax.tree.map(lambda *values: jnp.stack(values), *outputs)


def _agree(value: jax.Array, axis_name: str) -> jax.Array:
    """Averages statistics over the shards; what is no float, such as a counter, is the same on all of them."""
    reduce = jax.lax.pmean if jnp.issubdtype(value.dtype, jnp.inexact) else jax.lax.pmax
    return reduce(value, axis_name)


def _average(state: TrainState, params: Any, decay: float | None) -> Any:
    if decay is None:
        return None
    step = state.step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, state.ema, 1 - keep)
