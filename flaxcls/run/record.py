"""The JSON record of a checkpoint: with the state's arrays, all that is needed to go on or to predict."""

import dataclasses
from typing import Any

import jax

from flaxcls.early_stopping import EarlyStopping
from flaxcls.errors import InputError
from flaxcls.run.meter import Meter
from flaxcls.run.setup import Setup

FORMAT = 1


def make_record(setup: Setup, stop: EarlyStopping, meter: Meter, *, evaluated: bool) -> dict[str, Any]:
    """Returns what a checkpoint holds beside the state.

    evaluated: whether the evaluation that is due after its step, if one is, has been done.
    """
    return {
        "format": FORMAT,
        "config": dataclasses.asdict(setup.config),
        "early_stopping": dataclasses.asdict(stop),
        "evaluated": evaluated,
        "meter": meter.as_record(),
        **_identity(setup),
    }


def check_record(record: dict[str, Any], setup: Setup) -> None:
    """Raises InputError where a checkpoint is of other data, another model or another optimizer than this run."""
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


def _identity(setup: Setup) -> dict[str, Any]:
    dataset = setup.dataset
    paths = jax.tree_util.tree_leaves_with_path(setup.abstract_state)
    return {
        "data": dataset.name,
        "examples": [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)],
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": setup.mean.tolist(),
        "std": setup.std.tolist(),
        "arrays": {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in paths},
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else text[:200] + " ..."
