"""Evaluation of a run on a split: every example once, over all devices, with probabilities that are calibrated."""

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
from flaxcls.analysis.classifier import Classifier, load_run
from flaxcls.analysis.inference import calibrated, predict_splits, with_temperature
from flaxcls.analysis.scores import log_loss, roc_curves, scores
from flaxcls.config import DataConfig
from flaxcls.config_json import differences
from flaxcls.data import Dataset, Split, load_dataset
from flaxcls.data.folder import load_examples
from flaxcls.data.images import Images
from flaxcls.errors import InputError, unknown
from flaxcls.storage import PARTIAL, as_path, write_whole
from flaxcls.validation import validate

SPLITS = ("train", "validation", "test")
PREDICTIONS, METRICS, ROC = "predictions.parquet", "metrics.json", "roc.json"


@dataclass(frozen=True)
class Evaluation:
    """What a run predicts for a split of n examples, and how good that is.

    split: train, validation or test.
    ids: what the examples are called; labels: i64[n], their true classes; images: [n h w c], as `Split` has them.
    logits: f32[n k], of the model, before the temperature.
    temperature: what the logits are divided by before the softmax.
    class_names: of the k classes.
    metrics: what metrics.json holds.
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
        """f32[n k], calibrated."""
        return softmax(self.logits, self.temperature)

    @cached_property
    def predicted(self) -> np.ndarray:
        """i64[n], the most probable classes."""
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

    The temperature is that of the run. Where it has none yet, it is fitted on the validation split, and kept in the run
    directory if that can be written, the data is the run's own, and no other step was asked for. Without a validation
    split it is 1.

    Args:
      workdir: of the run.
      split: train, validation or test.
      data: where the examples come from, if not from where the run had them. Of another folder of images than the
        run's all are taken where it has no splits; they may be of any size, and not all classes need be there.
      dataset: the caller's own, where `fit` was given one.
      model: the caller's own module, where `fit` was given one.
      step: another checkpoint than that of the best parameters.
      classifier: of the run, where it has been loaded already.

    Raises:
      InputError: if there is no such run, step or split, or no validation split was held out, the data is not there, is
        not what `fit` was given or has other classes or images than the run, or the model's output is not finite.
    """
    if split not in SPLITS:
        raise InputError(unknown("split", split, SPLITS))
    workdir = as_path(workdir)
    classifier = classifier or load_run(workdir, model=model, step=step)
    changed = dataclasses.replace(classifier.config, data=data or classifier.config.data)
    validate(changed)
    if dataset is None and _is_new_folder(classifier, changed.data):
        return _of_new_folder(workdir, classifier, changed.data, split)
    if dataset is None:
        dataset = load_dataset(changed.data)
        if changed == classifier.config:
            check_named(classifier, dataset)
    check_fit(classifier, dataset)
    differs = _differences(classifier, dataset, changed.data)
    if split not in dataset.splits:
        raise InputError(
            f"{dataset.name} has no {split} split, as data.validation_fraction is 0: choose test or train by --split."
        )
    found, fitted_on = {split: dataset.splits[split]}, "validation"
    unfitted = classifier.temperature is None
    if unfitted and dataset.validation is not None:
        found["validation"] = dataset.validation
    logits = dict(zip(found, predict_splits(classifier, list(found.values())), strict=True))
    if unfitted and dataset.validation is None:
        fitted_on = f"nothing: {dataset.name} has no validation split, as data.validation_fraction is 0"
    elif unfitted:
        temperature = fit_temperature(logits["validation"], found["validation"].labels)
        if differs:
            fitted_on = f"validation of {dataset.name}, which is not the run's own"
        if differs or step is not None:
            classifier = dataclasses.replace(classifier, temperature=temperature)
        else:
            classifier = with_temperature(workdir, classifier, temperature)
    made = _evaluation(classifier, split, found[split], logits[split], name=dataset.name, fitted_on=fitted_on)
    if differs:
        made.metrics["notes"]["dataset"] = (
            f"not the run's own data ({differs}), so the split may hold examples that it was trained on"
        )
    return made


def _is_new_folder(classifier: Classifier, data: DataConfig) -> bool:
    """Returns whether the data are other images than the run's; a folder of its name is taken for it, moved."""
    return data.source == "folder" and Path(str(data.dir)).resolve().stem != classifier.data


def _of_new_folder(workdir: Path, classifier: Classifier, data: DataConfig, split: str) -> Evaluation:
    """Returns the evaluation of images in a folder that the run was not trained on, in the sizes that they have."""
    name, examples, notes = load_examples(
        data, split, class_names=classifier.class_names, image_shape=classifier.image_shape
    )
    classifier, reason = calibrated(workdir, classifier)
    (logits,) = predict_splits(classifier, [examples])
    made = _evaluation(
        classifier, split, examples, logits, name=name, fitted_on=f"nothing: {reason}" if reason else "validation"
    )
    made.metrics["notes"]["dataset"] = "\n".join(
        ["not the run's own data, so it may hold examples that it was trained on", *notes]
    )
    return made


