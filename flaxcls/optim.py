"""Optimizers and schedules, from optax, as the config describes them."""

import optax

from flaxcls.config import OptimConfig
from flaxcls.regularizers import weight_mask


def make_schedule(config: OptimConfig, *, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Returns step -> learning rate: linear from 0 over `warmup_steps`, then constant, or cosine to 0 at `total_steps`.

    Cosine annealing is of Loshchilov and Hutter 2017, "SGDR"; linear warm-up of Goyal et al. 2017.
    """
    peak = config.learning_rate
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1)),
    }[config.schedule]
    if warmup_steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def make_optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns clipping, where asked for, and then the optimizer.

    adam is of Kingma and Ba 2015; adamw's decoupled decay, on the weights alone, of Loshchilov and Hutter 2019.
    """
    optimizer = {
        "adam": lambda: optax.adam(schedule),
        "adamw": lambda: optax.adamw(schedule, weight_decay=config.weight_decay, mask=weight_mask),
    }[config.name]()
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
