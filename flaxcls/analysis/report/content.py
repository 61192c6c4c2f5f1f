"""What a report says of a run: gathered here, drawn in charts.py and laid out in page.py."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcls.analysis.activations import grad_cam
from flaxcls.analysis.classifier import Classifier, load_run
from flaxcls.analysis.duplicates import Duplicate, near_duplicates
from flaxcls.analysis.evaluation import Evaluation, check_named, evaluate_run, worst
from flaxcls.analysis.pictures import as_bytes, data_url, enlarged, overlay
from flaxcls.config_json import to_json
from flaxcls.data import Dataset, Split, load_dataset
from flaxcls.data.images import Images
from flaxcls.data.resize import with_channels
from flaxcls.early_stopping import EarlyStopping
from flaxcls.errors import InputError
from flaxcls.run.checkpoint_files import read_record, read_steps
from flaxcls.run.workdir import CHECKPOINTS, METRICS, RESULT
from flaxcls.storage import as_path

MOST_MISTAKES = 24
MOST_PAIRS = 15
MOST_DUPLICATES = 12
# pixels that small pictures are enlarged to, by a whole factor
PICTURE = 128


@dataclass(frozen=True)
class Mistake:
    """An example that is predicted wrong; both pictures are data URLs of PNG files, and the second may be missing."""

    id: str
    true: str
    predicted: str
    probability: float
    probability_of_true: float
    picture: str
    grad_cam: str | None


@dataclass(frozen=True)
class Pair:
    """How often examples of one class are predicted as another, and the share of the class that they are."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Copy:
    """An example of the split and one of the training split that are nearly the same, with their pictures."""

    first: str
    second: str
    label: str
    train_label: str
    correlation: float
    picture: str
    train_picture: str


@dataclass(frozen=True)
class RunContent:
    """What is known of a run.

    name: what it is called in the report.
    step: that the parameters are of.
    stopped_early: whether early stopping ended it.
    lines: of its metrics.jsonl, from the first to the last.
    result: of its result.json; None where it has not ended.
    no_grad_cam: why mistakes have no second picture, or "".
    copies: near-duplicates between the split and the training split, the likest first, of `copies_found` in all; None
      where they were not looked for.
    """

    name: str
    workdir: Path
    config: dict[str, Any]
    evaluation: Evaluation
    step: int
    stopped_early: bool
    lines: list[dict[str, Any]]
    result: dict[str, Any] | None
    mistakes: list[Mistake]
    no_grad_cam: str
    pairs: list[Pair]
    copies: list[Copy] | None
    copies_found: int


def read_run(
    workdir: str | Path,
    *,
    name: str | None = None,
    split: str = "test",
    data_dir: str | Path | None = None,
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
) -> RunContent:
    """Returns what a report says of a run's best parameters on a split.

    Args:
      workdir: of the run.
      name: what it is called; without it as its directory.
      split: train, validation or test.
      data_dir: where its data lies now, if not where it was.
      dataset: the caller's own, where `fit` was given one.
      model: the caller's own module, where `fit` was given one.

    Raises InputError as `evaluate_run` does.
    """
    workdir = as_path(workdir)
    classifier = load_run(workdir, model=model)
    if dataset is None:
        data = classifier.config.data
        dataset = load_dataset(replace(data, dir=str(data_dir)) if data_dir else data)
        if not data_dir:
            check_named(classifier, dataset)
    evaluation = evaluate_run(workdir, split=split, dataset=dataset, classifier=classifier)
    examples: Split = getattr(dataset, split)
    mistakes, no_grad_cam = _mistakes(classifier, evaluation)
    found = None if split == "train" else _copies(examples, dataset)
    return RunContent(
        name=name or workdir.resolve().name,
        workdir=workdir,
        config=flat(json.loads(to_json(classifier.config))),
        evaluation=evaluation,
        step=classifier.step,
        stopped_early=_stopped_early(workdir / CHECKPOINTS),
        lines=read_lines(workdir / METRICS),
        result=_read_result(workdir / RESULT),
        mistakes=mistakes,
        no_grad_cam=no_grad_cam,
        pairs=confused_pairs(np.array(evaluation.metrics["confusion_matrix"]), evaluation.class_names),
        copies=None if found is None else [_copy(pair, examples, dataset) for pair in found[:MOST_DUPLICATES]],
        copies_found=len(found or ()),
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl; the last may be cut short, as the run may be writing it."""
    texts = path.read_text().splitlines(keepends=True) if path.is_file() else []
    try:
        return [json.loads(text) for text in texts if text.endswith("\n")]
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Delete what is no JSON in it.") from error


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one, with keys such as "data.source"."""
    made: dict[str, Any] = {}
    for key, value in config.items():
        made |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return made


def confused_pairs(confusion: np.ndarray, class_names: Sequence[str], most: int = MOST_PAIRS) -> list[Pair]:
    """Returns the classes that are most often taken for one another, of a confusion matrix i64[true predicted]."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = [divmod(int(index), len(confusion)) for index in order]
    return [
        Pair(class_names[true], class_names[predicted], count, count / int(confusion[true].sum()))
        for true, predicted in places
        if (count := int(wrong[true, predicted]))
    ]


def _mistakes(classifier: Classifier, evaluation: Evaluation) -> tuple[list[Mistake], str]:
    chosen = worst(evaluation, MOST_MISTAKES)
    if not chosen:
        return [], ""
    images = np.stack([as_bytes(evaluation.images[index]) for index in chosen])
    reason, heats = "", None
    try:
        heats = grad_cam(
            classifier.model,
            classifier.variables,
            classifier.normalized(jnp.asarray(images)),
            evaluation.predicted[chosen],
        )
    except InputError as error:  # a network without convolutions
        reason = str(error)
    names, rows = evaluation.class_names, evaluation.probabilities
    made = [
        Mistake(
            id=evaluation.ids[index],
            true=names[evaluation.labels[index]],
            predicted=names[evaluation.predicted[index]],
            probability=float(rows[index].max()),
            probability_of_true=float(rows[index, evaluation.labels[index]]),
            picture=_url(with_channels(image, 3)),
            grad_cam=None if heats is None else _url(overlay(image, heats[place])),
        )
        for place, (index, image) in enumerate(zip(chosen, images, strict=True))
    ]
    return made, reason


def _copies(examples: Split, dataset: Dataset) -> list[Duplicate] | None:
    """Returns the near-duplicates, or None where every image would have to be read from its file for them."""
    if any(isinstance(part.images, Images) and not part.images.in_memory for part in (examples, dataset.train)):
        return None
    return near_duplicates(examples, dataset.train)


def _copy(pair: Duplicate, examples: Split, dataset: Dataset) -> Copy:
    pictures = (examples.images[pair.first], dataset.train.images[pair.second])
    shown = [_url(with_channels(as_bytes(picture), 3)) for picture in pictures]
    return Copy(
        first=examples.ids[pair.first],
        second=dataset.train.ids[pair.second],
        label=dataset.class_names[examples.labels[pair.first]],
        train_label=dataset.class_names[dataset.train.labels[pair.second]],
        correlation=pair.correlation,
        picture=shown[0],
        train_picture=shown[1],
    )


def _url(picture: np.ndarray) -> str:
    return data_url(enlarged(picture, PICTURE))


def _stopped_early(checkpoints: Path) -> bool:
    newest = read_record(checkpoints, max(read_steps(checkpoints)))
    return EarlyStopping(**newest["early_stopping"]).stopped


def _read_result(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Move it away to report without it.") from error
