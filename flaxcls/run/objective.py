"""The losses and penalties of a run, and what is logged of its optimizer."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcls.config import Config, LossConfig
from flaxcls.data import Dataset
from flaxcls.groups import factors, matching
from flaxcls.losses import LOSSES, class_weighted, focal
from flaxcls.optim import updates_done
from flaxcls.regularizers import l1, l2
from flaxcls.state import TrainState
from flaxcls.types import LossFn, Regularizer


def evaluation_loss(config: LossConfig) -> Callable[..., jax.Array]:
    """Returns the loss that is evaluated: without smoothing and class weights, so that it compares between runs."""
    if config.focal_gamma is not None:
        return partial(focal, gamma=config.focal_gamma)
    return LOSSES[config.name]


def training_loss(config: LossConfig, dataset: Dataset) -> LossFn:
    """Returns the loss that is trained on: with smoothing, and weights by the classes of the training split."""
    loss_fn = partial(evaluation_loss(config), label_smoothing=config.label_smoothing)
    if config.class_weights == "none":
        return loss_fn
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.class_names))
    weights = len(dataset.train.labels) / (len(counts) * np.maximum(counts, 1))
    return class_weighted(loss_fn, jnp.asarray(weights, jnp.float32))


def regularizer(config: LossConfig) -> Regularizer | None:
    """Returns what L1 and L2 add to the loss, or None if nothing is asked for."""
    if config.l1 == config.l2 == 0:
        return None
    return lambda params: config.l1 * l1(params) + config.l2 * l2(params)


def logged_values(config: Config, schedule: optax.Schedule) -> Callable[..., dict[str, jax.Array]]:
    """Returns what is logged of our own optimizer: its learning rate and how far decoupled decay moves the weights.

    That is a function of the state and of the globs of what is frozen. The rate is that of the schedule, times the
    factor that plateaus have come to before the step. lamb's decay is left out, for its trust ratio scales it too.
    """

    def values(state: TrainState, frozen: Sequence[str]) -> dict[str, jax.Array]:
        learning_rate = jnp.asarray(schedule(updates_done(state.opt_state)), jnp.float32)
        if config.optim.plateau_patience is not None:
            learning_rate *= state.opt_state[-1].scale  # make_optimizer puts it last
        logged = {"learning_rate": learning_rate}
        if config.optim.weight_decay > 0 and config.optim.name != "lamb":
            stays = jax.tree.leaves(matching(frozen, state.params, "optim.freeze"))
            pairs = zip(factors(config.optim, state.params), stays, strict=True)
            moved = [0.0 if fixed else rate * decay for (rate, decay), fixed in pairs]
            weights = jax.tree.leaves(state.params)
            squares = [jnp.sum(jnp.square(f * p)) for f, p in zip(moved, weights, strict=True) if f]
            logged["decay_norm"] = learning_rate * config.optim.weight_decay * jnp.sqrt(sum(squares))
        return logged

    return values
