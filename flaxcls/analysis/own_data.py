"""The data of a run: is other data the same, does it fit the model, and how does it differ?"""

import dataclasses
from pathlib import Path

from flaxcls.analysis.classifier import Classifier
from flaxcls.config import FREE_DATA, DataConfig
from flaxcls.config_json import differences
from flaxcls.data import Dataset, Split
from flaxcls.data.again import is_listed
from flaxcls.data.folder import count_files, fingerprint
from flaxcls.data.picture import format_shape
from flaxcls.errors import InputError
from flaxcls.run.examples import read_listing
from flaxcls.run.resume import load_trained_on
from flaxcls.storage import as_path, printable

EVALUATE = "flaxcls.analysis.evaluation.evaluate_run(RUN, dataset=...)"


def is_own(classifier: Classifier, dataset: Dataset) -> bool:
    """Returns True if the run was trained on this data set: by the content of its files, or else by its name."""
    if classifier.fingerprint and dataset.fingerprint:
        return dataset.fingerprint == classifier.fingerprint
    return dataset.name == classifier.data


def was_given(classifier: Classifier) -> bool:
    """True if `fit` was given the data set in Python: the configuration has the default source, which was not read."""
    return classifier.config.data.source == DataConfig.source != classifier.data


def is_new_folder(workdir: Path, classifier: Classifier, data: DataConfig) -> bool:
    """Returns True if the data is another folder than the run's. The run's own may have been moved.

    A moved one has no other images; some may be missing if the run has a list of its examples.
    """
    own = classifier.config.data
    if data.source != "folder" or (own.source == "folder" and as_path(str(data.dir)) == as_path(str(own.dir))):
        return False
    if own.source == "folder" and (listing := read_listing(workdir)) is not None:
        return not is_listed(data, listing)
    if classifier.fingerprint:
        return fingerprint(data, classifier.class_names) != classifier.fingerprint
    # an earlier version did not keep it: a folder of that name with as many images is taken for the run's own
    place = Path(str(data.dir)).resolve()
    return printable(place.stem) != classifier.data or count_files(data, classifier.class_names) != sum(
        classifier.examples
    )


def fill_from_run(data: DataConfig | None, own: DataConfig) -> DataConfig:
    """Returns the data to evaluate, with the size and the range of values of the run where they are left open."""
    if data is None or data.source != own.source:
        return data or own
    return dataclasses.replace(
        data, image_size=data.image_size or own.image_size, value_range=data.value_range or own.value_range
    )


def check_named(classifier: Classifier, dataset: Dataset) -> None:
    """Raises InputError if the run was trained on another data set than its configuration names."""
    if is_own(classifier, dataset):
        return
    ways = f"`{EVALUATE}` evaluates it there, and `flaxcls.analysis.report.read_run(RUN, dataset=...)` is for a report"
    if was_given(classifier):
        raise InputError(
            f"the run was trained on {classifier.data}, which fit was given in Python, so no command can load it: "
            f"{ways}. Or evaluate images in files, by --data.source folder --data.dir DIR."
        )
    raise InputError(
        f"the run was trained on {classifier.data}, but its configuration names {dataset.name}, which is other data: "
        f"name the run's own by --data.dir or, if fit was given it in Python, {ways}."
    )


def check_fit(classifier: Classifier, dataset: Dataset) -> None:
    """Raises InputError if a data set has other classes, or images of another shape or depth, than the model needs."""
    known, given = classifier.class_names, tuple(dataset.class_names)
    if known != given:
        missing, extra = ([n for n in a if n not in b][:5] for a, b in ((known, given), (given, known)))
        reason = (
            f"the data lacks {missing}, and the run does not know {extra}"
            if missing or extra
            else "they come in another order"
        )
        raise InputError(
            f"{dataset.name} has {len(given)} classes, and the run was trained on {len(known)}: {reason}. Give data of "
            "the same classes in the same order (--data.*)."
        )
    if tuple(dataset.image_shape) != classifier.image_shape:
        raise InputError(
            f"{dataset.name} has images of {format_shape(dataset.image_shape)}, but the run was trained on images of "
            f"{format_shape(classifier.image_shape)} (height x width x channels): give data of that size (--data.*)."
        )
    if dataset.preparation is not None and dataset.preparation.of_bytes:
        try:
            classifier.preparation.check_depth(["uint8"])
        except ValueError as error:
            raise InputError(f"{dataset.name}: {error}") from error


def describe_differences(classifier: Classifier, dataset: Dataset, data: DataConfig) -> str:
    """Returns the differences between the data and the run's own as text; its place, and how it is held, may differ."""
    config = classifier.config
    free = {name: getattr(config.data, name) for name in FREE_DATA}
    lines = differences(config, dataclasses.replace(config, data=dataclasses.replace(data, **free)))
    for what, trained, given in (
        ("name", classifier.data, classifier.data if is_own(classifier, dataset) else dataset.name),
        ("examples", list(classifier.examples), list(dataset.sizes)),
    ):
        if trained != given:
            lines.append(f"{what}: {trained} -> {given}")
    return "; ".join(lines)


def load_validation_split(workdir: Path, classifier: Classifier) -> Split:
    """Returns the run's validation split, loaded again from the data that its configuration names.

    Raises:
      InputError: if the run had no validation split, or the data is missing or differs from what the run saw, such as
        when `fit` was given arrays.
    """
    if classifier.examples[1:2] == (0,):
        raise InputError("the run was trained without a validation split, as data.validation_fraction is 0.")
    if was_given(classifier):
        raise InputError(
            f"the run was trained on {classifier.data}, which fit was given in Python, so its validation split is not "
            "at hand."
        )
    dataset = load_trained_on(classifier.config.data, workdir)
    name = classifier.data
    if not is_own(classifier, dataset):
        name = dataset.name if dataset.name != name else f"{name} with other images"
    for what, loaded, trained in (
        ("the data set", name, classifier.data),
        ("classes", list(dataset.class_names), list(classifier.class_names)),
        ("examples", dataset.sizes, classifier.examples),
    ):
        if loaded != trained:
            raise InputError(
                f"the data that the configuration names is not what the run saw: {what} {loaded}, but the run had "
                f"{trained}. If fit was given arrays, they are needed again."
            )
    assert dataset.validation is not None  # its size is the one in the run, which is not 0
    return dataset.validation
