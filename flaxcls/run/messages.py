"""The messages of `fit`, the dry run and the inspection of data."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from flaxcls.config import Config
from flaxcls.data import Dataset
from flaxcls.data.copies import describe_copies, list_copies
from flaxcls.data.dataset import describe_unseen_classes
from flaxcls.data.inspection import (
    UNREADABLE,
    UNUSABLE,
    Inspection,
    describe_kinds,
    describe_memory,
    describe_preparation,
    describe_sizes,
    describe_splits,
    inspect_dataset,
    warn_of_memory,
)
from flaxcls.errors import DivergenceError
from flaxcls.models.summary import table
from flaxcls.run.checkpoint import DAMAGED, UNFINISHED, Restored
from flaxcls.run.logs import Logs
from flaxcls.run.plan import Plan
from flaxcls.run.result import device
from flaxcls.run.runtime import available_memory
from flaxcls.run.setup import Setup
from flaxcls.run.workdir import CHECKPOINTS
from flaxcls.storage import in_bucket

SHOWN_CLASSES = 20
RESUMABLE = "Once that is mended, --workdir {workdir} --resume goes on from the newest whole checkpoint."


def introduce(
    logs: Logs, setup: Setup, config: Config, workdir: Path, restored: Restored | None, changes: list[str]
) -> None:
    """Says what is trained, on what, from which step on, and which options have changed."""
    logs.show(table(setup.model, setup.dataset.image_shape))
    show_inspection(inspect_setup(setup, config), setup.dataset, say=logs.say, show=logs.show, short=True)
    balanced = config.loss.class_weights == "balanced" or config.data.sampling == "balanced"
    for line in imbalance(setup.dataset, balanced=balanced):
        if line not in setup.dataset.notes:
            logs.say(line)
    batch = describe_batch(setup.plan, setup.microbatches)
    logs.say(f"{setup.plan.total_steps:,} steps of {batch} on {device()}; run directory {workdir}")
    if restored:
        say_passed_over(logs, workdir, restored)
        logs.say(f"continuing after step {restored.step}")
    for change in changes:
        logs.say(f"changed: {change}")


def inspect_setup(setup: Setup, config: Config) -> Inspection:
    """Returns the facts about the data of a run, and the memory of a batch and the state."""
    shape, images = setup.dataset.image_shape, setup.dataset.train.images
    batch = setup.plan.batch_size * math.prod(shape) * images.dtype.itemsize
    return inspect_dataset(
        setup.dataset,
        memory_limit=config.data.memory,
        available=available_memory(),
        others={"a batch": batch, "the state": count_bytes(setup.abstract_state)},
        on_unreadable=config.data.unreadable,
    )


def show_inspection(
    inspection: Inspection,
    dataset: Dataset,
    *,
    say: Callable[[str], None],
    show: Callable[[RenderableType], None],
    short: bool = False,
    problems: bool = True,
) -> None:
    """Prints the facts about a data set.

    Args:
      inspection: the facts.
      dataset: the data set.
      say: prints a line.
      show: prints a table.
      short: True to print few lines, and of copies only if there are some, at most three.
      problems: False if the caller says what training refuses.
    """
    copies = describe_copies(inspection.copies)
    images = (describe_sizes(inspection), describe_kinds(inspection), describe_preparation(inspection))
    say(dataset.described)
    if short:
        held_out = (f"{part}: {where}" for part, (_, where) in inspection.origins.items() if part != "train")
        say(f"from {inspection.source}; {'; '.join(held_out)}")
    else:
        say(f"source: {inspection.source}")
        for line in describe_splits(inspection):
            say(line)
    show(class_table(dataset))
    if short:
        say(f"images: {'; '.join(images)}")
    else:
        for name, line in zip(("sizes", "channels and depth", "brought to size"), images, strict=True):
            say(f"{name}: {line}")
    for note in inspection.notes:
        say(note)
    if not short or (inspection.copies and inspection.copies.groups):
        say(copies)
    for line in list_copies(inspection.copies, dataset, 3 if short else 10) if inspection.copies else ():
        say(f"  {line}")
    say(describe_memory(inspection.memory))
    if warning := warn_of_memory(inspection.memory):
        say(warning)
    refused, unreadable, unusable = inspection.problems if problems else (), inspection.unreadable, inspection.unusable
    for title, lines in (
        (f"training refuses ({len(refused):,})", refused),
        (f"not readable ({len(unreadable):,}), {UNREADABLE[inspection.on_unreadable]}", unreadable),
        (f"readable, but no input of the model ({len(unusable):,}), {UNUSABLE}", unusable),
    ):
        if lines and not short:
            say("\n  ".join([f"{title}:", *lines[:10], *["..."] * (len(lines) > 10)]))


def count_bytes(tree: Any) -> int:
    """Returns the number of bytes of a tree of arrays that each device holds."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def describe_batch(plan: Plan, microbatches: int) -> str:
    """Returns the size of a batch, and the number of its microbatches if there are several."""
    return f"{plan.batch_size} in {microbatches} microbatches" if microbatches > 1 else f"{plan.batch_size}"


