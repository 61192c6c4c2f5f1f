"""The caller's own arrays as a data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxcls.data.dataset import Dataset, Split, from_splits, hold_out
from flaxcls.data.images import Images
from flaxcls.data.preparation import Preparation
from flaxcls.errors import InputError

MOST_CHANNELS = 16
# what to write where labels are no class numbers: those of train, and of a split that must have the same numbers
NUMBERING = "give `classes, labels = np.unique(labels, return_inverse=True)` and class_names=classes"
NUMBERING_AGAIN = "give `[list(classes).index(label) for label in labels]`, with the classes of train"


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
    source: str = "arrays",
) -> Dataset:
    """Returns a Dataset of the caller's own arrays.

    Args:
      images: u8[n h w c] in 0..255 or f32[n h w c] in 0..1, of 1 to 16 channels; grey images may lack the last axis.
        `Images`, for several sizes, are accepted too, and what NumPy converts to such an array, such as lists.
      labels: integers [n] or [n 1] from 0, or one-hot labels [n k] of any type, as Keras makes them.
      validation, test: (images, labels) of the split. A split that is not given is taken out of `images`, stratified.
      validation_fraction: share of the training examples that becomes the validation split; 0: no validation split.
      test_fraction: share of all examples that becomes the test split.
      split_seed: seed that decides which examples are held out.
      class_names: names in the order of the labels. By default "0", "1", ...; then each class needs an example.
      name: name of the data set in the run's files.
      source: where the arrays come from, as a run says at its start.

    Raises:
      InputError: for invalid shapes, types or labels, and for a split without examples.
    """
    if not 0 < test_fraction < 1:
        raise InputError(f"test_fraction is {test_fraction!r}, but must be above 0 and below 1.")
    if not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction is {validation_fraction!r}, but must be 0 or more and below 1.")
    names = None if class_names is None else [str(class_name) for class_name in class_names]
    train = _split((images, labels), "images", names)
    if names is None:
        names = _numbered(train.labels, *np.shape(labels)[1:])
    pairs = {"validation": validation, "test": test}
    given = {part: _split(pair, part, names) for part, pair in pairs.items() if pair is not None}
    fractions = {"test": test_fraction, "validation": validation_fraction}
    parts, origins = hold_out({"train": train, **given}, fractions, split_seed)
    preparation = (
        images.preparation if isinstance(images, Images) else _preparation(train.images.shape[1:], train.images.dtype)
    )
    return from_splits(
        parts["train"],
        parts.get("validation"),
        parts["test"],
        class_names=names,
        name=name,
        preparation=preparation,
        source=source,
        origins=origins,
    )


def _preparation(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Preparation:
    height, width, channels = shape
    value_range = None if dtype == np.uint8 else (0.0, 1.0)
    return Preparation((height, width), channels, "squash", value_range, of_arrays=value_range is not None)


def _split(pair: tuple[np.ndarray | Images, np.ndarray], what: str, names: list[str] | None) -> Split:
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        raise InputError(f"{what} is of type {type(pair).__name__}, but must be a pair: (images, labels).")
    images = pair[0] if isinstance(pair[0], Images) else _pixels(pair[0], what)
    labels = _class_numbers(pair[1], what, names)
    if labels.shape[:1] != images.shape[:1]:
        raise InputError(f"{what}: {len(images)} images, but labels of shape {labels.shape}; give one label per image.")
    if labels.ndim == 2:
        if names is not None and labels.shape[1] != len(names):
            raise InputError(
                f"{what}: one-hot labels have {labels.shape[1]} columns, but there are {len(names)} classes: give a "
                "column for each class, in the same order in every split."
            )
        labels = labels.argmax(axis=1)
    return Split(images, labels.astype(np.int32))


def _class_numbers(labels: np.ndarray, what: str, names: list[str] | None) -> np.ndarray:
    """Returns integers [n], or exact one-hot labels [n k] as they are; Keras takes both.

    Whether integers are numbers of classes with `names` is left to `from_splits`.
    """
    try:
        labels = np.asarray(labels)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{what}: labels cannot become one array: {error} Give one label per image.") from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        wrong = np.flatnonzero(~((labels == 0) | (labels == 1)).all(axis=1) | (np.count_nonzero(labels, axis=1) != 1))
        if len(wrong):
            raise InputError(
                f"{what}: labels {labels.shape} must be one-hot, with a single 1 in each row, but {len(wrong):,} "
                f"rows are not, such as row {wrong[0]}: {labels[wrong[0]]}. If rows are scores of classes, give "
                "`labels.argmax(axis=1)`; several labels an image are not supported."
            )
        return labels
    if labels.ndim != 1:
        raise InputError(f"{what}: labels have the shape {labels.shape}, but must be [n], [n 1] or one-hot [n k].")
    if labels.dtype.kind not in "iu":
        is_whole = labels.dtype.kind in "bf" and bool(np.isfinite(labels).all() and (labels % 1 == 0).all())
        way_out = "give `labels.astype(int)`" if is_whole else NUMBERING if what == "images" else NUMBERING_AGAIN
        raise InputError(f"{what}: labels are {labels.dtype}, but must be integers, class numbers from 0: {way_out}.")
    low, high = labels.min(initial=0), labels.max(initial=0)
    if high >= 2**31 or (low < 0 and names is None):
        raise InputError(
            f"{what}: labels are {low} to {high}, but must be class numbers from 0: {NUMBERING}. Leave out examples "
            "whose number stands for no label."
        )
    return labels


def _numbered(labels: np.ndarray, columns: int = 0) -> list[str]:
    """Returns the names "0", "1", ... of the classes. Raises InputError if one has no example.

    columns: of one-hot labels, the number of the classes.
    """
    present = np.unique(labels)
    count = max(int(present.max(initial=-1)) + 1, columns)
    if len(present) in (0, count):
        return [str(label) for label in range(count)]
    if present[0] == 1 and present[-1] == len(present) == count - 1:
        raise InputError(
            f"images: labels are 1 to {present[-1]}, but class numbers start at 0: give `labels - 1`. If there is a "
            "class 0 without examples, name all classes in class_names."
        )
    missing = [str(label) for label in np.setdiff1d(np.arange(min(count, len(present) + 10)), present)[:10]]
    others = count - len(present) - len(missing)
    raise InputError(
        f"images: labels are of {count:,} classes, 0 to {count - 1}, but none is "
        f"{', '.join(missing)}{f', and {others:,} others' if others else ''}. To number the classes that there are, "
        f"{NUMBERING}; or name all in class_names."
    )


def _pixels(images: np.ndarray, what: str) -> np.ndarray:
    """Returns u8[n h w c], or f32[n h w c] in 0..1."""
    try:
        images = np.asarray(images)
        images = np.stack(list(images)) if images.dtype == object and images.ndim == 1 else images
    except (RuntimeError, TypeError, ValueError) as error:  # RuntimeError, TypeError: of the tensors of other libraries
        raise InputError(
            f"{what} cannot become one array: {str(error).rstrip('.')}. If they are of several sizes, bring them to "
            "one, or give `Images(list(images), Preparation((height, width), channels))`, for uint8 each, of "
            "flaxcls.data.images and flaxcls.data.preparation."
        ) from error
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise InputError(f"{what} has the shape {images.shape}, but must be [n h w c] or [n h w].")
    _check_channels(images.shape, what)
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        way_out = ": give `images.astype(np.uint8) * 255`" if images.dtype == bool else ""
        if images.dtype.kind in "iu" and images.size and 0 <= images.min() <= images.max() <= 255:
            way_out = ": give `images.astype(np.uint8)`"
        raise InputError(f"{what}: images are {images.dtype}, but must be uint8 of 0..255 or float32 of 0..1{way_out}.")
    _check_floats(images, what)
    return images.astype(np.float32)


def _check_channels(shape: tuple[int, ...], what: str) -> None:
    """Raises InputError for more than 16 channels, or if they seem to come before height and width."""
    _, first, second, last = shape
    # [n 1 8 8] are pictures of 8x8 pixels: nobody has pictures of one row, with as many channels as pixels
    if first <= MOST_CHANNELS < min(second, last) or first <= 4 < second == last:
        raise InputError(
            f"{what} has the shape {shape}, which looks like [n c h w], but must be [n h w c]: give "
            "`np.moveaxis(images, 1, -1)`."
        )
    if last > MOST_CHANNELS:
        raise InputError(
            f"{what} has the shape {shape}, so {last} channels, but [n h w c] may have {MOST_CHANNELS} at most: leave "
            "some out, or, if it is [n c h w], give `np.moveaxis(images, 1, -1)`."
        )


def _check_floats(images: np.ndarray, what: str) -> None:
    """Raises InputError if floats [n ...] are not all in 0..1. It names their range, or counts NaN and infinity."""
    if images.size == 0 or 0 <= images.min() <= images.max() <= 1:
        return
    wrong = ~np.isfinite(images)
    if wrong.any():
        where = wrong.reshape(len(wrong), -1).any(axis=1)
        raise InputError(
            f"{what}: {wrong.sum():,} values are NaN or infinite, in {where.sum():,} of {len(where):,} images (the "
            f"first is {where.argmax()}), but must be in 0..1: leave these images out, or give `np.nan_to_num(images)`."
        )
    low, high = images.min(), images.max()
    way_out = "scale them, or give uint8"
    if low >= -0.01 and high <= 1.01:  # rounded, or interpolated by a cubic
        way_out = "give `images.clip(0, 1)`"
    elif low >= 0 and high <= 255:
        way_out = "give `images / 255`"
    elif low >= -1 and high <= 1:
        way_out = "give `(images + 1) / 2`"
    raise InputError(f"{what}: float images are in {low:.8g}..{high:.8g}, but must be in 0..1: {way_out}.")
