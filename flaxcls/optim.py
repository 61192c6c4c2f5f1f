"""The optimizers and schedules of `OptimConfig`, made with optax. `OPTIMIZERS` and `SCHEDULES` map names to them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon, reduce_on_plateau

from flaxcls.config import OptimConfig
from flaxcls.parameters import first_matches, matching, weight_mask
from flaxcls.state import TrainState
from flaxcls.types import Params

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "by_group",
    "group_factors",
    "make_optimizer",
    "make_optimizer_metrics",
    "make_schedule",
    "sam",
    "updates_done",
]


def _one_cycle(config: OptimConfig, steps: int) -> optax.Schedule:
    return optax.cosine_onecycle_schedule(steps, config.learning_rate)


def _piecewise(config: OptimConfig, steps: int) -> optax.Schedule:
    boundaries = {round(fraction * steps): config.decay_rate for fraction in config.boundaries}
    return optax.piecewise_constant_schedule(config.learning_rate, boundaries)


def _cosine_restarts(config: OptimConfig, steps: int) -> optax.Schedule:
    ends = [round(cycle * steps / config.cycles) for cycle in range(config.cycles + 1)]
    cycles = [optax.cosine_decay_schedule(config.learning_rate, end - start) for start, end in pairwise(ends)]
    return optax.join_schedules(cycles, ends[1:-1])


# (config, steps after the warm-up) -> schedule of those steps
SCHEDULES: dict[str, Callable[[OptimConfig, int], optax.Schedule]] = {
    "constant": lambda config, steps: optax.constant_schedule(config.learning_rate),
    "linear": lambda config, steps: optax.linear_schedule(config.learning_rate, 0.0, steps),
    "cosine": lambda config, steps: optax.cosine_decay_schedule(config.learning_rate, steps),
    "cosine_restarts": _cosine_restarts,
    "exponential": lambda config, steps: optax.exponential_decay(config.learning_rate, steps, config.decay_rate),
    "piecewise": _piecewise,
    "one_cycle": _one_cycle,
}


def make_schedule(config: OptimConfig, *, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Returns step -> learning rate: linear from 0 over `warmup_steps`, then the schedule over the remaining steps.

    r is the peak, and t in 0..1 the share of the remaining steps that is done.
      constant: r.
      linear: r (1 - t).
      cosine: r (1 + cos(pi t)) / 2 (Loshchilov and Hutter 2017, "SGDR"); cosine_restarts repeats it in each cycle.
      exponential: r decay_rate^t.
      piecewise: r times decay_rate for each boundary passed.
      one_cycle: up from r / 25 in 30 % of the steps, then down to r / 250,000, both as half a cosine (Smith and Topin
        2018, "Super-Convergence").
    The linear warm-up is from Goyal et al. 2017.
    """
    after = SCHEDULES[config.schedule](config, max(total_steps - warmup_steps, 1))
    if warmup_steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup_steps), after], [warmup_steps])


def _kernels_as_matrices(params: Params) -> Any:
    """Returns muon's dimension numbers: a kernel [... c_in c_out] is a matrix of c_out columns; Adam gets the rest."""

    def numbers(is_weight: bool, leaf: jax.Array) -> MuonDimensionNumbers | None:
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1) if is_weight else None

    return jax.tree.map(numbers, weight_mask(params), params)


