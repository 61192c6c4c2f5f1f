"""The contract with modules and optimizers of others: what the step gives them, and errors where they do not fit."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.core import meta, unfreeze
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from optax.contrib import SAMState, ScheduleFreeState, schedule_free_eval_params

from flaxcls.types import EvalParams, Params

__all__ = [
    "OVERWRITTEN",
    "SOWN",
    "check_logits",
    "check_no_statistics",
    "check_not_wrapped",
    "check_unchanged",
    "extra_arguments",
    "find_eval_params",
    "init_variables",
    "random_streams",
    "sown_loss",
    "strongly_typed",
    "takes_named",
]

# The collection whose values, sown while training, are added to the loss.
SOWN = "losses"
# The collection whose values are replaced by their gradients, such as the scales of 8-bit floats.
OVERWRITTEN: str = OVERWRITE_WITH_GRADIENT

WRAPPER = """
    class Wrapped(nn.Module):
        inner: nn.Module

        def __call__(self, images, train):
            return self.inner(images, deterministic=not train)  # as the inner module is called; [0] of a tuple"""


def random_streams(key: jax.Array, first: str) -> dict[str, jax.Array]:
    """Returns the random streams of a module: the key itself for the stream `first`, and keys made from it for others.

    linen draws from `params` where a stream of another name is not given, and nnx from `default`.
    """
    streams = {name: jax.random.fold_in(key, number) for number, name in enumerate(("default", "dropout", "params"), 1)}
    return {**streams, first: key}


def init_variables(model: nn.Module, key: jax.Array, images: jax.Array) -> dict[str, Any]:
    """Returns the variables of a module by collection, without sown losses and without the boxes of partitioning.

    Raises ValueError if the module is not called as `model(images, train=bool)`.
    """
    try:
        variables = model.init(random_streams(key, "params"), images, train=False)
    except TypeError as error:
        if "keyword argument 'train'" not in str(error):
            raise
        raise ValueError(
            f"{type(model).__name__} is not called as model(images, train=bool): {error}. Wrap it:\n{WRAPPER}"
        ) from error
    variables = {name: values for name, values in unfreeze(meta.unbox(variables)).items() if name != SOWN}
    return {"params": {}, **variables}


def check_logits(logits: Any, model: nn.Module) -> jax.Array:
    """Returns `logits`; raises ValueError if they are not one array."""
    if isinstance(logits, jax.Array):
        return logits
    raise ValueError(
        f"{type(model).__name__} returns {type(logits).__name__} instead of logits f32[b k]. Wrap it:\n{WRAPPER}"
    )


def sown_loss(sown: Any) -> jax.Array:
    """Returns f32[], the sum of the losses that a module has sown; raises ValueError if one is not f32[]."""
    leaves = jax.tree_util.tree_leaves_with_path(sown)
    for path, leaf in leaves:
        if jnp.shape(leaf) != ():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"{name}, sown into {SOWN}, has the shape {list(jnp.shape(leaf))}, but must be f32[]: take its "
                "mean over examples and its sum over layers before it is sown. No losses go into intermediates."
            )
    return sum((leaf for _, leaf in leaves), jnp.float32(0))


