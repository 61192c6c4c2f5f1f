"""The pictures of a data set as inputs of a model: what fits is chosen, in memory or not, and all of it is said."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from flaxcls.config import DataConfig
from flaxcls.data.images import Images, unify, unreadable
from flaxcls.data.notes import explain_range, notes_on_channels, notes_on_files, notes_on_resizing, notes_on_values
from flaxcls.data.picture import Extent, Head, Picture, extent_of
from flaxcls.data.preparation import (
    Preparation,
    check_columns,
    choose_channels,
    choose_range,
    choose_size,
    explain_size,
)
from flaxcls.data.stored import Stored
from flaxcls.errors import InputError

T = TypeVar("T")


class Arranged(NamedTuple):
    """The images of each split, how they were prepared, and notes for whoever trains on them."""

    images: dict[str, np.ndarray | Images]
    preparation: Preparation
    notes: list[str]


def _attempt(choose: Callable[[], T], guess: T, problems: list[str] | None) -> tuple[T, bool]:
    """Returns what is chosen and True or, if that is refused and there is a list of problems, the guess and False."""
    try:
        return choose(), True
    except InputError as error:
        if problems is None:
            raise
        problems.append(str(error))
        return guess, False


def _choose_range(
    heads: Sequence[Head], low: float, high: float, columns: Sequence[str], name: str
) -> tuple[float, float] | None:
    check_columns(heads, columns, name)
    return choose_range(Counter(head.dtype for head in heads), low, high, name)


def arrange(
    parts: Mapping[str, tuple[Stored | list[Picture], Sequence[Head]]],
    config: DataConfig,
    *,
    name: str,
    advice: str,
    labels: Mapping[str, np.ndarray] | None = None,
    prepared: Preparation | None = None,
    later: str = "",
    problems: list[str] | None = None,
) -> Arranged:
    """Returns the images of each split: one array if all images have one size and together fit into the memory.

    Args:
      parts: for each split, its pictures, maybe decoded already, and their heads.
      config: size, way to it, channels, range of values, and the memory for decoded images.
      name: of the data set.
      advice: text for the error message: what to do about pictures that cannot be read.
      labels: i32[n] for each split, if others take the place of pictures that cannot be read, as `Images` says.
      prepared: how the images are prepared; None: as `config` says, or as is found.
      later: like `advice`, for a picture that is read when it is needed.
      problems: gets the lines on channels and on a range that cannot be known; None: they are refused.

    Raises InputError for pictures that cannot be read, and if channels or range of values cannot be known.
    """
    heads = [head for _, part in parts.values() for head in part]
    sizes = [head.size for head in heads]
    preparation, channels_known, range_known = prepared, True, True
    if preparation is None:
        usual = Counter(head.channels for head in heads).most_common(1)[0][0]
        number, channels_known = _attempt(lambda: choose_channels(config.color, heads, name), usual, problems)
        size = as_size(config.image_size) or choose_size(sizes)
        has_alpha = all(head.alpha and head.channels == number for head in heads)
        preparation = Preparation(size, number, config.resize, config.value_range, alpha=has_alpha)
    target, channels = preparation.size, preparation.channels
    dtypes = Counter(head.dtype for head in heads)
    deep = preparation.value_range is not None or not dtypes.keys() <= {"uint8"}
    needed = sum(height * width for height, width in sizes) * channels * (4 if deep else 1)
    fits_memory, whole = needed <= config.memory * 2**30, set(sizes) <= {target}
    spare = labels is not None  # one that cannot be read may be replaced
    pictures: dict[str, list[Picture | str]] = {
        part: [*stored] if isinstance(stored, list) else _each(stored.__getitem__, len(stored), advice, spare)
        for part, (stored, _) in parts.items()
        if fits_memory
    }
    extents: list[Extent] = []
    if deep and prepared is None:
        measured = [
            result
            for part, (stored, _) in parts.items()
            for result in _measure(pictures.get(part, stored), advice, spare or problems is not None)
        ]
        extents = [result for result in measured if not isinstance(result, str)]
        if not extents:
            check_readable(measured, advice)
        low, high = min(extent.low for extent in extents), max(extent.high for extent in extents)
        value_range = config.value_range
        if value_range is None:
            guess: tuple[float, float] | None = (low, max(high, low + 1))
            choose = partial(_choose_range, heads, low, high, config.path_column, name)
            value_range, range_known = _attempt(choose, guess, problems)
        of_bytes = any("uint8" in head.dtypes for head in heads)
        preparation = replace(preparation, value_range=value_range, of_bytes=of_bytes)

    def make_images(part: str, stored: Stored | list[Picture]) -> np.ndarray | Images:
        alike = None if labels is None else labels[part]
        if part not in pictures:
            assert not isinstance(stored, list)
            return Images(stored, preparation, whole=whole, labels=alike, advice=later)
        ready: list[np.ndarray | str] = []
        pending = pictures.pop(part)[::-1]  # each picture is freed when its image is ready
        while pending:
            picture = pending.pop()
            try:
                ready.append(picture if isinstance(picture, str) else unify(stored, len(ready), picture, preparation))
            except InputError as error:
                if labels is None and prepared is None:
                    raise
                ready.append(str(error))
        if labels is None:
            check_readable(ready, advice)
        if not whole or any(isinstance(image, str) for image in ready):
            return Images(ready, preparation, whole=whole, labels=alike)
        array = np.empty((len(ready), *preparation.shape), preparation.dtype)
        for index, image in enumerate(ready):
            assert not isinstance(image, str)
            array[index], ready[index] = preparation.fit(image), ""  # a file may have changed since its head was read
        return array

    images = {part: make_images(part, stored) for part, (stored, _) in parts.items()}
    size_found = prepared is None and not config.image_size
    range_found = range_known and config.value_range is None and preparation.value_range is not None
    notes = [
        *notes_on_values(
            extents,
            preparation,
            is_known=range_known,
            why=explain_range(*preparation.value_range) if range_found and preparation.value_range else "",
        ),
        *notes_on_resizing(heads, preparation, why=explain_size(sizes) if size_found else ""),
        *(notes_on_channels(heads, preparation) if channels_known else ()),
        *notes_on_files(heads),
    ]
    return Arranged(images, preparation, notes)


def _measure(stored: Stored | Sequence[Picture | str], advice: str, spare: bool) -> list[Extent | str]:
    def measure(index: int) -> Extent:
        picture = stored[index]
        if isinstance(picture, str):
            raise InputError(picture)
        return extent_of(picture)

    return _each(measure, len(stored), advice, spare)


def as_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Returns height and width: one number means a square."""
    return (size, size) if isinstance(size, int) else size


def _each(read: Callable[[int], T], count: int, advice: str, spare: bool) -> list[T | str]:
    """Returns `read(index)` for each picture, or why it cannot be read.

    Raises InputError with the first ten that cannot be read, and the advice, unless they are to be spared.
    """

    def attempt(index: int) -> T | str:
        try:
            return read(index)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(attempt, range(count)))
    if not spare:
        check_readable(results, advice)
    return results


def check_readable(results: Sequence[object], advice: str) -> None:
    """Raises InputError if some results are strings, which say why a file cannot be read."""
    problems = [problem for problem in results if isinstance(problem, str)]
    if problems:
        raise InputError(f"{unreadable(problems, len(results))}\n{advice}")