def _evaluation(
    classifier: Classifier, split: str, examples: Split, logits: np.ndarray, *, name: str, fitted_on: str
) -> Evaluation:
    made = Evaluation(
        split=split,
        ids=list(examples.ids),
        labels=np.asarray(examples.labels, np.int64),
        images=examples.images,
        logits=logits,
        temperature=classifier.temperature or 1.0,
        class_names=classifier.class_names,
        metrics={"split": split, "step": classifier.step, "dataset": name},
    )
    made.metrics.update(_metrics(made, fitted_on))
    if classifier.temperature == 1:
        made.metrics["notes"]["calibration/temperature"] = (
            "every validation example is predicted right, which tells of no temperature: it is 1"
        )
    return made


def check_named(classifier: Classifier, dataset: Dataset) -> None:
    """Raises InputError where the run was given another data set than its configuration names."""
    if dataset.name != classifier.data:
        raise InputError(
            f"the run was trained on {classifier.data}, but its configuration names {dataset.name}: where arrays were "
            "given to fit, give them again (dataset=), or name other data (--data.*)."
        )


def check_fit(classifier: Classifier, dataset: Dataset) -> None:
    """Raises InputError where the classes or images of a data set are not those that the model knows."""
    ours, theirs = classifier.class_names, tuple(dataset.class_names)
    if ours != theirs:
        missing, extra = ([n for n in a if n not in b][:5] for a, b in ((ours, theirs), (theirs, ours)))
        reason = (
            f"of the run's, it lacks {missing}, and the run does not know {extra}"
            if missing or extra
            else "they come in another order"
        )
        raise InputError(
            f"{dataset.name} has {len(theirs)} classes, and the run was trained on {len(ours)}: {reason}. Give data of "
            "the same classes in the same order (--data.*)."
        )
    if tuple(dataset.image_shape) != classifier.image_shape:
        raise InputError(
            f"{dataset.name} has images of {_by(dataset.image_shape)}, but the run was trained on images of "
            f"{_by(classifier.image_shape)} (height x width x channels): give data of that size (--data.*)."
        )


def worst(evaluation: Evaluation, most: int) -> list[int]:
    """Returns the wrong predictions by position, the one whose true class was given the least probability first."""
    of_true = evaluation.probabilities[np.arange(len(evaluation.labels)), evaluation.labels]
    wrong = np.flatnonzero(evaluation.predicted != evaluation.labels)
    return wrong[np.argsort(of_true[wrong], kind="stable")][:most].tolist()


def write(evaluation: Evaluation, directory: str | Path) -> tuple[Path, Path, Path]:
    """Writes predictions.parquet, metrics.json and roc.json, each whole or not at all, and returns their paths.

    The table has the columns id, label, predicted and, of each class, p_NAME, its calibrated probability; the file's
    metadata holds class_names (a JSON list) and temperature. roc.json is what `scores.roc_curves` returns. Raises
    InputError if it cannot be written.
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
            f"the evaluation cannot be written to {directory}: {error.strerror or error}. Name another with --out."
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
        raise InputError(f"the {evaluation.split} split has no example: choose another with --split, or other --data.*")
    made = scores(evaluation.probabilities, evaluation.predicted, labels, evaluation.class_names)
    before = softmax(evaluation.logits)
    made["calibration"] = {
        "temperature": evaluation.temperature,
        "temperature_fitted_on": fitted_on,
        "bins": BINS,
        "ece_before": expected_calibration_error(before, labels),
        "ece_after": expected_calibration_error(evaluation.probabilities, labels),
        "log_loss_before": log_loss(before, labels),
        "log_loss_after": made["log_loss"],
    }
    if evaluation.split == "validation":
        made["notes"]["calibration/ece_after"] = "in-sample: the temperature was fitted on this split"
    return made


def _differences(classifier: Classifier, dataset: Dataset, data: DataConfig) -> str:
    """Returns in what the data differs from the run's own; the directory that it lies in is of no account."""
    config = classifier.config
    lines = differences(config, dataclasses.replace(config, data=dataclasses.replace(data, dir=config.data.dir)))
    for what, ours, theirs in (
        ("name", classifier.data, dataset.name),
        ("examples", list(classifier.examples), list(dataset.sizes)),
    ):
        if ours != theirs:
            lines.append(f"{what}: {ours} -> {theirs}")
    return "; ".join(lines)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
