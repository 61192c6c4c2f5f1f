"""The pictures of a data set as inputs of a model: what fits is chosen, in memory or not, and all of it is said."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from flaxcls.config import DataConfig
from flaxcls.data.images import Images, unify, unreadable
from flaxcls.data.picture import Extent, Head, Picture, extent_of, format_shape
from flaxcls.data.preparation import Preparation, check_columns, choose_channels, choose_range, choose_size
from flaxcls.data.resize import share_kept
from flaxcls.data.stored import Stored
from flaxcls.errors import InputError, refuse

MOST_KINDS = 6  # of what is not read that have a line each
T = TypeVar("T")
FLAT = 0.01  # share of the range of values; an image that uses less of it has hardly anything to see


class Arranged(NamedTuple):
    """The images of each split, how they were prepared, and notes for whoever trains on them."""

    images: dict[str, np.ndarray | Images]
    preparation: Preparation
    notes: list[str]


def _choose_channels(color: str, heads: Sequence[Head], name: str, problems: list[str] | None) -> int:
    try:
        return choose_channels(color, heads, name)
    except InputError as error:
        refuse(str(error), problems)
        return Counter(head.channels for head in heads).most_common(1)[0][0]


def _choose_range(
    heads: Sequence[Head], low: float, high: float, columns: Sequence[str], name: str, problems: list[str] | None
) -> tuple[float, float] | None:
    try:
        check_columns(heads, columns, name)
        return choose_range(Counter(head.dtype for head in heads), low, high, name)
    except InputError as error:
        refuse(str(error), problems)
        return low, max(high, low + 1)


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
    preparation = prepared or Preparation(
        as_size(config.image_size) or choose_size(sizes),
        _choose_channels(config.color, heads, name, problems),
        config.resize,
        config.value_range,
    )
    if prepared is None:
        has_alpha = all(head.alpha and head.channels == preparation.channels for head in heads)
        preparation = replace(preparation, alpha=has_alpha)
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
    extents = []
    if deep and prepared is None:
        measured = [
            result
            for part, (stored, _) in parts.items()
            for result in _measure(pictures.get(part, stored), advice, spare)
        ]
        extents = [result for result in measured if not isinstance(result, str)]
        if not extents:
            check_readable(measured, advice)
        low, high = min(extent.low for extent in extents), max(extent.high for extent in extents)
        value_range = config.value_range or _choose_range(heads, low, high, config.path_column, name, problems)
        preparation = replace(
            preparation, value_range=value_range, of_bytes=any("uint8" in head.dtypes for head in heads)
        )

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
    return Arranged(images, preparation, [*notes_on_values(extents, preparation), *notes_on_sizes(heads, preparation)])


def _measure(stored: Stored | Sequence[Picture | str], advice: str, spare: bool) -> list[Extent | str]:
    def measure(index: int) -> Extent:
        picture = stored[index]
        if isinstance(picture, str):
            raise InputError(picture)
        return extent_of(picture)

    return _each(measure, len(stored), advice, spare)


def notes_on_values(extents: Collection[Extent], preparation: Preparation, *, options: bool = True) -> list[str]:
    """Returns lines on values that are brought to 0..1, that lie outside of the range, or that are NaN.

    options: True to name the option that decides it.
    """
    if preparation.value_range is None or not extents:
        return []
    low, high = preparation.value_range
    least, greatest = min(extent.low for extent in extents), max(extent.high for extent in extents)
    by = " (--data.value-range)" if options else ""
    notes = [f"values of {least:g}..{greatest:g} in the files: {low:g}..{high:g} becomes 0..1{by}"]
    outside = sum(extent.low < low or extent.high > high for extent in extents)
    if outside:
        notes.append(f"{outside:,} of {len(extents):,} images have values outside of that, which become its ends")
    flat = sum(min(extent.high, high) - max(extent.low, low) < FLAT * (high - low) for extent in extents)
    if flat:
        notes.append(
            f"{flat:,} of {len(extents):,} images use less than {FLAT:.0%} of that, so the model sees them flat"
        )
    missing = sum(extent.missing > 0 for extent in extents)
    if missing:
        count = sum(extent.missing for extent in extents)
        notes.append(
            f"{missing:,} of {len(extents):,} images have {count:,} NaN or no-data values, which become {low:g}"
        )
    return notes


def notes_on_sizes(heads: Sequence[Head], preparation: Preparation, *, options: bool = True) -> list[str]:
    """Returns lines on images that are brought to another size or other channels, and on what of files is not read.

    options: True to name the options that decide it.
    """

    def by(names: str) -> str:
        return f" ({names})" if options else ""

    notes = []
    size, how = preparation.size, preparation.resize
    others = [head.size for head in heads if head.size != size]
    if others:
        common, count = Counter(others).most_common(1)[0]
        most = "most of them" if 2 * count > len(others) else f"{len(set(others)):,} sizes, most often"
        line = (
            f"{len(others):,} of {len(heads):,} images are not {format_shape(size)} ({most} {format_shape(common)}): "
            f"{HOW[how]} to that{by('--data.image-size, --data.resize')}"
        )
        if how == "crop":
            kept = [share_kept(other, size) for other in others]
            line += f"; evaluation sees {np.mean(kept):.0%} of them on average, {min(kept):.0%} at least"
        notes.append(line)
    grey = sum(head.channels <= 2 for head in heads)
    if preparation.channels == 3 and grey:
        notes.append(
            f"{grey:,} of {len(heads):,} images are grey and get three equal channels{by('--data.color grey')}"
        )
    colours = sum(head.channels >= 3 for head in heads)
    if preparation.channels == 1 and colours:
        notes.append(f"{colours:,} of {len(heads):,} images are in colours, which become grey{by('--data.color')}")
    transparent = sum(head.channels in (2, 4) for head in heads)
    if preparation.channels in (1, 3) and transparent:
        notes.append(f"{transparent:,} of {len(heads):,} images are transparent and are laid on white")
    kinds = Counter(head.note for head in heads if head.note).most_common()
    notes += [f"{count:,} of {len(heads):,} files have {note}" for note, count in kinds[:MOST_KINDS]]
    more = sum(count for _, count in kinds[MOST_KINDS:])
    if more:
        notes.append(f"{more:,} of {len(heads):,} files have other parts that are not read")
    return notes


HOW = {"crop": "cropped", "squash": "squashed", "pad": "padded"}


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
