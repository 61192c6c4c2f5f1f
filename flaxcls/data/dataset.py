"""A data set, and how it is split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flaxcls.data.images import Images
from flaxcls.data.stream import permutation
from flaxcls.errors import InputError


class Split(NamedTuple):
    """images: u8[n h w c] of 0..255, or f32 of 0..1. labels: i32[n], class numbers. names: of the examples, or None."""

    images: np.ndarray | Images
    labels: np.ndarray
    names: Sequence[str] | None = None

    @property
    def ids(self) -> list[str]:
        """What each example is called: the path of its file, or its number in the split."""
        return [str(number) for number in range(len(self.labels))] if self.names is None else list(self.names)

    def take(self, indices: np.ndarray) -> "Split":
        """Returns the examples at `indices`, i64[m]."""
        images = self.images.take(indices) if isinstance(self.images, Images) else self.images[indices]
        names = None if self.names is None else [self.names[index] for index in indices]
        return Split(images, self.labels[indices], names)


@dataclass(frozen=True)
class Dataset:
    """Images of one size in three disjoint splits. The test split is looked at once, at the end.

    validation: None where nothing is held out of train: no parameters can be called the best then.
    notes: what whoever trains on it should be told, such as files that were left out.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    notes: Sequence[str] = ()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(h, w, c) of one image."""
        return self.train.images.shape[1:]

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by their names."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many examples are in train, validation and test."""
        return tuple(0 if split is None else len(split.labels) for split in (self.train, self.validation, self.test))

    @property
    def described(self) -> str:
        """The line that tells its name and sizes."""
        sizes = ", ".join(f"{len(split.labels):,} {name}" for name, split in self.splits.items())
        return f"{self.name}: {sizes} images of {len(self.class_names)} classes"


def from_arrays(
    images: np.ndarray | Images,
    labels: np.ndarray,
    *,
    validation: tuple[np.ndarray | Images, np.ndarray] | None = None,
    test: tuple[np.ndarray | Images, np.ndarray] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Returns a Dataset of the caller's own arrays.

    Args:
      images: u8[n h w c] of 0..255 or f32[n h w c] of 0..1; grey images may lack the last axis. `Images`, for several
        sizes, will do as well.
      labels: integers [n], from 0.
      validation, test: (images, labels) of their own; what is not given is carved out of `images`, stratified.
      validation_fraction: share of the training examples that becomes the validation split; 0: there is none.
      test_fraction: share of all examples that becomes the test split.
      split_seed: decides which.
      class_names: in the order of the labels; without them "0", "1", ...
      name: what the data set is called in the run's files.

    Raises:
      InputError: for shapes, types or labels that do not fit, and for a split without examples.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction!r}, but must be above 0 and below 1.")
    if not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction is {validation_fraction!r}, but must be 0 or more and below 1.")
    train = _split(images, labels, "images")
    if class_names is None:
        class_names = [str(label) for label in range(int(train.labels.max(initial=-1)) + 1)]
    given = {part: _split(*pair, part) for part, pair in (("validation", validation), ("test", test)) if pair}
    for part, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if part not in given and fraction:
            rest, held_out = stratified_split(train.labels, fraction, split_seed)
            train, given[part] = train.take(rest), train.take(held_out)
    return from_splits(train, given.get("validation"), given["test"], class_names=class_names, name=name)


def from_splits(
    train: Split,
    validation: Split | None,
    test: Split,
    *,
    class_names: Sequence[str],
    name: str,
    notes: Sequence[str] = (),
) -> Dataset:
    """Returns a Dataset of its splits. Raises InputError where one is empty, or they do not fit together."""
    dataset = Dataset(name, tuple(class_names), train, validation, test, notes)
    _check(dataset)
    return dataset


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns sorted indices (rest, held out): of each class, `fraction` of its examples is held out, rounded.

    The seed decides which. What is left over by rounding class by class is not made up for.
    """
    shuffled = permutation(seed, 0, len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, counts = np.unique(labels, return_counts=True)
    chosen = np.zeros(len(labels), bool)
    for members in np.split(by_class, np.cumsum(counts)[:-1]):
        chosen[members[: round(fraction * len(members))]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns all indices i64[n], shuffled so that each beginning holds the classes in the proportions of the whole."""
    shuffled = permutation(seed, 0, len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place, kind="stable")]


def channel_statistics(images: np.ndarray | Images) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation f64[c] of each channel of images [n h w c], with bytes scaled to 0..1.

    A channel that never changes gets the deviation 1, so that normalising leaves it at 0.
    """
    total = np.zeros(images.shape[-1])
    squares = np.zeros(images.shape[-1])
    for start in range(0, len(images), 1024):
        pixels = images[start : start + 1024].astype(np.float64).reshape(-1, images.shape[-1])
        total += pixels.sum(axis=0)
        squares += np.square(pixels).sum(axis=0)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    count = math.prod(images.shape[:-1])
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0)) / scale
    return mean / scale, np.where(std > 1e-6, std, 1.0)


def _split(images: np.ndarray | Images, labels: np.ndarray, what: str) -> Split:
    images, labels = images if isinstance(images, Images) else _pixels(images, what), np.asarray(labels)
    if labels.shape != images.shape[:1]:
        raise InputError(f"{what}: {len(images)} images, but labels of shape {labels.shape}; one label an image.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{what}: labels are {labels.dtype}, but must be integers: class numbers from 0.")
    return Split(images, labels.astype(np.int32))


def _pixels(images: np.ndarray, what: str) -> np.ndarray:
    """Returns u8[n h w c], or f32 of 0..1."""
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4:
        raise InputError(f"{what} has the shape {images.shape}, but [n h w c] or [n h w] is needed.")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"{what}: images are {images.dtype}, but must be uint8 of 0..255 or float32 of 0..1.")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise InputError(
            f"{what}: float images are in {images.min():g}..{images.max():g}, but must be in 0..1: "
            "scale them, or give uint8."
        )
    return images.astype(np.float32)


def _check(dataset: Dataset) -> None:
    classes = len(dataset.class_names)
    for part, split in dataset.splits.items():
        if len(split.labels) == 0:
            raise InputError(
                f"the {part} split of {dataset.name} has no example: give more examples, or another "
                "data.validation_fraction or data.test_fraction."
            )
        if split.images.shape[1:] != dataset.image_shape or split.images.dtype != dataset.train.images.dtype:
            raise InputError(
                f"the {part} split of {dataset.name} has images {split.images.dtype}{list(split.images.shape[1:])}, "
                f"but train has {dataset.train.images.dtype}{list(dataset.image_shape)}: all must be alike."
            )
        wrong = split.labels[(split.labels < 0) | (split.labels >= classes)]
        if len(wrong):
            raise InputError(
                f"the {part} split of {dataset.name} has the label {wrong[0]}, but its {classes} classes are numbered "
                f"0..{classes - 1}: mend the labels, or name every class in class_names."
            )
