"""Evaluation of a run on a split: every example once, on all devices, with calibrated probabilities."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flax import linen as nn

from flaxcls.analysis.calibration import BINS, expected_calibration_error, fit_temperature, softmax
from flaxcls.analysis.classifier import Classifier
from flaxcls.analysis.inference import calibrated, predict_splits, with_temperature
from flaxcls.analysis.loading import load_run
from flaxcls.analysis.own_data import check_fit, check_named, describe_differences, fill_from_run, is_new_folder
from flaxcls.analysis.scores import log_loss, roc_curves, scores
from flaxcls.config import DataConfig
from flaxcls.data import Dataset, Split
from flaxcls.data.files import few
from flaxcls.data.folder import describe_read, load_examples
from flaxcls.data.images import Images
from flaxcls.errors import InputError, unknown
from flaxcls.run.resume import load_trained_on
from flaxcls.storage import PARTIAL, as_path, write_whole
from flaxcls.validation import validate

SPLITS = ("train", "validation", "test")
PREDICTIONS, METRICS, ROC = "predictions.parquet", "metrics.json", "roc.json"


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a run for a split of n examples, and their metrics.

    split: train, validation or test.
    ids: names of the examples.
    labels: i64[n], true classes.
    images: [n h w c], as in `Split`.
    logits: f32[n k], output of the model, before the temperature.
    temperature: divisor of the logits before the softmax.
    class_names: names of the k classes.
    metrics: content of metrics.json.
    """

    split: str
    ids: list[str]
    labels: np.ndarray
    images: np.ndarray | Images
    logits: np.ndarray
    temperature: float
    class_names: tuple[str, ...]
    metrics: dict[str, Any]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The calibrated probabilities, f32[n k]."""
        return softmax(self.logits, self.temperature)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most probable class of each example, i64[n]."""
        return self.logits.argmax(axis=1)


def evaluate_run(
    workdir: str | Path,
    *,
    split: str = "test",
    data: DataConfig | None = None,
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
    step: int | None = None,
    classifier: Classifier | None = None,
) -> Evaluation:
    """Returns the predictions of a run's best parameters for a split, and their metrics. Nothing is augmented.

    The temperature is the run's. If the run has none yet, it is fitted on the validation split. It is then stored in
    the run directory, if the directory is writable, the data is the run's own, and `step` is None. Without a validation
    split, the temperature is 1.

    Args:
      workdir: directory of the run.
      split: train, validation or test.
      data: source of the examples; None: the run's own. It may be another folder of images than the run's: their size
        is free, and classes may be missing. If that folder has no splits, all of its images are used.
      dataset: the caller's own data set, if `fit` was given one.
      model: the caller's own module, if `fit` was given one.
      step: step of another checkpoint, instead of the best one.
      classifier: the run's classifier, if it has been loaded already.

    Raises:
      InputError: if the run, step, split or data does not exist, or no validation split was held out. Also if the data
        is not what `fit` was given, or has other classes or images than the run's, or if an output is not finite.
    """
    if split not in SPLITS:
        raise InputError(unknown("split", split, SPLITS))
    workdir = as_path(workdir)
    classifier = classifier or load_run(workdir, model=model, step=step)
    changed = dataclasses.replace(classifier.config, data=fill_from_run(data, classifier.config.data))
    validate(changed)
    if dataset is None and is_new_folder(workdir, classifier, changed.data):
        return _of_new_folder(workdir, classifier, changed.data, split)
    if dataset is None:
        dataset = load_trained_on(changed.data, workdir)
        if changed == classifier.config:
            check_named(classifier, dataset)
    check_fit(classifier, dataset)
    differs = describe_differences(classifier, dataset, changed.data)
    if split not in dataset.splits:
        raise InputError(
            f"{dataset.name} has no {split} split, as data.validation_fraction is 0: choose test or train by --split."
        )
    found, fitted_on = {split: dataset.splits[split]}, "validation"
    needs_temperature = classifier.temperature is None
    if needs_temperature and dataset.validation is not None:
        found["validation"] = dataset.validation
    predicted = dict(zip(found, predict_splits(classifier, list(found.values())), strict=True))
    if needs_temperature and dataset.validation is None:
        fitted_on = f"nothing: {dataset.name} has no validation split, as data.validation_fraction is 0"
    elif needs_temperature:
        examples, logits = predicted["validation"]
        temperature = fit_temperature(logits, examples.labels)
        if differs:
            fitted_on = f"validation of {dataset.name}, which is not the run's own"
        if differs or step is not None:
            classifier = dataclasses.replace(classifier, temperature=temperature)
        else:
            classifier = with_temperature(workdir, classifier, temperature)
    examples, logits = predicted[split]
    evaluation = _evaluation(classifier, split, examples, logits, name=dataset.name, fitted_on=fitted_on)
    lines = [f"of all splits: {note}" for note in dataset.notes] if differs else list(dataset.changes)
    if not differs and changed.data.dir != classifier.config.data.dir:
        lines.insert(0, f"the run's own, in another place, so its {split} split is evaluated")
    if lines:
        evaluation.metrics["notes"]["data"] = "\n".join(lines)  # else the run has said it at its start
    if unread := found[split].unread:
        names = found[split].ids
        evaluation.metrics["notes"]["examples"] = (
            f"{len(unread):,} of {len(names):,} cannot be read and are left out: "
            + few(f"{names[index]} ({why.reason})" for index, why in unread.items())
        )
    if differs:
        evaluation.metrics["notes"]["dataset"] = (
            f"not the run's own data ({differs}), so the run may have been trained on examples of this split"
        )
    return evaluation


