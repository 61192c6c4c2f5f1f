"""Reads a trained model from its run directory, with the temperature that is kept there."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcls.analysis.classifier import Classifier
from flaxcls.config_json import from_json
from flaxcls.contract import init_variables
from flaxcls.data.preparation import Preparation
from flaxcls.errors import InputError, StorageError
from flaxcls.models import build_model
from flaxcls.run.checkpoint_files import FORMAT, read_arrays, read_record, read_steps
from flaxcls.run.resume import as_found
from flaxcls.run.workdir import CHECKPOINTS, CONFIG
from flaxcls.storage import as_path, write_whole

CALIBRATION = "calibration.json"


def load_run(workdir: str | Path, *, model: nn.Module | None = None, step: int | None = None) -> Classifier:
    """Returns the trained model of a run, with the parameters that are the best so far on the validation split.

    Without a validation split, the parameters are the latest.

    Args:
      workdir: directory of a run that has ended, was stopped or is still training.
      model: the caller's own module, if the run was trained with one.
      step: step of another checkpoint, instead of the best one.

    Raises:
      InputError: if there is no run, no readable checkpoint, or the checkpoint is of another model.
    """
    workdir = as_path(workdir)
    config_path(workdir)
    directory = workdir / CHECKPOINTS
    steps = read_steps(directory)
    if not steps:
        raise InputError(f"the run in {workdir} has no checkpoint yet: train it for longer.")
    if step is not None and step not in steps:
        raise InputError(f"step is {step}, but the checkpoints in {directory} are of the steps {_listed(steps)}.")
    try:
        newest = read_record(directory, max(steps))
        best = newest["early_stopping"]["best_step"]
        chosen = step if step is not None else best if best in steps else max(steps)
        record = read_record(directory, chosen)
        if record["format"] > FORMAT:
            raise InputError(
                f"the checkpoint in {workdir} has the format {record['format']}, and this version of flaxcls reads up "
                f"to {FORMAT}: install the version that wrote it, or a later one."
            )
        arrays = read_arrays(directory, chosen, record)
    except (StorageError, KeyError, TypeError) as error:
        raise InputError(
            f"the checkpoint in {workdir} cannot be used: {error} There are checkpoints of the steps {_listed(steps)}: "
            "choose another step."
        ) from error
    config = from_json(json.dumps(record["config"]))
    config = dataclasses.replace(config, data=as_found(config.data, record))
    normalized = config.augment.normalize
    loaded = Classifier(
        config=config,
        model=model or build_model(config.model, len(record["class_names"])),
        variables=_variables(arrays),
        class_names=tuple(record["class_names"]),
        preparation=Preparation.of_record(record),
        mean=tuple(record["mean"]) if normalized else None,
        std=tuple(record["std"]) if normalized else None,
        step=chosen,
        sha256=record["sha256"],
        data=record["data"],
        examples=tuple(record["examples"]),
        fingerprint=record.get("fingerprint", ""),
        temperature=_temperature(workdir, record),
    )
    return dataclasses.replace(loaded, variables=_fitting(loaded, workdir))


def config_path(workdir: Path) -> Path:
    """Returns the path of a run's configuration. Raises InputError if `workdir` is no run directory."""
    path = workdir / CONFIG
    if not path.is_file():
        raise InputError(f"{workdir} has no {CONFIG}, so it is no run directory: name one that flaxcls.train has made.")
    return path


def keep_temperature(workdir: Path, classifier: Classifier, temperature: float) -> Classifier:
    """Writes a temperature, fitted on the validation split, to the run directory; returns the classifier with it."""
    text = json.dumps({"temperature": temperature, "step": classifier.step, "sha256": classifier.sha256})
    write_whole(workdir / CALIBRATION, text + "\n")
    return dataclasses.replace(classifier, temperature=temperature)


def _temperature(workdir: Path, record: dict[str, Any]) -> float | None:
    try:
        kept = json.loads((workdir / CALIBRATION).read_text())
        return float(kept["temperature"]) if kept["sha256"] == record["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _variables(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the module's variables, like `TrainState.eval_variables`."""
    average = any(path.startswith(".ema[") for path in arrays)
    trees: dict[str, Any] = {}
    for path, array in arrays.items():
        field, *keys = (part.rstrip("'] .") for part in path.lstrip(".").split("['"))
        if field == ("ema" if average else "params"):
            keys = ["params", *keys]
        elif field != "model_state":
            continue
        tree = trees
        for key in keys[:-1]:
            tree = tree.setdefault(key, {})
        tree[keys[-1]] = array
    return trees


def _fitting(classifier: Classifier, workdir: Path) -> dict[str, Any]:
    """Returns the variables for the module, with random keys typed again, which checkpoints hold as numbers.

    Raises InputError if the module needs other variables than the checkpoint holds.
    """
    image = jax.ShapeDtypeStruct((1, *classifier.image_shape), jnp.float32)
    expected = jax.eval_shape(partial(init_variables, classifier.model), jax.random.key(0), image)
    expected = {name: values for name, values in expected.items() if values}

    def is_key(leaf: Any) -> bool:
        return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))

    def described(leaf: Any) -> str:
        leaf = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        # an average has at least 32 bits, whatever the parameters have
        kind = jnp.promote_types(leaf.dtype, jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.dtype
        return f"{kind}{list(leaf.shape)}"

    def shapes(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): described(leaf) for path, leaf in leaves}

    def typed(needed: Any, stored: Any) -> Any:
        return jax.random.wrap_key_data(stored, impl=_find_impl(needed.dtype)) if is_key(needed) else stored

    needed, stored = shapes(expected), shapes(classifier.variables)
    if needed != stored:
        name = next(name for name in {**stored, **needed} if stored.get(name) != needed.get(name))
        raise InputError(
            f"the checkpoint in {workdir} is of another model: {name} is {stored.get(name, 'not in it')}, but the "
            f"model has {needed.get(name, 'no such array')}. Give load_run the module that the run was trained with."
        )
    return dict(jax.tree.map(typed, expected, classifier.variables))


def _find_impl(dtype: Any) -> str:
    """Returns the name of the random number generator that keys of this type are for."""
    names = ("threefry2x32", "rbg", "unsafe_rbg")
    return next(name for name in names if jax.eval_shape(partial(jax.random.key, 0, impl=name)).dtype == dtype)


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))