def class_table(dataset: Dataset) -> Table:
    """Returns a table of the number of examples of each class in each split.

    If there are more than `SHOWN_CLASSES`, it has the classes with the most and the fewest training examples.
    """
    counts, names = dataset.class_counts, list(dataset.class_names)
    shown: list[str | None] = [*names]
    if len(names) > SHOWN_CLASSES:
        by_size = sorted(names, key=lambda name: -counts["train"][name])
        shown = [*by_size[: SHOWN_CLASSES // 2], None, *by_size[-SHOWN_CLASSES // 2 :]]
    classes = Table(box=None, pad_edge=False)
    classes.add_column("class", overflow="fold")
    for part in counts:
        classes.add_column(part, justify="right")
    for name in shown:
        if name is None:
            classes.add_row(f"... {len(names) - SHOWN_CLASSES:,} classes between these in size")
        else:
            classes.add_row(escape(name), *(f"{numbers[name]:,}" for numbers in counts.values()))
    return classes


def imbalance(dataset: Dataset, *, balanced: bool) -> list[str]:
    """Returns a line on the classes without a training image, and one on the rarest other class if it is much rarer.

    Nothing is said of classes that differ by less than half.

    balanced: class weights or sampling make up for it already.
    """
    absent, names = describe_unseen_classes(dataset), dataset.class_names
    lines = [] if absent is None else [absent]
    counts = np.bincount(dataset.train.labels, minlength=len(names))
    rare, frequent = int(np.where(counts > 0, counts, counts.max() + 1).argmin()), int(counts.argmax())
    if counts[frequent] <= 1.5 * counts[rare]:
        return lines
    line = f"classes are uneven: {counts[rare]:,} of {names[rare]} to {counts[frequent]:,} of {names[frequent]}"
    advice = "; --loss.class-weights balanced or --data.sampling balanced makes up for it"
    return [*lines, line if balanced else f"{line}{advice}"]


def say_passed_over(logs: Logs, workdir: Path, restored: Restored | None) -> None:
    """Says which checkpoints could not be used, and why."""
    for step, problem in restored.passed_over.items() if restored else ():
        deleted = problem == UNFINISHED and in_bucket(workdir)
        done = "deleted" if deleted else f"set aside in {workdir / DAMAGED}"
        logs.say(f"the checkpoint of step {step} is damaged and was {done}: {problem}")


def evaluation_line(epoch: int, step: int, values: dict[str, float], *, is_best: bool) -> str:
    """Returns the line of an evaluation."""
    mark = "  best so far" if is_best else ""
    return (
        f"epoch {epoch:3d}  step {step:6d}  "
        f"validation loss {values['loss']:.4f}  accuracy {values['accuracy']:.2%}{mark}"
    )


def after_divergence(latest_step: int | None, workdir: Path, rollbacks: int, *, may_roll_back: bool) -> str:
    """Returns what is left after a divergence, and what to do.

    Args:
      latest_step: of the newest checkpoint, if there is one.
      workdir: of the run.
      rollbacks: how often the run has gone back already.
      may_roll_back: the user can still choose loop.on_nan rollback.
    """
    tried = f"That is after {rollbacks} rollbacks, as many as loop.nan_limit allows. " if rollbacks else ""
    if latest_step is None:
        return f"{tried}No checkpoint had been written. Lower optim.learning_rate, or set optim.clip_norm."
    again = ", or go on from it with --resume --loop.on-nan rollback" if may_roll_back else ""
    return (
        f"{tried}The checkpoint of step {latest_step} in {workdir / CHECKPOINTS} is kept. "
        f"Start again with a lower optim.learning_rate or with optim.clip_norm{again}."
    )


def rolled_back(diverged: DivergenceError, step: int | None, rollbacks: int, limit: int) -> str:
    """Returns the line on a rollback to `step`, or to the beginning."""
    place = "the beginning" if step is None else f"step {step}"
    return f"{diverged} Back to {place}, with another data order: rollback {rollbacks} of {limit}"