def _of_new_folder(workdir: Path, classifier: Classifier, data: DataConfig, split: str) -> Evaluation:
    """Returns the evaluation of images of any size in a folder that is not the run's."""
    name, examples, notes = load_examples(
        data, split, class_names=classifier.class_names, preparation=classifier.preparation
    )
    classifier, reason = calibrated(workdir, classifier)
    images = examples.images
    assert isinstance(images, Images)
    ((examples, logits),) = predict_splits(classifier, [examples])
    notes += describe_read(data, images)
    evaluation = _evaluation(
        classifier, split, examples, logits, name=name, fitted_on=f"nothing: {reason}" if reason else "validation"
    )
    evaluation.metrics["notes"]["dataset"] = "\n".join(
        ["not the run's own data, so the run may have been trained on some of these examples", *notes]
    )
    return evaluation


def _evaluation(
    classifier: Classifier, split: str, examples: Split, logits: np.ndarray, *, name: str, fitted_on: str
) -> Evaluation:
    evaluation = Evaluation(
        split=split,
        ids=list(examples.ids),
        labels=np.asarray(examples.labels, np.int64),
        images=examples.images,
        logits=logits,
        temperature=classifier.temperature or 1.0,
        class_names=classifier.class_names,
        metrics={"split": split, "step": classifier.step, "dataset": name},
    )
    evaluation.metrics.update(_metrics(evaluation, fitted_on))
    if classifier.temperature == 1:
        evaluation.metrics["notes"]["calibration/temperature"] = (
            "every validation example is predicted right, so no temperature can be fitted: it is 1"
        )
    return evaluation


def worst(evaluation: Evaluation, most: int) -> list[int]:
    """Returns the positions of the wrong predictions, the lowest probability of the true class first."""
    of_true = evaluation.probabilities[np.arange(len(evaluation.labels)), evaluation.labels]
    wrong = np.flatnonzero(evaluation.predicted != evaluation.labels)
    return wrong[np.argsort(of_true[wrong], kind="stable")][:most].tolist()


def write(evaluation: Evaluation, directory: str | Path) -> tuple[Path, Path, Path]:
    """Writes predictions.parquet, metrics.json and roc.json, each whole or not at all, and returns their paths.

    The table has the columns id, label, predicted, and p_NAME for each class, its calibrated probability. The file's
    metadata holds class_names (a JSON list) and temperature. roc.json holds the result of `scores.roc_curves`.

    Raises InputError if a file cannot be written.
    """
    directory = Path(directory)
    predictions, metrics, roc = directory / PREDICTIONS, directory / METRICS, directory / ROC
    try:
        directory.mkdir(parents=True, exist_ok=True)
        partial = predictions.with_name(f"{PREDICTIONS}{PARTIAL}")
        pq.write_table(_table(evaluation), partial)
        partial.replace(predictions)
        write_whole(metrics, json.dumps(evaluation.metrics, indent=2, allow_nan=False) + "\n")
        curves = roc_curves(evaluation.probabilities, evaluation.labels, evaluation.class_names)
        write_whole(roc, json.dumps(curves, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(
            f"the evaluation cannot be written to {directory}: {error.strerror or error}. Name another by --out."
        ) from error
    return predictions, metrics, roc


def _table(evaluation: Evaluation) -> pa.Table:
    columns = [
        pa.array(evaluation.ids, pa.string()),
        *(pa.array(part.astype(np.int32)) for part in (evaluation.labels, evaluation.predicted)),
        *(pa.array(column) for column in np.ascontiguousarray(evaluation.probabilities.T)),
    ]
    names = ["id", "label", "predicted", *(f"p_{name}" for name in evaluation.class_names)]
    kept = {"class_names": json.dumps(evaluation.class_names), "temperature": repr(evaluation.temperature)}
    return pa.Table.from_arrays(columns, names=names).replace_schema_metadata(kept)


def _metrics(evaluation: Evaluation, fitted_on: str) -> dict[str, Any]:
    labels = evaluation.labels
    if len(labels) == 0:
        raise InputError(
            f"the {evaluation.split} split has no example: choose another by --split, or other data by --data.*"
        )
    metrics = scores(evaluation.probabilities, evaluation.predicted, labels, evaluation.class_names)
    before = softmax(evaluation.logits)
    metrics["calibration"] = {
        "temperature": evaluation.temperature,
        "temperature_fitted_on": fitted_on,
        "bins": BINS,
        "ece_before": expected_calibration_error(before, labels),
        "ece_after": expected_calibration_error(evaluation.probabilities, labels),
        "log_loss_before": log_loss(before, labels),
        "log_loss_after": metrics["log_loss"],
    }
    if evaluation.split == "validation":
        metrics["notes"]["calibration/ece_after"] = "in-sample: the temperature was fitted on this split"
    return metrics
