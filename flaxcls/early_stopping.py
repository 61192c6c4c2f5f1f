"""Early stopping as an immutable value."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from flaxcls.config import StopConfig

__all__ = ["EarlyStopping", "make_early_stopping", "update"]


@dataclass(frozen=True)
class EarlyStopping:
    """The controller of early stopping: one number per evaluation decides the best parameters and the end of training.

    patience: evaluations in a row without improvement after which `stopped` is True; None: never.
    mode: "min" if lower is better, "max" if higher is better.
    min_delta: an improvement is a change for the better by more than this.
    skip: evaluations at the start that count neither for patience nor as the best.
    best, best_step: the best value so far and its step; None before there is one.
    bad: evaluations in a row without improvement.
    seen: evaluations so far.
    """

    patience: int | None = None
    mode: Literal["min", "max"] = "min"
    min_delta: float = 0.0
    skip: int = 0
    best: float | None = None
    best_step: int | None = None
    bad: int = 0
    seen: int = 0

    @property
    def stopped(self) -> bool:
        """True if patience is used up."""
        return self.patience is not None and self.bad >= self.patience


def make_early_stopping(config: StopConfig, *, skip: int) -> EarlyStopping:
    """Returns the value for a new run. skip: evaluations at its start that do not count."""
    mode: Literal["min", "max"] = "min" if config.metric == "loss" else "max"
    return EarlyStopping(patience=config.patience, mode=mode, min_delta=config.min_delta, skip=skip)


def update(stop: EarlyStopping, value: float, step: int) -> EarlyStopping:
    """Returns `stop` after an evaluation at `step` gave `value`. NaN and infinity are never an improvement.

    >>> stop = update(EarlyStopping(patience=2), 0.5, step=10)
    >>> stop = update(update(stop, 0.7, step=20), float("nan"), step=30)
    >>> stop.best_step, stop.stopped
    (10, True)
    """
    stop = replace(stop, seen=stop.seen + 1)
    if stop.seen <= stop.skip:
        return stop
    if _improves(stop, value):
        return replace(stop, best=value, best_step=step, bad=0)
    return replace(stop, bad=stop.bad + 1)


def _improves(stop: EarlyStopping, value: float) -> bool:
    if not math.isfinite(value):
        return False
    if stop.best is None:
        return True
    gain = stop.best - value if stop.mode == "min" else value - stop.best
    return gain > stop.min_delta
