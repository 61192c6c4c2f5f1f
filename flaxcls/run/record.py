"""The JSON record of a checkpoint: with the state's arrays, all that is needed to go on or to predict."""

import dataclasses
from typing import Any

import jax

from flaxcls.early_stopping import EarlyStopping
from flaxcls.errors import InputError, StorageError
from flaxcls.run.meter import Meter
from flaxcls.run.setup import Setup
from flaxcls.validation import type_problems

FORMAT = 1


def make_record(setup: Setup, stop: EarlyStopping, meter: Meter, *, evaluated: bool, rollbacks: int) -> dict[str, Any]:
    """Returns what a checkpoint holds beside the state.

    evaluated: whether the evaluation that is due after its step, if one is, has been done.
    rollbacks: how often the run has gone back to a checkpoint, which decides the data order.
    """
    return {
        "format": FORMAT,
        "config": dataclasses.asdict(setup.config),
        "early_stopping": dataclasses.asdict(stop),
        "evaluated": evaluated,
        "rollbacks": rollbacks,
        "meter": meter.as_record(),
        **_identity(setup),
    }


def check_record(record: dict[str, Any], setup: Setup) -> None:
    """Looks whether a run with `setup` can go on from a checkpoint with this record.

    Raises:
      StorageError: where the record lacks what every record holds.
      InputError: where it is of other data, another model or another optimizer, or of a later version of flaxcls.
    """
    if type(record.get("format")) is not int:
        raise StorageError("the record names no format.")
    if record["format"] > FORMAT:
        raise InputError(
            f"the checkpoint has the format {record['format']}, and this version of flaxcls reads up to {FORMAT}: "
            "install the version that wrote it, or a later one."
        )
    _check_parts(record)
    for name, ours in _identity(setup).items():
        theirs = record.get(name)
        if theirs == ours:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            differing = next(key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key))
            name, theirs, ours = f"{name} {differing}:", theirs.get(differing, "none"), ours.get(differing, "none")
        raise InputError(
            f"the run was started with {name} {_short(theirs)}, but is resumed with {_short(ours)}: give "
            "it the data, model and optimizer that it was started with, or start a new run in another workdir."
        )


def _check_parts(record: dict[str, Any]) -> None:
    """Raises StorageError where a part is missing or is not what a run could have written."""
    kinds = {"config": dict, "early_stopping": dict, "evaluated": bool, "meter": dict, "sha256": str}
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            raise StorageError(f"the record has no {name} that could be read.")
    rollbacks, numbers = record.get("rollbacks", 0), dict(record["meter"])
    numbers |= {f"sums of {name}": value for name, value in numbers.pop("sums").items()}
    if type(rollbacks) is not int or rollbacks < 0 or not all(type(n) in (int, float) for n in numbers.values()):
        raise StorageError("the record holds other things than numbers where numbers should be.")
    problems = type_problems(EarlyStopping(**record["early_stopping"]))
    if problems or type(record["config"]["loop"]["eval_every"]) is not int:
        raise StorageError(f"the record is not a run's: {(*problems, 'loop.eval_every is no integer')[0]}")


def _identity(setup: Setup) -> dict[str, Any]:
    dataset = setup.dataset
    paths = jax.tree_util.tree_leaves_with_path(setup.abstract_state)
    return {
        "data": dataset.name,
        "examples": list(dataset.sizes),
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": setup.mean.tolist(),
        "std": setup.std.tolist(),
        "arrays": {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in paths},
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else text[:200] + " ..."
