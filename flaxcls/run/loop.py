"""`fit`: dispatches training steps and, between them, logs, evaluates and saves. Nothing else knows about time."""

import contextlib
import math
import time
from collections.abc import Callable
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
from flaxcls.early_stopping import EarlyStopping, make_early_stopping, update
from flaxcls.errors import DivergenceError, InputError, Interrupted, StorageError, WorkerError
from flaxcls.run import messages
from flaxcls.run.checkpoint import Checkpoints, Restored
from flaxcls.run.evaluation import evaluate
from flaxcls.run.examples import count_unread, keep_listing, make_recorder
from flaxcls.run.loader import feed
from flaxcls.run.logs import Logs
from flaxcls.run.meter import Meter
from flaxcls.run.multihost.preemption import StopRequest
from flaxcls.run.multihost.sync import is_first, path_from_first, run_on_all
from flaxcls.run.profiling import Trace
from flaxcls.run.program import compare_programs
from flaxcls.run.result import FitResult
from flaxcls.run.resume import check_record, identify, load_again, make_record, start_stopping, within_memory
from flaxcls.run.runtime import give_back_memory
from flaxcls.run.setup import Setup, make_setup
from flaxcls.run.utilization import measure_work
from flaxcls.run.workdir import (
    CHECKPOINTS,
    PROFILE,
    RESULT,
    check_workdir,
    note_changes,
    open_workdir,
    with_absolute_paths,
)
from flaxcls.state import TrainState
from flaxcls.storage import as_path, write_whole
from flaxcls.types import EvalParams
from flaxcls.validation import validate


def fit(
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
    stop_after: int | None = None,
    console: Console | None = None,
) -> FitResult:
    """Trains a classifier and tests its best parameters by the validation split, or its last ones without that split.

    Args:
      config: decides the numbers.
      dataset: the caller's own data, for example from `flaxcls.data.from_arrays`; `config.data` is then not read.
      model: the caller's own linen module; of `config.model` only init_images is then read.
      tx: the caller's own optimizer; of `config.optim` only ema_decay, accumulate and freeze are then read.
      eval_params: (opt_state, params) -> the parameters to evaluate, for a `tx` that trains others; for optax's own
        optimizers it is found.
      workdir: the run directory, which may be gs://BUCKET/PATH; None makes a new one below runs/.
      resume: go on with the run in `workdir`, from its latest checkpoint. The periods of logs, evaluation and
        checkpoints may change, and so may patience and min_delta.
      overwrite: replace the run in `workdir`.
      allow_changes: resume even with a configuration that gives other numbers; changes.jsonl keeps the changes.
      stop_after: save and stop after this step, or at the end of its dispatch; `resume` goes on as if the run had not
        stopped.
      console: shows the progress; `Console(quiet=True)` shows nothing.

    Returns:
      The result of the run; result.json holds all of it but `state` and `workdir`.

    Raises:
      InputError: if configuration, data or run directory cannot be used; nothing has been written.
      DivergenceError: if the loss, its gradient or the parameters are NaN or infinite and loop.on_nan does not help;
        the last checkpoint stays.
      StorageError: if checkpoints or logs can no longer be written; the last whole checkpoint stays.
      WorkerError: if a process that makes batches is killed; the last whole checkpoint stays.
      Interrupted: after `stop_after`.
      KeyboardInterrupt, SystemExit: after SIGINT and SIGTERM, when the current step is done and saved.
    """
    began = time.perf_counter()
    workdir = None if workdir is None else as_path(workdir)
    console = (console or Console()) if is_first() else Console(quiet=True)
    validate(config)
    config = with_absolute_paths(config)
    if stop_after is not None and stop_after < 1:
        raise InputError(f"stop_after is {stop_after}, but must be 1 or more: the step to stop after.")
    check_workdir(workdir, config, resume=resume, overwrite=overwrite, allow_changes=allow_changes)
    if dataset is None:
        dataset = load_again(config.data, workdir) if resume and workdir else load_dataset(within_memory(config.data))
    setup = make_setup(config, dataset, model, tx, eval_params)
    name = f"{dataset.name}-{type(setup.model).__name__.lower()}"
    with StopRequest() as request, contextlib.ExitStack() as stack:
        opened = open_workdir(
            workdir, config, name=name, resume=resume, overwrite=overwrite, allow_changes=allow_changes
        )
        workdir = path_from_first(lambda: stack.enter_context(opened))
        try:
            with Checkpoints(workdir / CHECKPOINTS) as checkpoints:
                record = make_recorder(workdir, setup.dataset)
                run = _Run(config, setup, checkpoints, request, workdir, console, began, stop_after, record)
                result = _train_and_test(run, resume=resume, allow_changes=allow_changes)
            if is_first():
                write_whole(workdir / RESULT, result.to_json())
        except (StorageError, OSError) as error:
            raise StorageError(f"{error} {messages.RESUMABLE.format(workdir=workdir)}") from error
        except WorkerError as error:
            raise WorkerError(f"{error} {messages.RESUMABLE.format(workdir=workdir)}") from error
        return result


