"""What `fit` and the dry run tell their user, in words."""

from pathlib import Path

import numpy as np

from flaxcls.early_stopping import EarlyStopping
from flaxcls.errors import DivergenceError
from flaxcls.models.summary import table
from flaxcls.places import in_bucket
from flaxcls.run.checkpoint import DAMAGED, UNFINISHED, Checkpoints, Restored
from flaxcls.run.logs import Logs
from flaxcls.run.result import device
from flaxcls.run.setup import Setup
from flaxcls.run.workdir import CHECKPOINTS

RESUMABLE = "Once that is mended, --workdir {workdir} --resume goes on from the newest whole checkpoint."


def introduce(setup: Setup, logs: Logs, workdir: Path, restored: Restored | None, changes: list[str]) -> None:
    """Says what is trained on what, from where on, and what has changed since."""
    dataset = setup.dataset
    logs.show(table(setup.model, dataset.image_shape))
    logs.say(dataset.described)
    for note in dataset.notes:
        logs.say(note)
    if line := imbalance(setup):
        logs.say(line)
    logs.say(f"{setup.plan.total_steps:,} steps of {batch_in_words(setup)} on {device()}; run directory {workdir}")
    if restored:
        say_passed_over(logs, workdir, restored)
        logs.say(f"continuing after step {restored.step}")
    for change in changes:
        logs.say(f"changed: {change}")


def batch_in_words(setup: Setup) -> str:
    """Returns how large a batch is, and into how many parts it is taken."""
    return f"{setup.plan.batch_size} in {setup.parts} parts" if setup.parts > 1 else f"{setup.plan.batch_size}"


def imbalance(setup: Setup) -> str | None:
    """Returns the line on how rare the rarest class of train is, or None where classes differ by less than half."""
    config, names = setup.config, setup.dataset.class_names
    counts = np.bincount(setup.dataset.train.labels, minlength=len(names))
    rare, frequent = int(counts.argmin()), int(counts.argmax())
    if counts[frequent] <= 1.5 * counts[rare]:
        return None
    line = f"classes are uneven: {counts[rare]:,} of {names[rare]} to {counts[frequent]:,} of {names[frequent]}"
    if config.loss.class_weights == "none" and config.data.sampling == "shuffled":
        line += "; --loss.class-weights balanced or --data.sampling balanced makes up for it"
    return line


def say_passed_over(logs: Logs, workdir: Path, restored: Restored | None) -> None:
    """Says which checkpoints could not be used, and why."""
    for step, problem in restored.passed_over.items() if restored else ():
        deleted = problem == UNFINISHED and in_bucket(workdir)
        done = "deleted" if deleted else f"set aside in {workdir / DAMAGED}"
        logs.say(f"the checkpoint of step {step} is damaged and was {done}: {problem}")


def evaluation_line(setup: Setup, step: int, values: dict[str, float], stop: EarlyStopping) -> str:
    """Returns the line of an evaluation."""
    mark = "  best so far" if stop.best_step == step else ""
    return (
        f"epoch {setup.plan.epochs_done(step):3d}  step {step:6d}  "
        f"validation loss {values['loss']:.4f}  accuracy {values['accuracy']:.2%}{mark}"
    )


def kept(setup: Setup, checkpoints: Checkpoints, workdir: Path, rollbacks: int) -> str:
    """Returns what is left after a divergence, and what to do."""
    tried = f"That is after {rollbacks} rollbacks, as many as loop.nan_limit allows. " if rollbacks else ""
    if checkpoints.latest_step is None:
        return f"{tried}No checkpoint had been written. Lower optim.learning_rate, or set optim.clip_norm."
    again = "" if setup.config.loop.on_nan != "stop" else ", or go on from it with --resume --loop.on-nan rollback"
    return (
        f"{tried}The checkpoint of step {checkpoints.latest_step} in {workdir / CHECKPOINTS} is kept. "
        f"Start again with a lower optim.learning_rate or with optim.clip_norm{again}."
    )


def rolled_back(setup: Setup, diverged: DivergenceError, restored: Restored | None, rollbacks: int) -> str:
    """Returns the line that tells of a rollback."""
    place = f"step {restored.step}" if restored else "the beginning"
    return f"{diverged} Back to {place}, with another data order: rollback {rollbacks} of {setup.config.loop.nan_limit}"
