"""The output of a trained model for whole splits, and the temperature fitted on the validation split."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from flaxcls.analysis.calibration import fit_temperature
from flaxcls.analysis.classifier import Classifier
from flaxcls.analysis.loading import keep_temperature
from flaxcls.analysis.own_data import EVALUATE, load_validation_split, was_given
from flaxcls.data import Split
from flaxcls.data.batches import pad_rows
from flaxcls.data.images import Images, read_rows
from flaxcls.errors import InputError
from flaxcls.sharding import batch_sharding, make_mesh, on_devices, replicated


def predict_splits(classifier: Classifier, splits: list[Split]) -> list[tuple[Split, np.ndarray]]:
    """Returns for each split its examples that can be read and the logits f32[n k] of them, computed on all devices.

    Raises InputError if a logit is not finite, and for an example that cannot be read if the split does not leave it
    out, or has no other.
    """
    mesh = make_mesh()
    most = max(len(split.labels) for split in splits)
    # one size, so that it compiles once; a multiple of the devices, so that they share it evenly
    size = -(-min(classifier.config.loop.eval_batch_size, max(most, 1)) // mesh.size) * mesh.size
    variables = on_devices(classifier.variables, replicated(mesh))
    compiled = jax.jit(lambda variables, images: classifier.forward(variables, images), out_shardings=replicated(mesh))
    results = []
    for split in splits:
        if isinstance(split.images, Images):
            split.images.check_any_readable()
        rows = np.zeros((len(split.labels), len(classifier.class_names)), np.float32)
        readable = np.ones(len(rows), bool)
        for start in range(0, len(rows), size):
            images, readable[start : start + size] = read_rows(split.images, slice(start, start + size))
            logits = compiled(variables, on_devices(pad_rows(images, size), batch_sharding(mesh)))
            rows[start : start + size] = np.asarray(logits)[: len(images)]
        wrong = int((~np.isfinite(rows)).any(axis=1).sum())
        if wrong:
            raise InputError(
                f"the model's output is NaN or infinite for {wrong} of {len(rows)} examples: the parameters of step "
                f"{classifier.step} cannot be used. Choose another step (--step)."
            )
        results.append((split, rows) if readable.all() else (split.take(np.flatnonzero(readable)), rows[readable]))
    return results


def calibrated(workdir: Path, classifier: Classifier) -> tuple[Classifier, str | None]:
    """Returns the classifier with a temperature (Guo et al. 2017); if it has none, one is fitted and stored in the run.

    Returns:
      The classifier and None. If no validation split can be loaded: the classifier unchanged, and the reason.
    """
    if classifier.temperature is not None:
        return classifier, None
    try:
        split = load_validation_split(workdir, classifier)
    except InputError as error:
        advice = f" Call `{EVALUATE}` in Python once: it fits a temperature, and the run keeps it."
        return classifier, f"{error}{advice if was_given(classifier) else ''}"
    ((split, logits),) = predict_splits(classifier, [split])
    return with_temperature(workdir, classifier, fit_temperature(logits, split.labels)), None


def with_temperature(workdir: Path, classifier: Classifier, temperature: float) -> Classifier:
    """Returns the classifier with a temperature, and stores it in the run if the run is writable.

    The temperature of a read-only run, such as somebody else's, is fitted again each time.

    temperature: fitted on the run's own validation split.
    """
    try:
        return keep_temperature(workdir, classifier, temperature)
    except OSError:
        return dataclasses.replace(classifier, temperature=temperature)