@dataclass(frozen=True)
class _Run:
    """The parts of a run that stay the same while `fit` runs."""

    config: Config
    setup: Setup
    checkpoints: Checkpoints
    request: StopRequest
    workdir: Path
    console: Console
    began: float
    stop_after: int | None
    record_unread: Callable[[Callable[[str], None]], None]

    @property
    def identity(self) -> dict[str, Any]:
        setup = self.setup
        return identify(setup.dataset, setup.mean, setup.std, setup.abstract_state)


@dataclass(frozen=True)
class _Trained:
    """The end of training."""

    state: TrainState
    step: int
    stop: EarlyStopping
    meter: Meter
    rollbacks: int


def _train_and_test(run: _Run, *, resume: bool, allow_changes: bool) -> FitResult:
    """Trains, goes back to a checkpoint where loop.on_nan says so, and tests the best parameters."""
    loop, abstract_state = run.config.loop, run.setup.abstract_state
    check = partial(check_record, identity=run.identity)
    restored = run.checkpoints.restore_newest(abstract_state, check) if resume else None
    start = restored.step if restored else 0
    if run.stop_after is not None and run.stop_after <= start:
        raise InputError(f"stop_after is {run.stop_after}, but this run stands at step {start}: name a later step.")
    recorded = restored.record.get("program") if restored else None
    changes = compare_programs(recorded, run.setup.program, allow_changes=allow_changes)
    changes = note_changes(run.workdir, run.config, start, changes) if is_first() else []
    keep_listing(run.workdir, run.setup.dataset)
    rollbacks = restored.record.get("rollbacks", 0) if restored else 0
    diverged: DivergenceError | None = None
    while True:
        place = run.workdir if is_first() else None
        total_steps = run.setup.plan.total_steps
        with Logs(place, console=run.console, total_steps=total_steps, restored=restored) as logs:
            if diverged is None:
                messages.introduce(logs, run.setup, run.config, run.workdir, restored, changes)
            else:
                back_to = restored.step if restored else None
                logs.say(messages.rolled_back(diverged, back_to, rollbacks, loop.nan_limit))
                messages.say_passed_over(logs, run.workdir, restored)
            try:
                return _test(run, _train(run, logs, restored, rollbacks), logs)
            except DivergenceError as error:
                run.checkpoints.wait()
                if loop.on_nan != "rollback" or rollbacks >= loop.nan_limit:
                    left = messages.after_divergence(
                        run.checkpoints.latest_step, run.workdir, rollbacks, may_roll_back=loop.on_nan == "stop"
                    )
                    raise DivergenceError(f"{error} {left}") from error
                diverged = error
            except (Interrupted, KeyboardInterrupt, SystemExit):
                logs.say(f"stopped; --workdir {run.workdir} --resume goes on from the latest checkpoint")
                raise
        restored = run.checkpoints.roll_back(abstract_state, check)
        rollbacks += 1


def _train(run: _Run, logs: Logs, restored: Restored | None, rollbacks: int) -> _Trained:
    """Trains from `restored`, or from the beginning, to the last step or until early stopping ends it."""
    setup, plan, checkpoints = run.setup, run.setup.plan, run.checkpoints
    key = random.key(run.config.seed)
    start, state, record = (restored.step, restored.state, restored.record) if restored else (0, setup.create(key), {})
    key = random.fold_in(key, rollbacks) if rollbacks else key
    new = make_early_stopping(run.config.stop, skip=plan.skipped_evaluations)
    stop, problem = start_stopping(new, restored, plan, checkpoints, setup.abstract_state)
    if problem:
        logs.say(problem)
    meter = _make_meter(run, logs, record)
    make = partial(make_record, run.config, run.identity, setup.program, meter=meter, rollbacks=rollbacks)
    validate_after = partial(_validate, run, logs, meter)

    if restored and not record["evaluated"]:
        stop, finished = validate_after(state, stop, start)
        if not finished:
            raise run.request.exception()
        logs.flush()
        checkpoints.replace_record(start, make(stop=stop, evaluated=True))

    step, compiling, programs = start, True, set[Any]()
    profile = run.workdir / PROFILE if run.config.loop.profile and is_first() else None
    with feed(setup.loader, plan, start, rollbacks) as batches, Trace(profile, meter) as trace:
        while step < plan.total_steps and not stop.stopped:
            checkpoints.check()
            tracing = trace.dispatch(step)
            before, step = step, plan.dispatch_end(step)
            frozen = plan.frozen(before)
            program = (step - before, frozen)
            given = batches(before, step)
            compiles = program not in programs
            if compiles and before > start:
                meter.read(before)  # before the time that compiling takes
            with tracing:
                state, (metrics, optimizer_metrics) = setup.train(state, given, key, frozen=frozen)
            if before > start and plan.logs(before):  # now that the next step runs
                meter.read(before)
            meter.add(step, metrics, optimizer_metrics)
            if compiles:
                meter.skip_time()
                programs.add(program)
                compiling = True
            logs.advance(step, plan.epochs_done(step))
            run.record_unread(logs.say)

            asked = run.stop_after is not None and step >= run.stop_after
            signalled = run.request.poll()
            if not (plan.saves(step) or asked or signalled):
                continue
            meter.read(step)
            if not setup.finite(state):
                raise DivergenceError(f"the parameters are not finite after step {step}.")
            finished = True
            if plan.evaluates(step):
                stop, finished = validate_after(state, stop, step)
            logs.flush()
            saved, planned = make(stop=stop, evaluated=finished), plan.saves(step) and finished
            checkpoints.save(step, state, saved, best_step=stop.best_step, planned=planned)
            if compiling:  # another program is compiled only for another number of steps or phase of freezing
                give_back_memory()
                compiling = False
            meter.skip_time()
            if asked or signalled or not finished:
                checkpoints.wait()
                if signalled or not finished:
                    raise run.request.exception()
                raise Interrupted(f"stopped after step {step}, as asked")
    return _Trained(state, step, stop, meter, rollbacks)


