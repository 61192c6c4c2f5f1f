"""The output of a trained model for whole splits, and the temperature that is fitted on the validation split."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from flaxcls.analysis.calibration import fit_temperature
from flaxcls.analysis.classifier import Classifier, keep_temperature
from flaxcls.data import Split, load_dataset
from flaxcls.data.batches import pad_rows
from flaxcls.errors import InputError
from flaxcls.sharding import batch_sharding, make_mesh, on_devices, replicated


def predict_splits(classifier: Classifier, splits: list[Split]) -> list[np.ndarray]:
    """Returns the logits f32[n k] of each split's examples, computed over all devices.

    Raises InputError where one is not finite.
    """
    mesh = make_mesh()
    most = max(len(split.labels) for split in splits)
    # one size, so that it is compiled once; the devices share it evenly
    size = -(-min(classifier.config.loop.eval_batch_size, max(most, 1)) // mesh.size) * mesh.size
    variables = on_devices(classifier.variables, replicated(mesh))
    compiled = jax.jit(lambda variables, images: classifier.forward(variables, images), out_shardings=replicated(mesh))
    made = []
    for split in splits:
        rows = np.zeros((len(split.labels), len(classifier.class_names)), np.float32)
        for start in range(0, len(rows), size):
            images = np.asarray(split.images[start : start + size])
            logits = compiled(variables, on_devices(pad_rows(images, size), batch_sharding(mesh)))
            rows[start : start + size] = np.asarray(logits)[: len(images)]
        wrong = int((~np.isfinite(rows)).any(axis=1).sum())
        if wrong:
            raise InputError(
                f"the model's output is NaN or infinite for {wrong} of {len(rows)} examples: the parameters of step "
                f"{classifier.step} are of no use; choose another step (--step)."
            )
        made.append(rows)
    return made


def validation_split(classifier: Classifier) -> Split:
    """Returns the validation split that the run was trained with, loaded anew as its configuration says.

    Raises:
      InputError: if the run had none, or the data is not there any more or is not what the run saw, as where `fit` was
        given arrays.
    """
    if classifier.examples[1:2] == (0,):
        raise InputError("the run was trained without a validation split, as data.validation_fraction is 0.")
    dataset = load_dataset(classifier.config.data)
    for what, ours, theirs in (
        ("the data set", dataset.name, classifier.data),
        ("classes", list(dataset.class_names), list(classifier.class_names)),
        ("examples", dataset.sizes, classifier.examples),
    ):
        if ours != theirs:
            raise InputError(
                f"the data that the configuration names is not what the run saw: {what} {ours}, but the run had "
                f"{theirs}. Where arrays were given to fit, they are needed again."
            )
    assert dataset.validation is not None  # it has as many examples as in the run
    return dataset.validation


def calibrated(workdir: Path, classifier: Classifier) -> tuple[Classifier, str | None]:
    """Returns the classifier with a temperature (Guo et al. 2017), fitted now and kept in the run where it has none.

    Returns:
      The classifier and None; or, where no validation split can be loaded, the classifier as it is and the reason.
    """
    if classifier.temperature is not None:
        return classifier, None
    try:
        split = validation_split(classifier)
    except InputError as error:
        return classifier, str(error)
    (logits,) = predict_splits(classifier, [split])
    return with_temperature(workdir, classifier, fit_temperature(logits, split.labels)), None


def with_temperature(workdir: Path, classifier: Classifier, temperature: float) -> Classifier:
    """Returns the classifier with a temperature of the run's own validation split, which is kept in the run.

    A run that cannot be written to is somebody else's; it is fitted anew each time.
    """
    try:
        return keep_temperature(workdir, classifier, temperature)
    except OSError:
        return dataclasses.replace(classifier, temperature=temperature)
