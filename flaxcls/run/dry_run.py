"""A dry run: it shows network, schedule, first batch, memory and work of a run. Nothing is trained or written."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console
from rich.table import Table
from rich.text import Text
from uniplot import plot_to_string

from flaxcls.config import Config, OptimConfig
from flaxcls.data import Dataset, load_dataset
from flaxcls.data.decode import MISSING
from flaxcls.data.inspection import as_bytes, inspect_dataset
from flaxcls.errors import InputError
from flaxcls.models.summary import layers, table
from flaxcls.optim import make_schedule
from flaxcls.run.checks import check_data
from flaxcls.run.hlo import collectives
from flaxcls.run.messages import count_bytes, describe_batch, inspect_setup, show_inspection
from flaxcls.run.multihost.sync import is_first, whole_array
from flaxcls.run.plan import Plan
from flaxcls.run.result import device
from flaxcls.run.resume import load_again, within_memory
from flaxcls.run.runtime import available_memory
from flaxcls.run.setup import Setup, make_setup
from flaxcls.run.workdir import check_workdir
from flaxcls.storage import as_path
from flaxcls.types import Batch, EvalParams
from flaxcls.validation import validate


def dry_run(
    config: Config,
    *,
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
    tx: optax.GradientTransformation | None = None,
    eval_params: EvalParams | None = None,
    workdir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_changes: bool = False,
    console: Console | None = None,
) -> None:
    """Shows what `fit` with the same arguments would do. The training step is compiled, for its memory, but not run.

    Raises:
      InputError: if `fit` would refuse configuration, data, model or directory; of checkpoints, the record is read. If
        the data can be looked at, its facts are shown before, and all is named for which it would be refused.
    """
    console = (console or Console()) if is_first() else Console(quiet=True)
    validate(config)
    workdir = None if workdir is None else as_path(workdir)
    check_workdir(workdir, config, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
    if dataset is None and resume and workdir:
        dataset = load_again(config.data, workdir)
    elif dataset is None:
        try:
            dataset = load_dataset(within_memory(config.data))
        except InputError as error:
            raise _with_facts(config, str(error), console) from error
    try:
        setup = make_setup(config, dataset, model, tx, eval_params)
    except InputError as error:
        _show_facts(dataset, config, [str(error)], console)
        raise
    console.print(table(setup.model, setup.dataset.image_shape))
    _show_plan(setup, config, console)
    if tx is None:
        console.print(Text(_draw_schedule(config.optim, setup.plan, width=max(20, min(console.width - 12, 72)))))
    console.print(_batch_table(setup, config.seed))
    compiled = _compile(setup)
    console.print(_cost_table(setup, compiled))
    if jax.device_count() > 1:
        console.print(_collectives_table(setup, compiled))
    console.print("dry run: nothing was trained or written")


def _with_facts(config: Config, refused: str, console: Console) -> InputError:
    """Shows what can be seen of data that training refuses; returns an error with all for which it does.

    refused: the first of these.
    """
    problems: list[str] = []
    try:
        dataset = load_dataset(replace(config.data, memory=0.0), problems=problems).without_replacing()
        _show_facts(dataset, config, [refused, *problems], console)
        check_data(config, dataset, jax.device_count())
    except InputError as error:
        problems.append(str(error))
    return InputError("\n".join(dict.fromkeys([refused, *problems])))


def _show_facts(dataset: Dataset, config: Config, problems: Sequence[str], console: Console) -> None:
    """Shows the facts about data that training refuses. The error names the problems, which may list the files."""
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    inspection = inspect_dataset(
        dataset,
        memory_limit=config.data.memory,
        available=available_memory(),
        problems=problems,
        on_unreadable=config.data.unreadable,
    )
    said = "\n".join([*problems, *dataset.notes])
    if any(line.removesuffix(MISSING) in said for line in dataset.unreadable):
        inspection = replace(inspection, unreadable=())
    show_inspection(inspection, dataset, say=say, show=console.print, problems=False)


def _show_plan(setup: Setup, config: Config, console: Console) -> None:
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    plan = setup.plan
    inspection = replace(inspect_setup(setup, config), unreadable=())  # a note says what is left out
    show_inspection(inspection, setup.dataset, say=say, show=console.print)
    batch, steps_per_epoch = describe_batch(plan, setup.microbatches), plan.examples / plan.batch_size
    console.print(
        f"{plan.total_steps:,} steps of {batch}, {steps_per_epoch:,.1f} an epoch, {plan.warmup_steps:,} of warm-up, on "
        f"{device()}"
    )
    for glob, begin in plan.freeze_steps:
        console.print(f"{glob} is frozen after step {begin:,}", markup=False)


def _draw_schedule(config: OptimConfig, plan: Plan, width: int) -> str:
    steps = np.unique(np.linspace(0, plan.total_steps - 1, 4 * width).round().astype(int))
    schedule = make_schedule(config, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps)
    rates = np.array([float(schedule(step)) for step in steps])
    power = math.floor(math.log10(config.learning_rate))
    title = f"learning rate in 1e{power} by step ({config.schedule})"
    plot: str = plot_to_string(
        xs=steps, ys=rates / 10**power, lines=True, width=width, height=10, y_min=0, title=title, character_set="block"
    )
    if config.plateau_patience is not None:
        epochs = config.plateau_patience
        plot += f"\nmultiplied by {config.plateau_factor:g} whenever {epochs} epochs bring no lower training loss"
    return plot


def _batch_table(setup: Setup, seed: int) -> Table:
    """Returns statistics of the first batch, as it is read and as the model sees it in training."""
    raw = jax.tree.map(lambda array: array[0], setup.loader.place([setup.loader.maker(0)]))
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(seed), 0))  # as train_step draws it
    seen: Batch = jax.jit(setup.transform)(key, raw)
    statistics = Table(title="images of the first batch", title_justify="left")
    for header in ("", "type", "min", "mean", "deviation", "max"):
        statistics.add_column(header, justify="left" if header in ("", "type") else "right")
    for name, batch in (("as read", raw), ("transformed", seen)):
        images = whole_array(batch["image"])
        kind = f"{images.dtype} [{' '.join(map(str, images.shape))}]"
        numbers = (images.min(), images.mean(dtype=np.float64), images.std(dtype=np.float64), images.max())
        statistics.add_row(name, kind, *(f"{number:.4g}" for number in numbers))
    labels = whole_array(raw["label"])
    counts = np.bincount(labels, minlength=len(setup.dataset.class_names))
    soft = "soft " if seen["label"].ndim == 2 else ""
    statistics.caption = (
        f"{soft}labels: {np.count_nonzero(counts)} of {len(counts)} classes, {counts.min()} to {counts.max()} of each"
    )
    statistics.caption_justify = "left"
    return statistics


def _compile(setup: Setup) -> jax.stages.Compiled:
    batches = setup.loader.load(0, setup.plan.dispatch_end(0))
    return setup.train.lower(setup.abstract_state, batches, jax.random.key(0), frozen=setup.plan.frozen(0)).compile()


def _cost_table(setup: Setup, compiled: jax.stages.Compiled) -> Table:
    """Returns memory and work of a compiled dispatch on each device, as far as XLA reports them."""
    state = setup.abstract_state
    steps = setup.plan.dispatch_end(0)
    batch = "training split" if setup.loader.on_device else "batch"
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    peak = work = "not known on this kind of device"
    if memory is not None:
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        peak = f"{as_bytes(held + memory.temp_size_in_bytes)}, with state, {batch} and key"
    if cost is not None:
        loop = max(setup.microbatches, steps) > 1 and jax.default_backend() != "cpu"
        work = f"{cost['flops'] / 1e6:,.1f} MFLOPs{', a loop counted once' if loop else ''}"
    per_image = sum(layer.flops for layer in layers(setup.model, setup.dataset.image_shape))
    program = "a training step" if steps == 1 else f"a dispatch of {steps} training steps"
    costs = Table(title=f"{program}, on each device", title_justify="left", show_header=False)
    for name, value in (
        ("parameters", as_bytes(count_bytes(state.params))),
        ("optimizer state", as_bytes(count_bytes(state.opt_state))),
        ("averages and statistics", as_bytes(count_bytes((state.ema, state.model_state)))),
        ("peak memory", peak),
        ("work", work),
        ("the model, forward", f"{per_image / 1e6:,.3f} MFLOPs per image, without norms"),
    ):
        costs.add_row(name, value)
    return costs


def _collectives_table(setup: Setup, compiled: jax.stages.Compiled) -> Table:
    """Returns the data that the devices send each other in a dispatch, by collective and number of devices."""
    operations = collectives(compiled.as_text() or "", jax.device_count())
    traffic = Table(title="data that the devices send each other", title_justify="left")
    for header in ("collective", "devices", "how many", "bytes", "sent by each at least"):
        traffic.add_column(header, justify="left" if header == "collective" else "right")
    for kind, group in sorted({(operation.kind, operation.group) for operation in operations}):
        alike = [operation for operation in operations if (operation.kind, operation.group) == (kind, group)]
        sizes = (sum(operation.bytes for operation in alike), sum(operation.sent for operation in alike))
        traffic.add_row(kind, str(group), str(len(alike)), *map(as_bytes, sizes))
    traffic.caption = f"batch over all devices, state over mesh.fsdp {setup.mesh.shape['fsdp']}; a loop counted once"
    traffic.caption_justify = "left"
    return traffic
