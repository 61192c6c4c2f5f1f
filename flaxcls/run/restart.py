"""What a resumed run goes on from, beside the arrays."""

from dataclasses import replace
from typing import Any

from flaxcls.early_stopping import EarlyStopping
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.checkpoint_files import damage
from flaxcls.run.logs import Logs
from flaxcls.run.processes import agree
from flaxcls.run.setup import Setup


def early_stopping(setup: Setup, record: dict[str, Any], start: int) -> EarlyStopping:
    """Returns the controller of a new run, or that of the record of step `start` with today's patience and period."""
    stop = setup.config.stop
    new = EarlyStopping(
        patience=stop.patience,
        mode="min" if stop.metric == "loss" else "max",
        min_delta=stop.min_delta,
        skip=setup.plan.skipped_evaluations,
    )
    if not record:
        return new
    old = EarlyStopping(**record["early_stopping"])
    if old.mode != new.mode:  # what was best by the one metric says nothing of the other
        return replace(new, seen=old.seen)
    seen, every = old.seen, setup.config.loop.eval_every
    if every != record["config"]["loop"]["eval_every"]:  # as many as there would have been with today's period
        seen = setup.plan.epochs_done(start) // every - (0 if record["evaluated"] else 1)
    return replace(old, patience=new.patience, min_delta=new.min_delta, skip=new.skip, seen=max(seen, 0))


def without_a_damaged_best(setup: Setup, checkpoints: Checkpoints, logs: Logs, stop: EarlyStopping) -> EarlyStopping:
    """Returns `stop`, with its best forgotten where the checkpoint of it cannot be read: it is set aside."""
    step = stop.best_step
    assert step is not None
    if not agree(step in checkpoints.steps):
        logs.say(f"the best checkpoint, step {step}, is not there any more; later ones compete")
        return replace(stop, best=None, best_step=None)
    try:
        checkpoints.restore_state(step, setup.abstract_state)
    except Exception as error:
        problem = damage(error)
        place = checkpoints.set_aside(step)
        logs.say(f"the best checkpoint, step {step}, is damaged ({problem}); it is now {place}, and later ones compete")
        return replace(stop, best=None, best_step=None)
    return stop
