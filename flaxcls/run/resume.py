"""The JSON record of a checkpoint, and the early-stopping controller, from which a resumed run goes on."""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxcls.config import Config, DataConfig
from flaxcls.data import Dataset, load_dataset
from flaxcls.data.preparation import Preparation
from flaxcls.early_stopping import EarlyStopping
from flaxcls.errors import InputError, StorageError
from flaxcls.run.checkpoint import Checkpoints, Restored
from flaxcls.run.checkpoint_files import FORMAT, damage, read_record, read_steps
from flaxcls.run.examples import read_listing
from flaxcls.run.meter import Meter
from flaxcls.run.multihost.sync import all_agree
from flaxcls.run.plan import Plan
from flaxcls.run.runtime import available_memory
from flaxcls.run.workdir import CHECKPOINTS
from flaxcls.state import TrainState
from flaxcls.validation import type_problems

NEW = ("fingerprint", "preparation")  # parts of the identity that records of earlier versions lack


def identify(dataset: Dataset, mean: np.ndarray, std: np.ndarray, abstract_state: TrainState) -> dict[str, Any]:
    """Returns the values that must be equal when a run is resumed: its data, and the shapes and types of its arrays."""
    paths = jax.tree_util.tree_leaves_with_path(abstract_state)
    return {
        "data": dataset.name,
        "examples": list(dataset.sizes),
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "fingerprint": dataset.fingerprint,
        "preparation": None if dataset.preparation is None else dataset.preparation.as_record(),
        "arrays": {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in paths},
    }


def within_memory(config: DataConfig) -> DataConfig:
    """Returns the configuration with no more memory for decoded images than is there now.

    Images that need more are then read when they are needed, with the same results, and the system ends no process.
    """
    available = available_memory()
    return config if available is None else replace(config, memory=min(config.memory, available / 2**30))


def load_again(config: DataConfig, workdir: Path) -> Dataset:
    """Returns the data set of the run in `workdir`: with what the run has found in it, see `as_found`.

    If the run keeps a list of its examples, they are those, and mean and deviation are those of the run, as one of the
    images may no longer be there.
    """
    config, listing, directory = within_memory(config), read_listing(workdir), workdir / CHECKPOINTS
    for step in reversed(read_steps(directory)):
        with contextlib.suppress(StorageError, KeyError, TypeError):
            record = read_record(directory, step)
            found, statistics = as_found(config, record), (np.array(record["mean"]), np.array(record["std"]))
            break
    else:
        return load_dataset(config, listing)
    dataset = load_dataset(found, listing)
    is_listed = listing is not None and dataset.listing is listing
    return replace(dataset, statistics=statistics) if is_listed else dataset


def load_trained_on(config: DataConfig, workdir: Path) -> Dataset:
    """Returns the data set of the run in `workdir` for an evaluation, which leaves out what can no longer be read.

    config: of the run, maybe with another place of the data; with other options it is another data set.
    """
    config, listing = within_memory(config), read_listing(workdir)
    if listing is not None and config.source == "folder":
        config = replace(config, unreadable="replace")
    return load_dataset(config, listing)


def as_found(config: DataConfig, record: Mapping[str, Any]) -> DataConfig:
    """Returns the configuration with the size and the range of values that a run has found, so that they stay.

    record: of a checkpoint of the run.
    """
    if config.source not in ("folder", "tfds"):
        return config
    found = Preparation.of_record(record)
    is_old = "preparation" not in record  # earlier versions obeyed image_size only for images that they had to resize
    return replace(
        config,
        image_size=found.size if is_old or config.image_size is None else config.image_size,
        value_range=found.value_range if config.value_range is None else config.value_range,
    )


def make_record(
    config: Config,
    identity: dict[str, Any],
    program: dict[str, str],
    stop: EarlyStopping,
    meter: Meter,
    *,
    evaluated: bool,
    rollbacks: int,
) -> dict[str, Any]:
    """Returns the record of a checkpoint: everything that it holds besides the state.

    Args:
      config: of the run.
      identity: the result of `identify`.
      program: the result of `describe_program`, or {}.
      stop: the early-stopping controller.
      meter: its sums and times.
      evaluated: False if an evaluation after this step is due but not done.
      rollbacks: how often the run has gone back to a checkpoint, which decides the data order.
    """
    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "early_stopping": dataclasses.asdict(stop),
        "evaluated": evaluated,
        "rollbacks": rollbacks,
        "meter": meter.as_record(),
        "program": program,
        **identity,
    }