def updates_done(opt_state: optax.OptState) -> jax.Array:
    """Returns i32[], the position in the schedule of `make_optimizer`. Dropped updates do not advance it."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))
    return next(node.count for node in leaves if isinstance(node, optax.ScaleByScheduleState))


# params -> a tree with True for each parameter that decays; None: all decay
_Mask: TypeAlias = Callable[[Params], Any] | None

# (config, schedule, mask) -> optimizer that treats each parameter by itself; weight decay, if it has any, is decoupled
OPTIMIZERS: dict[str, Callable[[OptimConfig, optax.Schedule, _Mask], optax.GradientTransformation]] = {
    "sgd": lambda config, schedule, mask: optax.chain(
        optax.trace(config.momentum, nesterov=True) if config.momentum else optax.identity(),
        optax.add_decayed_weights(config.weight_decay, mask=mask),
        optax.scale_by_learning_rate(schedule),
    ),
    "rmsprop": lambda config, schedule, mask: optax.rmsprop(schedule, momentum=config.momentum or None),
    "adam": lambda config, schedule, mask: optax.adam(schedule),
    "adamw": lambda config, schedule, mask: optax.adamw(schedule, weight_decay=config.weight_decay, mask=mask),
    "lamb": lambda config, schedule, mask: optax.lamb(schedule, weight_decay=config.weight_decay, mask=mask),
    "lion": lambda config, schedule, mask: optax.lion(schedule, weight_decay=config.weight_decay, mask=mask),
    "muon": lambda config, schedule, mask: muon(
        schedule,
        beta=config.momentum,
        weight_decay=config.weight_decay,
        weight_decay_mask=mask,
        adam_weight_decay=config.weight_decay if mask is None else 0.0,  # Adam gets only biases and normalisation
        muon_weight_dimension_numbers=_kernels_as_matrices,
        consistent_rms=0.2,  # makes an update as large as Adam's, so that one learning rate fits both
    ),
}


def _optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    optimizer = OPTIMIZERS[config.name]
    if not (config.rate_factors or config.decay_factors):
        return optimizer(config, schedule, weight_mask)

    def scaled(rate: float, decay: float) -> optax.GradientTransformation:
        decayed = replace(config, weight_decay=config.weight_decay * decay)
        return optimizer(decayed, lambda step: rate * schedule(step), None)

    return by_group(config, scaled)


def group_factors(config: OptimConfig, params: Params) -> list[tuple[float, float]]:
    """Returns (factor of the learning rate, factor of the decay) for each parameter, in tree order.

    The first key that matches a path such as Dense_0/kernel decides. Without a match, the factor of the learning rate
    is 1, and the factor of the decay is 1 for weights and 0 for biases and normalisation.

    Raises:
      InputError: if a key has no effect; the message lists the paths.
    """
    rates = first_matches(config.rate_factors, params, "optim.rate_factors")
    decays = first_matches(config.decay_factors, params, "optim.decay_factors")
    defaults = map(float, jax.tree.leaves(weight_mask(params)))
    return [
        (1.0 if rate is None else float(rate), default if decay is None else float(decay))
        for rate, decay, default in zip(rates, decays, defaults, strict=True)
    ]


def by_group(
    config: OptimConfig, optimizer: Callable[[float, float], optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer that updates each parameter by `optimizer(rate factor, decay factor)`.

    The factors are from `group_factors`, and `init` raises its InputError. The optimizers must treat each parameter by
    itself.
    """

    def grouped(tree: Any) -> optax.GradientTransformationExtraArgs:
        pairs = group_factors(config, tree)
        names = {pair: "rate {} decay {}".format(*pair) for pair in sorted(set(pairs))}
        labels = jax.tree.unflatten(jax.tree.structure(tree), [names[pair] for pair in pairs])
        return optax.partition({name: optimizer(*pair) for pair, name in names.items()}, labels)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return grouped(grads).update(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(lambda params: grouped(params).init(params), update)


def sam(tx: optax.GradientTransformation, rho: float) -> optax.GradientTransformationExtraArgs:
    """Returns `tx` with sharpness-aware minimisation: it uses the gradient at the worst point nearby.

    That point is params + rho g / |g|, with g the gradient at params and the norm over all parameters (Foret et al.
    2021, "Sharpness-Aware Minimization"). `update` needs `grad_fn`, (params, index) -> gradient, which `train_step`
    provides. The state is the state of `tx`.
    """
    inner = optax.with_extra_args_support(tx)

    def update(grads: Any, state: Any, params: Any = None, *, grad_fn: Any, **extra: Any) -> tuple[Any, Any]:
        scale = rho / jnp.maximum(optax.tree.norm(grads), 1e-12)  # a memorised batch has no gradient
        worst = jax.tree.map(lambda p, g: p + scale * g, params, grads)
        return inner.update(grad_fn(worst, 0), state, params, grad_fn=grad_fn, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def make_optimizer(
    config: OptimConfig, schedule: optax.Schedule, *, steps_per_epoch: int = 1
) -> optax.GradientTransformation:
    """Returns, in this order, clipping, the optimizer and the reduction on plateaus, as far as `config` asks for them.

    With sam_rho, clipping and the optimizer receive the gradient at the worst point nearby.

    The optimizers are sgd with Nesterov momentum (Sutskever et al. 2013), rmsprop (Hinton 2012), adam (Kingma and Ba
    2015), adamw (Loshchilov and Hutter 2019), lamb (You et al. 2020), lion (Chen et al. 2023), and muon (Jordan et al.
    2024), on kernels as matrices, with Adam for the rest. A plateau is detected from the mean training loss of each
    `steps_per_epoch` steps. Biases and normalisation do not decay, unless decay_factors says so.

    Raises:
      InputError: from `init`, if a key of rate_factors or decay_factors has no effect.
    """
    parts = [_optimizer(config, schedule)]
    if config.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.sam_rho is not None:
        parts = [sam(optax.chain(*parts), config.sam_rho)]
    if config.plateau_patience is not None:
        parts.append(
            reduce_on_plateau(
                factor=config.plateau_factor, patience=config.plateau_patience, accumulation_size=steps_per_epoch
            )
        )
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def make_optimizer_metrics(config: OptimConfig, schedule: optax.Schedule) -> Callable[..., dict[str, jax.Array]]:
    """Returns (state, frozen globs) -> metrics, before a step, of the optimizer from `make_optimizer`.

    The metrics are f32[]. learning_rate is the rate of the schedule times the factor of the plateaus so far. With
    decoupled weight decay, decay_norm is the norm of the change that the decay makes in this step. lamb has no
    decay_norm, because its trust ratio scales the decay too.
    """

    def optimizer_metrics(state: TrainState, frozen: Sequence[str]) -> dict[str, jax.Array]:
        learning_rate = jnp.asarray(schedule(updates_done(state.opt_state)), jnp.float32)
        if config.plateau_patience is not None:
            learning_rate *= state.opt_state[-1].scale  # make_optimizer puts it last
        metrics = {"learning_rate": learning_rate}
        if config.weight_decay > 0 and config.name != "lamb":
            is_frozen = jax.tree.leaves(matching(frozen, state.params, "optim.freeze"))
            pairs = zip(group_factors(config, state.params), is_frozen, strict=True)
            factors = [0.0 if fixed else rate * decay for (rate, decay), fixed in pairs]
            leaves = jax.tree.leaves(state.params)
            squares = [jnp.sum(jnp.square(f * p)) for f, p in zip(factors, leaves, strict=True) if f]
            metrics["decay_norm"] = learning_rate * config.weight_decay * jnp.sqrt(sum(squares))
        return metrics

    return optimizer_metrics
