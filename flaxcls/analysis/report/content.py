"""The content of a report on a run; charts.py draws it and page.py lays it out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcls.analysis.activations import grad_cam
from flaxcls.analysis.classifier import Classifier
from flaxcls.analysis.duplicates import Duplicate, near_duplicates
from flaxcls.analysis.evaluation import Evaluation, evaluate_run, worst
from flaxcls.analysis.loading import load_run
from flaxcls.analysis.own_data import check_named
from flaxcls.analysis.pictures import choose_shown, data_url, describe_shown, enlarged, in_colours, overlay
from flaxcls.config_json import to_json
from flaxcls.data import Dataset, Split
from flaxcls.data.images import Images
from flaxcls.early_stopping import EarlyStopping
from flaxcls.errors import InputError
from flaxcls.run.checkpoint_files import read_record, read_steps
from flaxcls.run.resume import load_trained_on
from flaxcls.run.workdir import CHECKPOINTS, METRICS, RESULT
from flaxcls.storage import as_path

MOST_MISTAKES = 24
MOST_PAIRS = 15
MOST_DUPLICATES = 12
# small pictures are enlarged by a whole factor to at most this many pixels a side
PICTURE = 128


@dataclass(frozen=True)
class Mistake:
    """An example that is predicted wrong.

    id: name of the example.
    true, predicted: names of the classes.
    probability: probability of the predicted class.
    probability_of_true: probability of the true class.
    picture: data URL of the image.
    grad_cam: data URL of the image with its Grad-CAM map, or None.
    """

    id: str
    true: str
    predicted: str
    probability: float
    probability_of_true: float
    picture: str
    grad_cam: str | None


@dataclass(frozen=True)
class Pair:
    """A pair of classes that are confused.

    true, predicted: names of the classes.
    count: number of examples of the true class that are predicted as the other.
    share: their share of all examples of the true class.
    """

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Copy:
    """An example of the split and a near-duplicate in the training split.

    first, second: names of the two examples.
    label, train_label: names of their classes.
    correlation: correlation of the pixels of their thumbnails.
    picture, train_picture: data URLs of the images.
    """

    first: str
    second: str
    label: str
    train_label: str
    correlation: float
    picture: str
    train_picture: str


@dataclass(frozen=True)
class RunContent:
    """The content of a report on one run.

    name: name of the run in the report.
    workdir: directory of the run.
    config: configuration, with keys such as "data.source".
    evaluation: predictions and metrics on the split.
    step: training step of the parameters.
    stopped_early: True if early stopping ended the run.
    lines: lines of metrics.jsonl, in order.
    result: content of result.json; None if the run has not ended.
    mistakes: worst mistakes, the worst first.
    no_grad_cam: reason why mistakes have no Grad-CAM picture, or "".
    pairs: most confused classes.
    copies: near-duplicates between the split and the training split, the most similar first; None if not searched.
    copies_found: number of all near-duplicates; `copies` holds only the first of them.
    channels_shown: text with the channels that the pictures show; "" if they are all, grey or in colours.
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
    channels_shown: str = ""


def read_run(
    workdir: str | Path,
    *,
    name: str | None = None,
    split: str = "test",
    data_dir: str | Path | None = None,
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
) -> RunContent:
    """Returns the content of a report on a run's best parameters and a split.

    Args:
      workdir: directory of the run.
      name: name of the run in the report; None: the name of its directory.
      split: train, validation or test.
      data_dir: directory of the data, if it has moved since training.
      dataset: the caller's own data set, if `fit` was given one.
      model: the caller's own module, if `fit` was given one.

    Raises InputError as `evaluate_run` does.
    """
    workdir = as_path(workdir)
    classifier = load_run(workdir, model=model)
    if dataset is None:
        data = classifier.config.data
        dataset = load_trained_on(replace(data, dir=str(data_dir)) if data_dir else data, workdir)
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
        channels_shown=_channels_shown(classifier),
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl. An incomplete last line is left out: the run may be writing it."""
    texts = path.read_text().splitlines(keepends=True) if path.is_file() else []
    try:
        return [json.loads(text) for text in texts if text.endswith("\n")]
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Delete the lines that are not JSON.") from error


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as a flat one, with keys such as "data.source"."""
    merged: dict[str, Any] = {}
    for key, value in config.items():
        merged |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return merged


def confused_pairs(confusion: np.ndarray, class_names: Sequence[str], most: int = MOST_PAIRS) -> list[Pair]:
    """Returns the most confused pairs of classes, for a confusion matrix i64[true predicted]."""
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
    images = np.stack([evaluation.images[index] for index in chosen])
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
    mistakes = [
        Mistake(
            id=evaluation.ids[index],
            true=names[evaluation.labels[index]],
            predicted=names[evaluation.predicted[index]],
            probability=float(rows[index].max()),
            probability_of_true=float(rows[index, evaluation.labels[index]]),
            picture=_url(in_colours(image)),
            grad_cam=None if heats is None else _url(overlay(image, heats[place])),
        )
        for place, (index, image) in enumerate(zip(chosen, images, strict=True))
    ]
    return mistakes, reason


def _channels_shown(classifier: Classifier) -> str:
    names = classifier.preparation.name_channels(classifier.config.data.path_column)
    return "" if names in (["grey"], ["red", "green", "blue"]) else describe_shown(names, choose_shown(len(names)))


def _copies(examples: Split, dataset: Dataset) -> list[Duplicate] | None:
    """Returns the near-duplicates, or None if the search would have to read every image from its file."""
    if any(isinstance(part.images, Images) and not part.images.in_memory for part in (examples, dataset.train)):
        return None
    return near_duplicates(examples, dataset.train)


def _copy(pair: Duplicate, examples: Split, dataset: Dataset) -> Copy:
    pictures = (examples.images[pair.first], dataset.train.images[pair.second])
    shown = [_url(in_colours(picture)) for picture in pictures]
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
        raise InputError(f"{path} is damaged: {error}. Move it away to make a report without it.") from error
