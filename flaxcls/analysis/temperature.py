"""The validation split of a run, and the temperature that is fitted on it."""

import contextlib
import dataclasses
from pathlib import Path

from flaxcls.analysis.calibration import fit_temperature
from flaxcls.analysis.classifier import Classifier, keep_temperature
from flaxcls.analysis.evaluation import predict_splits
from flaxcls.data import Split, load_dataset
from flaxcls.errors import InputError
from flaxcls.run.checkpoint import read_record
from flaxcls.run.workdir import CHECKPOINTS


def validation_split(workdir: Path, classifier: Classifier) -> Split:
    """Returns the validation split that the run was trained with, loaded anew as its configuration says.

    Raises:
      InputError: if the data is not there any more or is not what the run saw, as where `fit` was given arrays.
    """
    record = read_record(workdir / CHECKPOINTS, classifier.step)
    dataset = load_dataset(classifier.config.data)
    sizes = [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)]
    for what, ours, theirs in (
        ("the data set", dataset.name, record["data"]),
        ("classes", list(dataset.class_names), record["class_names"]),
        ("examples", sizes, record["examples"]),
    ):
        if ours != theirs:
            raise InputError(
                f"the data that the configuration names is not what the run saw: {what} {ours}, but the run had "
                f"{theirs}. Where arrays were given to fit, they are needed again."
            )
    return dataset.validation


def calibrated(workdir: Path, classifier: Classifier) -> tuple[Classifier, str | None]:
    """Returns the classifier with a temperature (Guo et al. 2017), fitted now and kept in the run where it has none.

    Returns:
      The classifier and None; or, where the validation split cannot be loaded, the classifier as it is and the reason.
    """
    if classifier.temperature is not None:
        return classifier, None
    try:
        split = validation_split(workdir, classifier)
    except InputError as error:
        return classifier, str(error)
    (logits,) = predict_splits(classifier, [split])
    temperature = fit_temperature(logits, split.labels)
    fitted = dataclasses.replace(classifier, temperature=temperature)
    with contextlib.suppress(OSError):  # a run that cannot be written to is fitted anew each time
        keep_temperature(workdir, classifier, temperature)
    return fitted, None
