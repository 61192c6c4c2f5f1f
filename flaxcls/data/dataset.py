"""Data sets and their splits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from flaxcls.data.images import Images, Unread
from flaxcls.data.picture import Head
from flaxcls.data.preparation import Preparation
from flaxcls.data.stream import permutation
from flaxcls.data.table import UNLABELLED
from flaxcls.errors import InputError, refuse

REST = "the rest"  # where train comes from if a split is held out of it


class Split(NamedTuple):
    """Examples with their labels.

    images: u8[n h w c] in 0..255, or f32[n h w c] in 0..1.
    labels: i32[n], class numbers.
    names: names of the examples, or None.
    heads: what the files of the examples say of their pictures, or None if there are no files.
    contents: u64[n], equal for files of the same bytes, or None if they were not compared.
    """

    images: np.ndarray | Images
    labels: np.ndarray
    names: Sequence[str] | None = None
    heads: Sequence[Head] | None = None
    contents: np.ndarray | None = None

    @property
    def ids(self) -> list[str]:
        """The name of each example: the path of its file, or its number in the split."""
        return [str(number) for number in range(len(self.labels))] if self.names is None else list(self.names)

    @property
    def unread(self) -> Mapping[int, Unread]:
        """The examples that could not be read so far, by their indices, if they do not stop a run."""
        return self.images.unread if isinstance(self.images, Images) else {}

    def take(self, indices: np.ndarray) -> "Split":
        """Returns the examples at `indices`, i64[m]."""
        images = self.images.take(indices) if isinstance(self.images, Images) else self.images[indices]
        names, heads = (
            None if of_examples is None else [of_examples[index] for index in indices]
            for of_examples in (self.names, self.heads)
        )
        contents = None if self.contents is None else self.contents[indices]
        return Split(images, self.labels[indices], names, heads, contents)


@dataclass(frozen=True)
class Dataset:
    """Images of one size in three disjoint splits. The test split is used only once, at the end.

    validation: None if nothing is held out of train; then no parameters can be chosen as the best.
    notes: messages for whoever trains on the data set, such as files that were left out.
    preparation: how the images became inputs of the model; None if that is not known.
    fingerprint: hash of names, labels and contents of the files; "" if there are none.
    listing: list of the examples in their files, from which `load_dataset` gives the same ones again; None: no files.
    statistics: mean and standard deviation of the channels, f64[c] each, that are used; None: those of train.
    source: format and place of the data, such as "folder of classes /data/pets".
    origins: for each split, where its examples come from, such as "20 % of all, held out by split seed 0".
    unreadable: for each file that is left out because it cannot be read, its name and why.
    changes: those of the notes that say what has changed in the files since a run began.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    notes: Sequence[str] = ()
    preparation: Preparation | None = None
    fingerprint: str = ""
    listing: bytes | None = None
    statistics: tuple[np.ndarray, np.ndarray] | None = None
    source: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)
    unreadable: Sequence[str] = ()
    changes: Sequence[str] = ()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(h, w, c) of one image."""
        return self.train.images.shape[1:]

    @property
    def splits(self) -> dict[str, Split]:
        """The existing splits, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of examples in train, validation and test."""
        return tuple(0 if split is None else len(split.labels) for split in (self.train, self.validation, self.test))

    @property
    def described(self) -> str:
        """A line with the name and the sizes."""
        if not self.is_labelled:
            count = len(self.train.labels)
            return f"data set {self.name}: {count:,} image{'s' * (count > 1)} {UNLABELLED}"
        sizes = ", ".join(f"{len(split.labels):,} {name}" for name, split in self.splits.items())
        classes = len(self.class_names)
        return f"data set {self.name}: {sizes} images of {classes} class{'es' * (classes > 1)}"

    @property
    def is_labelled(self) -> bool:
        """False if nothing gives the images labels, so that they can only be looked at."""
        return self.class_names != (UNLABELLED,)

    def without_replacing(self) -> "Dataset":
        """Returns the data set in which no image takes the place of one that cannot be read."""

        def alone(split: Split) -> Split:
            images = split.images
            return split._replace(images=images.alone(np.arange(len(images)))) if isinstance(images, Images) else split

        validation = None if self.validation is None else alone(self.validation)
        return replace(self, train=alone(self.train), validation=validation, test=alone(self.test))

    @property
    def class_counts(self) -> dict[str, dict[str, int]]:
        """The number of examples of each class, by the name of the split and then that of the class."""
        counts = {
            part: np.bincount(split.labels, minlength=len(self.class_names)) for part, split in self.splits.items()
        }
        return {part: dict(zip(self.class_names, numbers.tolist(), strict=True)) for part, numbers in counts.items()}


def validation_stands_for_test(name: str) -> str:
    """Returns the note that a source without a test split is tested on its validation split."""
    return (
        f"{name} has no test split: its validation split stands for it, and what chooses the parameters is held out "
        "of train (--data.test-from train holds out both)"
    )


def from_splits(
    train: Split,
    validation: Split | None,
    test: Split,
    *,
    class_names: Sequence[str],
    name: str,
    notes: Sequence[str] = (),
    preparation: Preparation | None = None,
    fingerprint: str = "",
    listing: bytes | None = None,
    source: str = "",
    origins: Mapping[str, str] | None = None,
    unreadable: Sequence[str] = (),
    problems: list[str] | None = None,
) -> Dataset:
    """Returns a Dataset of the splits. A further note names the classes without a training image.

    problems: gets the line on a split that is empty; None: it is refused.

    Raises InputError if a split is empty, or they do not match.
    """
    dataset = Dataset(
        name,
        tuple(class_names),
        train,
        validation,
        test,
        notes,
        preparation,
        fingerprint,
        listing,
        source=source,
        origins=origins or {},
        unreadable=unreadable,
    )
    _check(dataset, problems)
    absent = describe_unseen_classes(dataset)
    return dataset if absent is None else replace(dataset, notes=[*notes, absent])


def describe_unseen_classes(dataset: Dataset) -> str | None:
    """Returns a line with the classes that have no training image, or None if there are none."""
    names = dataset.class_names
    absent = [names[label] for label in np.setdiff1d(np.arange(len(names)), dataset.train.labels)]
    if not absent:
        return None
    named = f"{', '.join(absent[:10])}{', ...' if len(absent) > 10 else ''}"
    return f"classes without a training image, which cannot be learned: {named} ({len(absent)} of {len(names)})"


def describe_held_out(share: float, origins: Mapping[str, str], seed: int, difference: str = "") -> str:
    """Returns where a split comes from that is held out of train.

    Args:
      share: of the examples that are held out.
      origins: those of the splits that there are.
      seed: decides which examples are held out.
      difference: from the share that was asked for, and why.
    """
    of = "all" if len(origins) == 1 else "train" if origins["train"] != REST else REST
    return f"{100 * share:.3g} % of {of}{difference and f' ({difference})'}, held out by split seed {seed}"


def hold_out(
    parts: Mapping[str, Split], fractions: Mapping[str, float], seed: int
) -> tuple[dict[str, Split], dict[str, str]]:
    """Returns the splits with those that are missing taken out of train, stratified; and where each comes from.

    Args:
      parts: the splits that are given, train among them.
      fractions: share of train that becomes each split, in this order; 0: none.
      seed: decides which examples are held out.
    """
    parts, origins = dict(parts), dict.fromkeys(parts, "given")
    for part, fraction in fractions.items():
        if part not in parts and fraction:
            rest, held_out = stratified_split(parts["train"].labels, fraction, seed)
            parts["train"], parts[part] = parts["train"].take(rest), parts["train"].take(held_out)
            origins |= {part: describe_held_out(fraction, origins, seed), "train": REST}
    return parts, origins


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns sorted indices (rest, held out); of each class, the share `fraction` of its examples is held out.

    The seed decides which examples. The number is rounded for each class; rounding errors of classes may add up.
    """
    shuffled = permutation(seed, 0, len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, counts = np.unique(labels, return_counts=True)
    chosen = np.zeros(len(labels), bool)
    for members in np.split(by_class, np.cumsum(counts)[:-1]):
        chosen[members[: round(fraction * len(members))]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns all indices i64[n], shuffled so that the first m, for any m, have the class proportions of the whole."""
    shuffled = permutation(seed, 0, len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place, kind="stable")]


def channel_statistics(images: np.ndarray | Images, indices: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation, f64[c] each, of the channels of images [n h w c]; bytes are scaled to 0..1.

    A constant channel gets the deviation 1, so that normalising makes it 0.

    indices: i64[m], indices of the images to take; None: all.
    """
    total = np.zeros(images.shape[-1])
    squares = np.zeros(images.shape[-1])
    count = len(images) if indices is None else len(indices)
    for start in range(0, count, 1024):
        part = slice(start, start + 1024)
        pixels = images[part if indices is None else indices[part]].astype(np.float64).reshape(-1, images.shape[-1])
        total += pixels.sum(axis=0)
        squares += np.square(pixels).sum(axis=0)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    values = count * math.prod(images.shape[1:-1])
    mean = total / values
    std = np.sqrt(np.maximum(squares / values - np.square(mean), 0)) / scale
    return mean / scale, np.where(std > 1e-6, std, 1.0)


def _check(dataset: Dataset, problems: list[str] | None) -> None:
    classes = len(dataset.class_names)
    for part, split in dataset.splits.items():
        if len(split.labels) == 0:
            held_out = dataset.origins.get(part, "")
            origin = f"; it is {held_out}" if "held out" in held_out else ""
            refuse(
                f"the {part} split of {dataset.name!r} has no example{origin}: give more different examples of each "
                "class, or another data.validation_fraction or data.test_fraction.",
                problems,
            )
            continue
        if split.images.shape[1:] != dataset.image_shape or split.images.dtype != dataset.train.images.dtype:
            raise InputError(
                f"the {part} split of {dataset.name!r} has images {split.images.dtype}{list(split.images.shape[1:])}, "
                f"but train has {dataset.train.images.dtype}{list(dataset.image_shape)}: all must be alike."
            )
        invalid = split.labels[(split.labels < 0) | (split.labels >= classes)]
        if len(invalid):
            starts_at_1 = split.labels.min() == 1 and split.labels.max() == classes
            raise InputError(
                f"the {part} split of {dataset.name!r} has the label {invalid[0]}, but its {classes} classes are "
                f"numbered 0..{classes - 1}: {'give `labels - 1`' if starts_at_1 else 'correct the labels'}, or name "
                "every class in class_names."
            )