def _make_meter(run: _Run, logs: Logs, record: dict[str, Any]) -> Meter:
    """Returns the meter that writes the lines of training, with their speed, to the logs."""
    loop, plan = run.config.loop, run.setup.plan
    work = measure_work(run.setup.model, run.setup.dataset.image_shape, plan.batch_size)

    def write(step: int, values: dict[str, float], images_per_second: float) -> None:
        logs.write("train", step, plan.epochs_done(step), {**values, **work.speed(images_per_second)})

    return Meter(
        batch_size=plan.batch_size,
        logs=plan.logs,
        record=record.get("meter", {}),
        write=write,
        say=logs.say,
        skip_limit=loop.nan_limit if loop.on_nan == "skip" else 0,
    )


def _validate(
    run: _Run, logs: Logs, meter: Meter, state: TrainState, stop: EarlyStopping, step: int
) -> tuple[EarlyStopping, bool]:
    """Evaluates the validation split after `step`, if there is one.

    Returns:
      (controller, finished): the controller after this evaluation and True, or `stop` and False if a signal ended it.
    """
    plan = run.setup.plan
    if run.setup.dataset.validation is None:
        return stop, True
    values = _evaluate(run, state, run.setup.dataset.validation)
    run.record_unread(logs.say)
    if values is None:
        return stop, False
    if not math.isfinite(values["loss"]):
        raise DivergenceError(f"the validation loss is {values['loss']} after step {step}.")
    stop = update(stop, values[run.config.stop.metric], step)
    if stop.stopped:
        meter.write(step)
    epoch = plan.epochs_done(step)
    logs.write("validation", step, epoch, values)
    logs.say(messages.evaluation_line(epoch, step, values, is_best=stop.best_step == step))
    return stop, True


def _test(run: _Run, trained: _Trained, logs: Logs) -> FitResult:
    """Evaluates the best parameters on the test and validation splits, and returns the result of the run."""
    best_step = trained.step if trained.stop.best_step is None else trained.stop.best_step
    run.checkpoints.wait()
    best = run.checkpoints.restore_state(best_step, run.setup.abstract_state)
    results = {}
    for name in ("test", "validation"):
        if (split := run.setup.dataset.splits.get(name)) is not None:
            if (values := _evaluate(run, best, split)) is None:
                raise run.request.exception()
            results[name] = values
    run_on_all(lambda: run.record_unread(logs.say), "keep which examples it could not read")  # before they are counted
    return FitResult.of_state(
        best,
        test=results["test"],
        validation=results.get("validation", {}),
        best_step=best_step,
        steps=trained.step,
        seconds=time.perf_counter() - run.began,
        images_per_second=trained.meter.images / max(trained.meter.seconds, 1e-9),
        skipped_updates=trained.meter.skipped,
        rollbacks=trained.rollbacks,
        unread=count_unread(run.workdir),
        workdir=run.workdir,
    )


def _evaluate(run: _Run, state: TrainState, split: Split) -> dict[str, float] | None:
    """Returns loss and accuracy of a split, or None if a signal ended the evaluation."""
    setup = run.setup
    options: dict[str, Any] = {"batch_size": setup.eval_batch_size, "mesh": setup.mesh}
    return evaluate(setup.evaluate, state, split, stopping=run.request.poll, **options)
