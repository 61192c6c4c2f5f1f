"""The caller's own arrays as a data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxcls.data.dataset import Dataset, Split, from_splits, stratified_split
from flaxcls.data.images import Images
from flaxcls.data.preparation import Preparation
from flaxcls.errors import InputError


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
      images: u8[n h w c] in 0..255 or f32[n h w c] in 0..1; grey images may lack the last axis. `Images`, for several
        sizes, are accepted too.
      labels: integers [n], from 0.
      validation, test: (images, labels) of the split. A split that is not given is taken out of `images`, stratified.
      validation_fraction: share of the training examples that becomes the validation split; 0: no validation split.
      test_fraction: share of all examples that becomes the test split.
      split_seed: seed that decides which examples are held out.
      class_names: names in the order of the labels; by default "0", "1", ...
      name: name of the data set in the run's files.

    Raises:
      InputError: for invalid shapes, types or labels, and for a split without examples.
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
    preparation = (
        images.preparation if isinstance(images, Images) else _preparation(train.images.shape[1:], train.images.dtype)
    )
    return from_splits(
        train, given.get("validation"), given["test"], class_names=class_names, name=name, preparation=preparation
    )


def _preparation(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Preparation:
    height, width, channels = shape
    return Preparation((height, width), channels, "squash", None if dtype == np.uint8 else (0.0, 1.0))


def _split(images: np.ndarray | Images, labels: np.ndarray, what: str) -> Split:
    images, labels = images if isinstance(images, Images) else _pixels(images, what), np.asarray(labels)
    if labels.shape != images.shape[:1]:
        raise InputError(f"{what}: {len(images)} images, but labels of shape {labels.shape}; give one label per image.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{what}: labels are {labels.dtype}, but must be integers: class numbers from 0.")
    return Split(images, labels.astype(np.int32))


def _pixels(images: np.ndarray, what: str) -> np.ndarray:
    """Returns u8[n h w c], or f32[n h w c] in 0..1."""
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4:
        raise InputError(f"{what} has the shape {images.shape}, but must be [n h w c] or [n h w].")
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
