"""`fit`: the one place that knows about time. It dispatches steps, and between them logs, evaluates and saves."""

import contextlib
import math
import time
from dataclasses import dataclass
from functools import partial
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
from flaxcls.places import as_path
from flaxcls.run.checkpoint import Checkpoints, Restored
from flaxcls.run.evaluation import evaluate
from flaxcls.run.feed import feed
from flaxcls.run.fingerprint import fingerprint
from flaxcls.run.logs import Logs
from flaxcls.run.memory import give_back_memory
from flaxcls.run.messages import RESUMABLE, evaluation_line, introduce, kept, rolled_back, say_passed_over
from flaxcls.run.meter import Meter
from flaxcls.run.preemption import StopRequest
from flaxcls.run.processes import is_first, share
from flaxcls.run.profiling import Trace
from flaxcls.run.record import check_record, make_record
from flaxcls.run.restart import early_stopping, without_a_damaged_best
from flaxcls.run.result import FitResult, device, versions
from flaxcls.run.setup import Setup, make_setup
from flaxcls.run.workdir import (
    CHECKPOINTS,
    PROFILE,
    RESULT,
    check_workdir,
    note_changes,
    open_workdir,
    with_absolute_paths,
    write_whole,
)
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
    """Trains a classifier; returns the test result of the best parameters by the validation split, or else the last.

    Args:
      config: decides the numbers.
      dataset: the caller's own data, such as `flaxcls.data.from_arrays` makes; `config.data` is then not read.
      model: the caller's own linen module; of `config.model` only init_images is then read.
      tx: the caller's own optimizer; of `config.optim` only ema_decay, accumulate and freeze are then read.
      workdir: the run directory, which may be gs://BUCKET/PATH; without it a fresh one below runs/.
      resume: continue the run in `workdir`, from its latest checkpoint. How often it logs, evaluates and saves may
        change, and patience and min_delta.
      overwrite: replace the run in `workdir`.
      allow_changes: resume even with a configuration that gives other numbers; the run's changes.jsonl keeps them.
      stop_after: save and stop after this step, or where its dispatch ends; `resume` goes on as if nothing had
        happened.
      console: where progress is shown; `Console(quiet=True)` shows none.

    Raises:
      InputError: for a configuration, data or a run directory that will not do; nothing has been written.
      DivergenceError: if the loss, its gradient or the parameters are NaN or infinite, and loop.on_nan does not help;
        the last checkpoint stays.
      StorageError: if checkpoints or logs cannot be written any more; the last whole checkpoint stays.
      Interrupted: after `stop_after`.
      KeyboardInterrupt, SystemExit: after SIGINT and SIGTERM, once the step under way is done and saved.
    """
    began = time.perf_counter()
    workdir = None if workdir is None else as_path(workdir)
    console = (console or Console()) if is_first() else Console(quiet=True)
    validate(config)
    config = with_absolute_paths(config)
    if stop_after is not None and stop_after < 1:
        raise InputError(f"stop_after is {stop_after}, but must be 1 or more: the step to stop after.")
    check_workdir(workdir, config, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
    dataset = dataset or load_dataset(config.data)
    setup = make_setup(config, dataset, model, tx)
    name = f"{dataset.name}-{type(setup.model).__name__.lower()}"
    with StopRequest() as request, contextlib.ExitStack() as stack:
        opened = open_workdir(
            workdir, config, name=name, resume=resume, overwrite=overwrite, allow_changes=allow_changes
        )
        workdir = share(lambda: stack.enter_context(opened))
        try:
            with Checkpoints(workdir / CHECKPOINTS) as checkpoints:
                result = _run(
                    setup, checkpoints, request, workdir, console, began, resume=resume, stop_after=stop_after
                )
            if is_first():
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
    check = partial(check_record, setup=setup)
    restored = checkpoints.restore_newest(setup.abstract_state, check) if resume else None
    start = restored.step if restored else 0
    if stop_after is not None and stop_after <= start:
        raise InputError(f"stop_after is {stop_after}, but this run stands at step {start}: name a later step.")
    changes = note_changes(workdir, setup.config, start) if is_first() else []
    rollbacks = restored.record.get("rollbacks", 0) if restored else 0
    diverged: DivergenceError | None = None
    while True:
        place = workdir if is_first() else None
        with Logs(place, console=console, total_steps=setup.plan.total_steps, restored=restored) as logs:
            if diverged is None:
                introduce(setup, logs, workdir, restored, changes)
            else:
                logs.say(rolled_back(setup, diverged, restored, rollbacks))
                say_passed_over(logs, workdir, restored)
            try:
                profile = workdir / PROFILE if setup.config.loop.profile and is_first() else None
                trained = _train(
                    setup, checkpoints, logs, restored, request, rollbacks, stop_after=stop_after, profile=profile
                )
                return _finish(setup, checkpoints, trained, request, workdir, began)
            except DivergenceError as error:
                checkpoints.wait()
                if setup.config.loop.on_nan != "rollback" or rollbacks >= setup.config.loop.nan_limit:
                    raise DivergenceError(f"{error} {kept(setup, checkpoints, workdir, rollbacks)}") from error
                diverged = error
            except (Interrupted, KeyboardInterrupt, SystemExit):
                logs.say(f"stopped; --workdir {workdir} --resume goes on from the latest checkpoint")
                raise
        restored = checkpoints.roll_back(setup.abstract_state, check)
        rollbacks += 1


@dataclass(frozen=True)
class _Trained:
    """Where training ended, and what was counted on the way."""

    state: TrainState
    step: int
    stop: EarlyStopping
    meter: Meter
    rollbacks: int


def _train(
    setup: Setup,
    checkpoints: Checkpoints,
    logs: Logs,
    restored: Restored | None,
    request: StopRequest,
    rollbacks: int,
    *,
    stop_after: int | None,
    profile: Path | None,
) -> _Trained:
    config, plan, work = setup.config, setup.plan, setup.work
    key = random.key(config.seed)
    start, state, record = (restored.step, restored.state, restored.record) if restored else (0, setup.create(key), {})
    key = random.fold_in(key, rollbacks) if rollbacks else key
    stop = early_stopping(setup, record, start)
    if restored and stop.best_step not in (None, start):
        stop = without_a_damaged_best(setup, checkpoints, logs, stop)
    meter = Meter(
        batch_size=config.loop.batch_size,
        logs=plan.logs,
        record=record.get("meter", {}),
        write=lambda step, values, images_per_second: logs.write(
            "train", step, plan.epochs_done(step), {**values, **work.speed(images_per_second)}
        ),
        say=logs.say,
        skip_limit=config.loop.nan_limit if config.loop.on_nan == "skip" else 0,
    )

    def evaluated(step: int) -> bool:
        """Evaluates after `step`; returns whether it came to the end."""
        nonlocal stop
        if setup.dataset.validation is None:
            return True
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
        logs.flush()
        checkpoints.replace_record(start, make_record(setup, stop, meter, evaluated=True, rollbacks=rollbacks))
    step, compiling, programs = start, True, set[Any]()
    with feed(setup, start, rollbacks) as batches, Trace(profile, meter) as trace:
        while step < plan.total_steps and not stop.stopped:
            checkpoints.check()
            tracing = trace.dispatch(step)
            before, step = step, plan.dispatch_end(step)
            program = (step - before, frozen := plan.frozen(before))
            given = batches(before, step)
            if (new := program not in programs) and before > start:
                meter.read(before)  # before the time that it takes to compile
            with tracing:
                state, (metrics, extra) = setup.train(state, given, key, frozen=frozen)
            if before > start and plan.logs(before):  # now that the next step is under way
                meter.read(before)
            meter.add(step, metrics, extra)
            if new:
                meter.skip_time()  # the call compiled
                programs.add(program)
                compiling = True
            logs.advance(step, plan.epochs_done(step))
            asked = stop_after is not None and step >= stop_after
            signalled = request.poll()
            if not (plan.saves(step) or asked or signalled):
                continue
            meter.read(step)
            if not setup.finite(state):
                raise DivergenceError(f"the parameters are not finite after step {step}.")
            done = evaluated(step) if plan.evaluates(step) else True
            record = make_record(setup, stop, meter, evaluated=done, rollbacks=rollbacks)
            logs.flush()
            checkpoints.save(step, state, record, best_step=stop.best_step, planned=plan.saves(step) and done)
            if compiling:  # for the last time, but for what another number of steps or phase of freezing needs
                give_back_memory()
                compiling = False
            meter.skip_time()
            if asked or signalled or not done:
                checkpoints.wait()
                if signalled or not done:
                    raise request.exception()
                raise Interrupted(f"stopped after step {step}, as asked")
    return _Trained(state, step, stop, meter, rollbacks)


def _finish(
    setup: Setup, checkpoints: Checkpoints, trained: _Trained, request: StopRequest, workdir: Path, began: float
) -> FitResult:
    best_step = trained.step if trained.stop.best_step is None else trained.stop.best_step
    checkpoints.wait()
    best = checkpoints.restore_state(best_step, setup.abstract_state)
    results = {}
    for name in ("test", "validation"):
        if (split := setup.dataset.splits.get(name)) is not None:
            if (values := _evaluate(setup, best, split, request)) is None:
                raise request.exception()
            results[name] = values
    return FitResult(
        test=results["test"],
        validation=results.get("validation", {}),
        best_step=best_step,
        steps=trained.step,
        seconds=time.perf_counter() - began,
        images_per_second=trained.meter.images / max(trained.meter.seconds, 1e-9),
        skipped_updates=trained.meter.skipped,
        rollbacks=trained.rollbacks,
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
        stopping=request.poll,
    )
