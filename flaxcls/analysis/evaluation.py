"""Evaluation of a run on a split: every example once, over all devices, with probabilities that are calibrated."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flax import linen as nn

from flaxcls.analysis.calibration import BINS, expected_calibration_error, fit_temperature, softmax
from flaxcls.analysis.classifier import Classifier, keep_temperature, load_run
from flaxcls.analysis.scores import log_loss, scores
from flaxcls.config import DataConfig, differences
from flaxcls.data import Dataset, Split, load_dataset
from flaxcls.data.images import Images
from flaxcls.errors import InputError, unknown
from flaxcls.run.checkpoint import read_record
from flaxcls.run.evaluation import padded
from flaxcls.run.workdir import CHECKPOINTS, PARTIAL, write_whole
from flaxcls.sharding import batch_sharding, make_mesh, on_devices, replicated
from flaxcls.validation import validate

SPLITS = ("train", "validation", "test")
PREDICTIONS, METRICS = "predictions.parquet", "metrics.json"


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
) -> Evaluation:
    """Returns the predictions of a run's best parameters for a split, and their metrics. Nothing is augmented.

    The temperature is that of the run. Where it has none yet, it is fitted on the validation split, and kept in the run
    directory if that can be written, the data is the run's own, and no other step was asked for.

    Args:
      workdir: of the run.
      split: train, validation or test.
      data: where the examples come from, if not from where the run had them.
      dataset: the caller's own, where `fit` was given one.
      model: the caller's own module, where `fit` was given one.
      step: another checkpoint than that of the best parameters.

    Raises:
      InputError: if there is no such run, step or split, the data is not there or has other classes or images than the
        run, or the model's output is not finite.
    """
    if split not in SPLITS:
        raise InputError(unknown("split", split, SPLITS))
    workdir = Path(workdir)
    classifier = load_run(workdir, model=model, step=step)
    changed = dataclasses.replace(classifier.config, data=data or classifier.config.data)
    validate(changed)
    dataset = dataset or load_dataset(changed.data)
    check_fit(classifier, dataset)
    differs = _differences(workdir, classifier, dataset, changed.data)
    found = {split: getattr(dataset, split)}
    if classifier.temperature is None:
        found["validation"] = dataset.validation
    logits = dict(zip(found, predict_splits(classifier, list(found.values())), strict=True))
    if classifier.temperature is None:
        temperature = fit_temperature(logits["validation"], dataset.validation.labels)
        classifier = _keep(workdir, classifier, temperature, own=not differs and step is None)
    examples = found[split]
    made = Evaluation(
        split=split,
        ids=list(examples.ids),
        labels=np.asarray(examples.labels, np.int64),
        images=examples.images,
        logits=logits[split],
        temperature=classifier.temperature or 1.0,
        class_names=classifier.class_names,
        metrics={"split": split, "step": classifier.step, "dataset": dataset.name},
    )
    made.metrics.update(_metrics(made))
    if differs:
        made.metrics["notes"]["dataset"] = (
            f"not the run's own data ({differs}), so the split may hold examples that it was trained on"
        )
    return made


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


def predict_splits(classifier: Classifier, splits: list[Split]) -> list[np.ndarray]:
    """Returns the logits f32[n k] of each split's examples, computed over all devices.

    Raises InputError where one is not finite.
    """
    mesh = make_mesh()
    most = max(len(split.labels) for split in splits)
    # one size, so that it is compiled once; the devices share it evenly
    size = -(-min(classifier.config.loop.eval_batch_size, max(most, 1)) // mesh.size) * mesh.size
    variables = on_devices(classifier.variables, replicated(mesh))

    def apply(variables: Any, images: jax.Array) -> Any:
        return classifier.evaluated.apply(variables, classifier.normalized(images), train=False)

    compiled = jax.jit(apply, out_shardings=replicated(mesh))
    made = []
    for split in splits:
        rows = np.zeros((len(split.labels), len(classifier.class_names)), np.float32)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            batch = padded(np.asarray(split.images[part]), split.labels[part], size)
            images = on_devices(batch["image"], batch_sharding(mesh))
            rows[part] = np.asarray(compiled(variables, images))[batch["mask"]]
        wrong = int((~np.isfinite(rows)).any(axis=1).sum())
        if wrong:
            raise InputError(
                f"the model's output is NaN or infinite for {wrong} of {len(rows)} examples: the parameters of step "
                f"{classifier.step} are of no use; choose another step (--step)."
            )
        made.append(rows)
    return made


def write(evaluation: Evaluation, directory: str | Path) -> tuple[Path, Path]:
    """Writes predictions.parquet and metrics.json, each whole or not at all, and returns their paths.

    The table has the columns id, label, predicted and, of each class, p_NAME, its calibrated probability; the file's
    metadata holds class_names (a JSON list) and temperature. Raises InputError if it cannot be written.
    """
    directory = Path(directory)
    predictions, metrics = directory / PREDICTIONS, directory / METRICS
    try:
        directory.mkdir(parents=True, exist_ok=True)
        partial = predictions.with_name(f"{PREDICTIONS}{PARTIAL}")
        pq.write_table(_table(evaluation), partial)
        partial.replace(predictions)
        write_whole(metrics, json.dumps(evaluation.metrics, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(
            f"the evaluation cannot be written to {directory}: {error.strerror or error}. Name another with --out."
        ) from error
    return predictions, metrics


def _table(evaluation: Evaluation) -> pa.Table:
    columns = [
        pa.array(evaluation.ids, pa.string()),
        *(pa.array(part.astype(np.int32)) for part in (evaluation.labels, evaluation.predicted)),
        *(pa.array(column) for column in np.ascontiguousarray(evaluation.probabilities.T)),
    ]
    names = ["id", "label", "predicted", *(f"p_{name}" for name in evaluation.class_names)]
    kept = {"class_names": json.dumps(evaluation.class_names), "temperature": repr(evaluation.temperature)}
    return pa.Table.from_arrays(columns, names=names).replace_schema_metadata(kept)


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    labels = evaluation.labels
    if len(labels) == 0:
        raise InputError(f"the {evaluation.split} split has no example: choose another with --split, or other --data.*")
    made = scores(evaluation.probabilities, evaluation.predicted, labels, evaluation.class_names)
    before = softmax(evaluation.logits)
    made["calibration"] = {
        "temperature": evaluation.temperature,
        "temperature_fitted_on": "validation",
        "bins": BINS,
        "ece_before": expected_calibration_error(before, labels),
        "ece_after": expected_calibration_error(evaluation.probabilities, labels),
        "log_loss_before": log_loss(before, labels),
        "log_loss_after": made["log_loss"],
    }
    if evaluation.temperature == 1:
        made["notes"]["calibration/temperature"] = (
            "every validation example is predicted right, which tells of no temperature: it is 1"
        )
    if evaluation.split == "validation":
        made["notes"]["calibration/ece_after"] = "in-sample: the temperature was fitted on this split"
    return made


def _keep(workdir: Path, classifier: Classifier, temperature: float, *, own: bool) -> Classifier:
    """Returns the classifier with a temperature, which is kept in the run where it is of the run's own data."""
    try:
        if own:
            return keep_temperature(workdir, classifier, temperature)
    except OSError:  # somebody else's run, which can be read only
        pass
    return dataclasses.replace(classifier, temperature=temperature)


def _differences(workdir: Path, classifier: Classifier, dataset: Dataset, data: DataConfig) -> str:
    """Returns in what the data differs from the run's own; the directory that it lies in is of no account."""
    config = classifier.config
    lines = differences(config, dataclasses.replace(config, data=dataclasses.replace(data, dir=config.data.dir)))
    record = read_record(workdir / CHECKPOINTS, classifier.step)
    sizes = [len(getattr(dataset, part).labels) for part in SPLITS]
    for what, ours, theirs in (("name", record["data"], dataset.name), ("examples", record["examples"], sizes)):
        if ours != theirs:
            lines.append(f"{what}: {ours} -> {theirs}")
    return "; ".join(lines)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
