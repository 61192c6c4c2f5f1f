"""`fit`: the one place that knows about time. It dispatches steps, and between them logs, evaluates and saves."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optax
from flax import linen as nn
from jax import random
from rich.console import Console

from flaxcls.config import Config
from flaxcls.data import Dataset, Split, load_dataset
from flaxcls.early_stopping import EarlyStopping, update
from flaxcls.errors import DivergenceError, InputError, Interrupted, StorageError
from flaxcls.models.summary import count
from flaxcls.run.checkpoint import Checkpoints, Restored, damage
from flaxcls.run.evaluation import evaluate
from flaxcls.run.fingerprint import fingerprint
from flaxcls.run.logs import Logs
from flaxcls.run.messages import RESUMABLE, evaluation_line, introduce, kept
from flaxcls.run.meter import Meter
from flaxcls.run.preemption import StopRequest
from flaxcls.run.record import check_record, make_record
from flaxcls.run.result import FitResult, device, versions
from flaxcls.run.setup import Setup, make_setup
from flaxcls.run.workdir import CHECKPOINTS, RESULT, check_workdir, note_changes, open_workdir, write_whole
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
    allow_changes: bool = False,
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
      resume: continue the run in `workdir`, from its latest checkpoint. How often it logs, evaluates and saves may
        change, and patience and min_delta.
      overwrite: replace the run in `workdir`.
      allow_changes: resume even with a configuration that gives other numbers; the run's changes.jsonl keeps them.
      stop_after: save and stop after this step; `resume` goes on as if nothing had happened.
      console: where progress is shown; `Console(quiet=True)` shows none.

    Raises:
      InputError: for a configuration, data or a run directory that will not do; nothing has been written.
      DivergenceError: if the loss or its gradient is NaN or infinite; the last checkpoint stays.
      StorageError: if checkpoints or logs cannot be written any more; the last whole checkpoint stays.
      Interrupted: after `stop_after`.
      KeyboardInterrupt, SystemExit: after SIGINT and SIGTERM, once the step under way is done and saved.
    """
    began = time.perf_counter()
    workdir = None if workdir is None else Path(workdir)
    console = console or Console()
    validate(config)
    if stop_after is not None and stop_after < 1:
        raise InputError(f"stop_after is {stop_after}, but must be 1 or more: the step to stop after.")
    check_workdir(workdir, config, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
    dataset = dataset or load_dataset(config.data)
    setup = make_setup(config, dataset, model, tx)
    name = f"{dataset.name}-{type(setup.model).__name__.lower()}"
    with (
        StopRequest() as request,
        open_workdir(
            workdir, config, name=name, resume=resume, overwrite=overwrite, allow_changes=allow_changes
        ) as workdir,
    ):
        try:
            with Checkpoints(workdir / CHECKPOINTS) as checkpoints:
                result = _run(
                    setup, checkpoints, request, workdir, console, began, resume=resume, stop_after=stop_after
                )
            write_whole(workdir / RESULT, result.to_json())
        except (StorageError, OSError) as error:
            raise StorageError(f"{error} {RESUMABLE.format(workdir=workdir)}") from error
        return result


def _run(
    setup: Setup,
    checkpoints: Checkpoints,
    request: StopRequest,
    workdir: Path,
    console: Console,
    began: float,
    *,
    resume: bool,
    stop_after: int | None,
) -> FitResult:
    restored = None
    if resume:
        restored = checkpoints.restore_newest(setup.abstract_state, lambda record: check_record(record, setup))
    start = restored.step if restored else 0
    if stop_after is not None and stop_after <= start:
        raise InputError(f"stop_after is {stop_after}, but this run stands at step {start}: name a later step.")
    changes = note_changes(workdir, setup.config, start)
    evaluated = restored is None or restored.record["evaluated"]
    with Logs(workdir, console=console, total_steps=setup.plan.total_steps, start=start, evaluated=evaluated) as logs:
        introduce(setup, logs, workdir, restored, changes)
        try:
            trained = _train(setup, checkpoints, logs, restored, request, stop_after=stop_after)
            return _finish(setup, checkpoints, trained, request, workdir, began)
        except DivergenceError as error:
            checkpoints.wait()
            raise DivergenceError(f"{error} {kept(checkpoints, workdir)}") from error
        except (Interrupted, KeyboardInterrupt, SystemExit):
            logs.say(f"stopped; --workdir {workdir} --resume goes on from the latest checkpoint")
            raise


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
    restored: Restored | None,
    request: StopRequest,
    *,
    stop_after: int | None,
) -> _Trained:
    config, plan = setup.config, setup.plan
    key = random.key(config.seed)
    start, state, record = (restored.step, restored.state, restored.record) if restored else (0, setup.create(key), {})
    stop = _early_stopping(setup, record, start)
    if restored and stop.best_step not in (None, start):
        stop = _without_a_damaged_best(setup, checkpoints, logs, stop)
    meter = Meter(
        batch_size=config.loop.batch_size,
        logs=plan.logs,
        record=record.get("meter", {}),
        write=lambda step, values, speed: logs.write(
            "train", step, plan.epochs_done(step), {**values, "images_per_second": speed}
        ),
    )

    def evaluated(step: int) -> bool:
        """Evaluates after `step`; returns whether it came to the end."""
        nonlocal stop
        values = _evaluate(setup, state, setup.dataset.validation, request)
        if values is None:
            return False
        if not math.isfinite(values["loss"]):
            raise DivergenceError(f"the validation loss is {values['loss']} after step {step}.")
        stop = update(stop, values[config.stop.metric], step)
        if stop.stopped:
            meter.write(step)
        logs.write("validation", step, plan.epochs_done(step), values)
        logs.say(evaluation_line(setup, step, values, stop))
        return True

    if restored and not record["evaluated"]:
        if not evaluated(start):
            raise request.exception()
        checkpoints.replace_record(start, make_record(setup, stop, meter, evaluated=True))
    step = start
    while step < plan.total_steps and not stop.stopped:
        step += 1
        checkpoints.check()
        extra = setup.log(state, step - 1) if plan.logs(step) else {}
        state, metrics = setup.train(state, setup.batch(step - 1), key)
        if plan.logs(step - 1):  # now that the next step is under way
            meter.read(step - 1)
        meter.add(step, metrics, extra)
        if step == start + 1:
            meter.skip_time()  # the first call compiled
        logs.advance(step, plan.epochs_done(step))
        if not (plan.saves(step) or step == stop_after or request.signal):
            continue
        meter.read(step)
        if not setup.finite(state):
            raise DivergenceError(f"the parameters are not finite after step {step}.")
        done = evaluated(step) if plan.evaluates(step) else True
        checkpoints.save(step, state, make_record(setup, stop, meter, evaluated=done), best_step=stop.best_step)
        meter.skip_time()
        if request.signal or step == stop_after:
            checkpoints.wait()
            raise request.exception() if request.signal else Interrupted(f"stopped after step {step}, as asked")
    return _Trained(state, step, stop, meter.seconds, meter.images)