def check_record(record: dict[str, Any], identity: dict[str, Any]) -> None:
    """Checks that a run with this `identity` can go on from a checkpoint with this record.

    Raises:
      StorageError: if a part is missing that every record has.
      InputError: if the record comes from other data, model or optimizer, or from a later version of flaxcls.
    """
    if type(record.get("format")) is not int:
        raise StorageError("the record has no format number.")
    if record["format"] > FORMAT:
        raise InputError(
            f"the checkpoint has the format {record['format']}, and this version of flaxcls reads up to {FORMAT}: "
            "install the version that wrote it, or a later one."
        )
    _check_parts(record)
    if identity.get("fingerprint") and identity["fingerprint"] == record.get("fingerprint"):
        identity = {**identity, "data": record["data"]}  # the same files under another name
    preparation = identity.get("preparation") or {"value_range": None}
    if "preparation" not in record and preparation["value_range"] and not preparation["of_arrays"]:
        raise InputError(
            "the run was started by a version of flaxcls that read 8 bits of each value, and this one reads all: start "
            "a new run in another workdir."
        )
    if record.get("preparation"):  # that of an earlier version lacks later fields
        record = {**record, "preparation": Preparation.of_record(record).as_record()}
    for name, current in identity.items():
        recorded = record.get(name)
        if name == "preparation" and isinstance(recorded, dict) and isinstance(current, dict):
            current = {key: value for key, value in current.items() if key != "alpha" or key in recorded}
        if recorded == current or (name in NEW and name not in record):
            continue
        if isinstance(current, dict) and isinstance(recorded, dict):
            key = next(key for key in {**recorded, **current} if recorded.get(key) != current.get(key))
            name, recorded, current = f"{name} {key}:", recorded.get(key, "none"), current.get(key, "none")
        raise InputError(
            f"the run was started with {name} {_shorten(recorded)}, but is resumed with {_shorten(current)}: "
            "give it the data, model and optimizer that it was started with, or start a new run in another workdir."
        )


def _check_parts(record: dict[str, Any]) -> None:
    """Raises StorageError if a part is missing, or cannot come from a run."""
    kinds = {"config": dict, "early_stopping": dict, "evaluated": bool, "meter": dict, "sha256": str}
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            raise StorageError(f"the record has no readable {name}.")
    if not isinstance(record.get("program", {}), dict):
        raise StorageError("the record has no readable program.")
    rollbacks, numbers = record.get("rollbacks", 0), dict(record["meter"])
    numbers |= {f"sums of {name}": value for name, value in numbers.pop("sums").items()}
    if type(rollbacks) is not int or rollbacks < 0 or not all(type(n) in (int, float) for n in numbers.values()):
        raise StorageError("a value in the record should be a number, but is not.")
    problems = type_problems(EarlyStopping(**record["early_stopping"]))
    if problems or type(record["config"]["loop"]["eval_every"]) is not int:
        problem = (*problems, "loop.eval_every is not an integer")[0]
        raise StorageError(f"the record does not come from a run: {problem}")


def start_stopping(
    new: EarlyStopping, restored: Restored | None, plan: Plan, checkpoints: Checkpoints, abstract_state: TrainState
) -> tuple[EarlyStopping, str | None]:
    """Returns the early-stopping controller that this session starts with, and a line if the best step is forgotten.

    For a new run it is `new`. A resumed one takes its counters and its best step from the checkpoint, and the settings
    from `new`. If the checkpoint of the best step cannot be read, it is set aside, and later steps compete.
    """
    if restored is None:
        return new, None
    stop = _continue_stopping(new, restored.record, plan, restored.step)
    if stop.best_step in (None, restored.step):
        return stop, None
    problem = _check_best(stop.best_step, checkpoints, abstract_state)
    return (stop, None) if problem is None else (replace(stop, best=None, best_step=None), problem)


def _continue_stopping(new: EarlyStopping, record: dict[str, Any], plan: Plan, step: int) -> EarlyStopping:
    """Returns the controller of the record of `step`, with the settings of `new`."""
    old = EarlyStopping(**record["early_stopping"])
    if old.mode != new.mode:  # the best by one metric says nothing about another
        return replace(new, seen=old.seen)
    seen = old.seen
    if plan.eval_epochs != record["config"]["loop"]["eval_every"]:  # count evaluations with the period of this session
        seen = plan.epochs_done(step) // plan.eval_epochs - (0 if record["evaluated"] else 1)
    return replace(old, patience=new.patience, min_delta=new.min_delta, skip=new.skip, seen=max(seen, 0))


def _check_best(step: int, checkpoints: Checkpoints, abstract_state: TrainState) -> str | None:
    """Returns a message if the best checkpoint, of `step`, cannot be read, and sets it aside; else None."""
    if not all_agree(step in checkpoints.steps):
        return f"the best checkpoint, step {step}, no longer exists; the best of the later ones replaces it"
    try:
        checkpoints.restore_state(step, abstract_state)
    except Exception as error:
        problem = damage(error)
        place = checkpoints.set_aside(step)
        return (
            f"the best checkpoint, step {step}, is damaged ({problem}) and was moved to {place}; the best of the later "
            "ones replaces it"
        )
    return None


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else text[:200] + " ..."
