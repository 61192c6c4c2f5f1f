"""The pictures of a data set as inputs of a model: what fits is chosen, in memory or not, and all of it is said."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from flaxcls.config import DataConfig
from flaxcls.data.images import Images, unify
from flaxcls.data.picture import Head, Picture, format_shape
from flaxcls.data.preparation import Preparation, choose_channels, choose_range, choose_size
from flaxcls.data.resize import share_kept
from flaxcls.data.stored import Stored
from flaxcls.errors import InputError, refuse

T = TypeVar("T")


class Extent(NamedTuple):
    """Least and greatest value of a picture, and the number of values that are NaN."""

    low: float
    high: float
    missing: int


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
    dtypes: Mapping[str, int], low: float, high: float, name: str, problems: list[str] | None
) -> tuple[float, float] | None:
    try:
        return choose_range(dtypes, low, high, name)
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
        extents = [
            extent
            for part, (stored, _) in parts.items()
            for extent in _extents(pictures.get(part, stored), advice, spare)
        ]
        low, high = min(extent.low for extent in extents), max(extent.high for extent in extents)
        value_range = config.value_range or _choose_range(dtypes, low, high, name, problems)
        preparation = replace(preparation, value_range=value_range)

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
                if labels is None:
                    raise
                ready.append(str(error))
        if not whole or any(isinstance(image, str) for image in ready):
            return Images(ready, preparation, whole=whole, labels=alike)
        array = np.empty((len(ready), *preparation.shape), preparation.dtype)
        for index, image in enumerate(ready):
            assert not isinstance(image, str)
            array[index], ready[index] = preparation.fit(image), ""  # a file may have changed since its head was read
        return array

    images = {part: make_images(part, stored) for part, (stored, _) in parts.items()}
    return Arranged(images, preparation, [*_notes_on_values(extents, preparation), *notes_on_sizes(heads, preparation)])


def _extents(stored: Stored | Sequence[Picture | str], advice: str, spare: bool) -> list[Extent]:
    def extent(index: int) -> Extent:
        picture = stored[index]
        if isinstance(picture, str):
            raise InputError(picture)
        return _extent(picture)

    found = _each(extent, len(stored), advice, spare)
    return [result for result in found if not isinstance(result, str)]


def _extent(picture: Picture) -> Extent:
    pixels = picture.pixels[..., :-1] if picture.alpha else picture.pixels
    if pixels.dtype.kind != "f":
        return Extent(float(pixels.min()), float(pixels.max()), 0)
    known = np.isfinite(pixels)
    values = pixels[known]
    return Extent(
        float(values.min(initial=math.inf)), float(values.max(initial=-math.inf)), int(known.size - values.size)
    )


def _notes_on_values(extents: Sequence[Extent], preparation: Preparation) -> list[str]:
    if preparation.value_range is None or not extents:
        return []
    low, high = preparation.value_range
    least, greatest = min(extent.low for extent in extents), max(extent.high for extent in extents)
    notes = [f"values of {least:g}..{greatest:g} in the files: {low:g}..{high:g} becomes 0..1 (--data.value-range)"]
    outside = sum(extent.low < low or extent.high > high for extent in extents)
    if outside:
        notes.append(f"{outside:,} of {len(extents):,} images have values outside of that, which become its ends")
    missing = sum(extent.missing > 0 for extent in extents)
    if missing:
        count = sum(extent.missing for extent in extents)
        notes.append(
            f"{missing:,} of {len(extents):,} images have {count:,} NaN or no-data values, which become {low:g}"
        )
    return notes


def notes_on_sizes(heads: Sequence[Head], preparation: Preparation, *, options: bool = True) -> list[str]:
    """Returns lines on images that are brought to another size or other channels, and on further pages.

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
    for note, count in Counter(head.note for head in heads if head.note).most_common(3):
        notes.append(
            f"{count:,} of {len(heads):,} files have {note}" + ("" if "read" in note else ": the first is read")
        )
    return notes


HOW = {"crop": "cropped", "squash": "squashed", "pad": "padded"}


def as_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Returns height and width: one number means a square."""
    return (size, size) if isinstance(size, int) else size


def _each(read: Callable[[int], T], count: int, advice: str, spare: bool) -> list[T | str]:
    """Returns `read(index)` for each picture, or why it cannot be read.

    Raises InputError with the first ten that cannot be read, and the advice, unless they are to be spared and others
    can be.
    """

    def attempt(index: int) -> T | str:
        try:
            return read(index)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(attempt, range(count)))
    if not spare or all(isinstance(result, str) for result in results):
        check_readable(results, advice)
    return results


def check_readable(results: Sequence[object], advice: str) -> None:
    """Raises InputError if some results are strings, which say why a file cannot be read."""
    problems = [problem for problem in results if isinstance(problem, str)]
    if problems:
        raise InputError(f"{unreadable(problems, len(results))}\n{advice}")


def unreadable(problems: Sequence[str], count: int) -> str:
    """Returns a text that lists the first ten problems. count: number of all files."""
    more = ["..."] if len(problems) > 10 else []
    return "\n  ".join([f"{len(problems)} of {count} files are no images that can be read:", *problems[:10], *more])