def _finish(
    setup: Setup, checkpoints: Checkpoints, trained: _Trained, request: StopRequest, workdir: Path, began: float
) -> FitResult:
    best_step = trained.step if trained.stop.best_step is None else trained.stop.best_step
    checkpoints.wait()
    best = checkpoints.restore_state(best_step, setup.abstract_state)
    test, validation = (
        _evaluate(setup, best, split, request) for split in (setup.dataset.test, setup.dataset.validation)
    )
    if test is None or validation is None:
        raise request.exception()
    return FitResult(
        test=test,
        validation=validation,
        best_step=best_step,
        steps=trained.step,
        seconds=time.perf_counter() - began,
        images_per_second=trained.images / max(trained.seconds, 1e-9),
        parameters=count(best.params),
        versions=versions(),
        device=device(),
        fingerprint=fingerprint(best.eval_variables),
        state=best,
        workdir=workdir,
    )


def _evaluate(setup: Setup, state: TrainState, split: Split, request: StopRequest) -> dict[str, float] | None:
    return evaluate(
        setup.evaluate,
        state,
        split,
        batch_size=setup.eval_batch_size(len(split.labels)),
        sharding=setup.batch_sharding,
        stopping=lambda: request.signal is not None,
    )


def _early_stopping(setup: Setup, record: dict[str, Any], start: int) -> EarlyStopping:
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


def _without_a_damaged_best(setup: Setup, checkpoints: Checkpoints, logs: Logs, stop: EarlyStopping) -> EarlyStopping:
    """Returns `stop`, with its best forgotten where the checkpoint of it cannot be read: it is set aside."""
    step = stop.best_step
    assert step is not None
    try:
        checkpoints.restore_state(step, setup.abstract_state)
    except Exception as error:
        problem = damage(error)
        place = checkpoints.set_aside(step)
        logs.say(f"the best checkpoint, step {step}, is damaged ({problem}); it is now {place}, and later ones compete")
        return replace(stop, best=None, best_step=None)
    return stop