def takes_named(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns `tx` as an optimizer that ignores the extra arguments that its `update` does not name.

    `optax.chain`, `MultiSteps` and others give all extra arguments to the optimizers inside them. So there, wrap one
    that takes only some, such as `optax.contrib.sam`.
    """

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return tx.update(grads, state, params, **extra_arguments(tx.update, extra))

    return optax.GradientTransformationExtraArgs(tx.init, update)


def extra_arguments(update: Callable[..., Any], available: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the `available` arguments that the `update` of an optimizer takes, by its signature."""
    parameters = inspect.signature(update).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return dict(available)
    return {parameter.name: available[parameter.name] for parameter in parameters if parameter.name in available}


def find_eval_params(opt_state: optax.OptState) -> EvalParams | None:
    """Returns (opt_state, params) -> the parameters to evaluate, for optax's optimizers that train others; else None.

    These are `optax.contrib.schedule_free` (Defazio et al. 2024, "The Road Less Scheduled"), alone or inside of others,
    and `optax.contrib.sam` with opaque_mode=False, whose parameters are perturbed between two updates.

    Raises:
      ValueError: if one has only a part of the parameters.
    """
    found = _evaluated(opt_state)
    if not found:
        return None
    parts = jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    if len(found) > 1 or any(isinstance(node, optax.MaskedNode) for node in parts):
        raise ValueError(
            "the optimizer has evaluation parameters for a part of the parameters alone, as optax.partition makes it: "
            "use one such optimizer for all of them."
        )

    def eval_params(opt_state: optax.OptState, params: Params) -> Params:
        (found,) = _evaluated(opt_state)
        if isinstance(found, ScheduleFreeState):
            return schedule_free_eval_params(found, params)
        return jax.tree.map(lambda x, kept: jnp.where(found.steps_since_sync == 0, x, kept), params, found.cache)

    return eval_params


def _evaluated(opt_state: optax.OptState) -> list[Any]:
    def known(node: Any) -> bool:
        return isinstance(node, ScheduleFreeState) or (isinstance(node, SAMState) and node.cache is not None)

    return [node for node in jax.tree.leaves(opt_state, is_leaf=known) if known(node)]


def check_not_wrapped(opt_state: optax.OptState) -> None:
    """Raises ValueError if the optimizer, such as `optax.lookahead`, trains parameters in a wrapper of its own."""
    wraps = (optax.LookaheadState,)
    if any(
        isinstance(node, wraps) for node in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, wraps))
    ):
        raise ValueError(
            "optax.lookahead trains parameters in a wrapper of its own, to which no model can be applied: leave it "
            "out, and average by create_state(..., ema=True) and train_step(..., ema_decay=...) instead."
        )


def strongly_typed(tree: Any) -> Any:
    """Returns the tree without weak types, by which JAX would compile a step again for the same shapes and types."""

    def strong(x: Any) -> Any:
        kind = jax.typeof(x)
        return jax.lax.convert_element_type(x, kind.dtype) if getattr(kind, "weak_type", False) else x

    return jax.tree.map(strong, tree)


def check_unchanged(old: Any, new: Any) -> None:
    """Raises ValueError if `new` has another structure, or an array of another shape or type, than `old`."""
    before, after = _types(old), _types(new)
    was, now = str(jax.tree.structure(old)), str(jax.tree.structure(new))
    if before == after and was == now:
        return
    if before == after:
        raise ValueError(
            f"the step does not give back the structure of the state that it was given: {was} before it and {now} "
            "after it. Model and optimizer must keep the types of their containers."
        )
    path = next(path for path in {**before, **after} if before.get(path) != after.get(path))
    raise ValueError(
        f"the step does not give back the state that it was given: {path} is {before.get(path, 'not there')} before it "
        f"and {after.get(path, 'not there')} after it. Model and optimizer must keep structure, shapes and types: "
        "collections that grow, such as what is sown into another than `losses`, are no state, and the optimizer must "
        "return its values in the types of `init`."
    )


def check_no_statistics(before: Any, after: Any) -> None:
    """Raises ValueError if a pass over a batch with a mask changes floats of the model's state.

    Such floats are made of the batch, masked examples included, as the statistics of batch normalisation are. Counters
    and random keys may change, and what the model only reads, such as fixed kernels, is the same object after it.
    """
    read = {id(leaf) for leaf in jax.tree.leaves(before)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        if id(leaf) not in read and jnp.issubdtype(leaf.dtype, jnp.inexact):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"the batch has a mask, but the model computes {name} from the whole batch, so that masked examples "
                "would count: give full batches without a mask, or use a model without such statistics, for example "
                "with group or layer normalisation."
            )


def _types(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    kinds = [(jax.tree_util.keystr(path), jax.typeof(leaf)) for path, leaf in leaves]
    return {path: f"{kind.dtype}{list(kind.shape)}" for path, kind in kinds}
