"""`fit`: the one place that knows about time. It dispatches steps, and between them logs, evaluates and saves."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optax
from flax import linen as nn
from jax import random
from rich.console import Console

from flaxcls.config import Config
from flaxcls.data import Dataset, Split, load_dataset
from flaxcls.early_stopping import EarlyStopping, update
from flaxcls.errors import DivergenceError, InputError, Interrupted
from flaxcls.models.summary import count, table
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.evaluation import evaluate
from flaxcls.run.logs import Logs
from flaxcls.run.meter import Meter
from flaxcls.run.record import check_record, make_record
from flaxcls.run.result import FitResult, device, fingerprint, versions
from flaxcls.run.setup import Setup, make_setup
from flaxcls.run.workdir import CHECKPOINTS, RESULT, check_workdir, open_workdir
from flaxcls.state import TrainState
from flaxcls.validation import validate


def fit(
    config: Config,
    *,
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
    tx: optax.GradientTransformation | None = None,
    workdir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    stop_after: int | None = None,
    console: Console | None = None,
) -> FitResult:
    """Trains a classifier, and returns the test result of the parameters that were best on the validation split.

    Args:
      config: decides the numbers.
      dataset: the caller's own data, such as `flaxcls.data.from_arrays` makes; `config.data` is then not read.
      model: the caller's own linen module; `config.model` is then not read.
      tx: the caller's own optimizer; of `config.optim` only ema_decay and accumulate are then read.
      workdir: the run directory; without it a fresh one below runs/.
      resume: continue the run in `workdir`, from its latest checkpoint.
      overwrite: replace the run in `workdir`.
      stop_after: save and stop after this step; `resume` goes on as if nothing had happened.
      console: where progress is shown; `Console(quiet=True)` shows none.

    Raises:
      InputError: for a configuration, data or a run directory that will not do; nothing has been written.
      DivergenceError: if the loss or its gradient is NaN or infinite; the last checkpoint stays.
      Interrupted: after `stop_after`.
    """
    began = time.perf_counter()
    workdir = None if workdir is None else Path(workdir)
    console = console or Console()
    validate(config)
    if stop_after is not None and stop_after < 1:
        raise InputError(f"stop_after is {stop_after}, but must be 1 or more: the step to stop after.")
    check_workdir(workdir, config, resume=resume, overwrite=overwrite)
    dataset = dataset or load_dataset(config.data)
    setup = make_setup(config, dataset, model, tx)
    name = f"{dataset.name}-{type(setup.model).__name__.lower()}"
    workdir = open_workdir(workdir, config, name=name, resume=resume, overwrite=overwrite)

    with Checkpoints(workdir / CHECKPOINTS) as checkpoints:
        start = (checkpoints.latest_step if resume else None) or 0
        if stop_after is not None and stop_after <= start:
            raise InputError(f"stop_after is {stop_after}, but this run stands at step {start}: name a later step.")
        record = checkpoints.restore_record(start) if start else None
        if record is not None:
            check_record(record, setup)
        with Logs(workdir, console=console, total_steps=setup.plan.total_steps, start=start, resume=resume) as logs:
            _introduce(setup, logs, workdir, start)
            try:
                trained = _train(setup, checkpoints, logs, record, start=start, stop_after=stop_after)
            except DivergenceError as error:
                checkpoints.wait()
                raise DivergenceError(f"{error} {_kept(checkpoints, workdir)}") from error
            except (Interrupted, KeyboardInterrupt):
                logs.say(f"stopped; --workdir {workdir} --resume goes on from the latest checkpoint")
                raise
        result = _finish(setup, checkpoints, trained, workdir, time.perf_counter() - began)
    (workdir / RESULT).write_text(result.to_json())
    return result


@dataclass(frozen=True)
class _Trained:
    """Where training ended. seconds and images are those of its steps alone, compilation left out."""

    state: TrainState
    step: int
    stop: EarlyStopping
    seconds: float
    images: int


def _train(
    setup: Setup,
    checkpoints: Checkpoints,
    logs: Logs,
    record: dict[str, Any] | None,
    *,
    start: int,
    stop_after: int | None,
) -> _Trained:
    config, plan = setup.config, setup.plan
    key = random.key(config.seed)
    state = setup.create(key) if record is None else checkpoints.restore_state(start, setup.abstract_state)
    stop = _early_stopping(setup) if record is None else EarlyStopping(**record["early_stopping"])
    meter = Meter(
        batch_size=config.loop.batch_size,
        logs=plan.logs,
        record={} if record is None else record["meter"],
        write=lambda step, values, speed: logs.write(
            "train", step, plan.epochs_done(step), {**values, "images_per_second": speed}
        ),
    )
    step = start
    while step < plan.total_steps and not stop.stopped:
        step += 1
        extra = setup.log(state.params, step - 1) if plan.logs(step) else {}
        state, metrics = setup.train(state, setup.batch(step - 1), key)
        if plan.logs(step - 1):  # now that the next step is under way
            meter.read(step - 1)
        meter.add(step, metrics, extra)
        if step == start + 1:
            meter.skip_time()  # the first call compiled
        logs.advance(step, plan.epochs_done(step))
        if not (plan.saves(step) or step == stop_after):
            continue
        meter.read(step)
        if not setup.finite(state):
            raise DivergenceError(f"the parameters are not finite after step {step}.")
        if plan.evaluates(step):
            values = _evaluate(setup, state, setup.dataset.validation)
            if not math.isfinite(values["loss"]):
                raise DivergenceError(f"the validation loss is {values['loss']} after step {step}.")
            stop = update(stop, values[config.stop.metric], step)
            if stop.stopped:
                meter.write(step)
            logs.write("validation", step, plan.epochs_done(step), values)
            logs.say(_line(setup, step, values, stop))
        checkpoints.save(step, state, make_record(setup, stop, meter), best_step=stop.best_step)
        meter.skip_time()
        if step == stop_after:
            checkpoints.wait()
            raise Interrupted(f"stopped after step {step}, as asked")
    return _Trained(state, step, stop, meter.seconds, meter.images)


def _finish(setup: Setup, checkpoints: Checkpoints, trained: _Trained, workdir: Path, seconds: float) -> FitResult:
    best_step = trained.step if trained.stop.best_step is None else trained.stop.best_step
    checkpoints.wait()
    best = checkpoints.restore_state(best_step, setup.abstract_state)
    return FitResult(
        test=_evaluate(setup, best, setup.dataset.test),
        validation=_evaluate(setup, best, setup.dataset.validation),
        best_step=best_step,
        steps=trained.step,
        seconds=seconds,
        images_per_second=trained.images / max(trained.seconds, 1e-9),
        parameters=count(best.params),
        versions=versions(),
        device=device(),
        fingerprint=fingerprint(best.eval_variables),
        state=best,
        workdir=workdir,
    )


def _evaluate(setup: Setup, state: TrainState, split: Split) -> dict[str, float]:
    size = setup.eval_batch_size(len(split.labels))
    return evaluate(setup.evaluate, state, split, batch_size=size, sharding=setup.batch_sharding)


def _early_stopping(setup: Setup) -> EarlyStopping:
    stop = setup.config.stop
    return EarlyStopping(
        patience=stop.patience,
        mode="min" if stop.metric == "loss" else "max",
        min_delta=stop.min_delta,
        skip=setup.plan.skipped_evaluations,
    )


def _introduce(setup: Setup, logs: Logs, workdir: Path, start: int) -> None:
    dataset = setup.dataset
    sizes = ", ".join(f"{len(getattr(dataset, part).labels):,} {part}" for part in ("train", "validation", "test"))
    logs.show(table(setup.model, dataset.image_shape))
    logs.say(f"{dataset.name}: {sizes} images of {len(dataset.class_names)} classes")
    logs.say(f"{setup.plan.total_steps:,} steps of {setup.plan.batch_size} on {device()}; run directory {workdir}")
    if start:
        logs.say(f"continuing after step {start}")


def _line(setup: Setup, step: int, values: dict[str, float], stop: EarlyStopping) -> str:
    mark = "  best so far" if stop.best_step == step else ""
    return (
        f"epoch {setup.plan.epochs_done(step):3d}  step {step:6d}  "
        f"validation loss {values['loss']:.4f}  accuracy {values['accuracy']:.2%}{mark}"
    )


def _kept(checkpoints: Checkpoints, workdir: Path) -> str:
    if checkpoints.latest_step is None:
        return "No checkpoint had been written. Lower optim.learning_rate, or set optim.clip_norm."
    return (
        f"The checkpoint of step {checkpoints.latest_step} in {workdir / CHECKPOINTS} is kept. "
        "Start again with a lower optim.learning_rate, or with optim.clip_norm."
    )
