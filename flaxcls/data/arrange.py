"""The pictures of a data set as inputs of a model: what fits is chosen, in memory or not, and all of it is said."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from flaxcls.config import DataConfig
from flaxcls.data.decode import MISSING
from flaxcls.data.images import Images, unify
from flaxcls.data.picture import Head, Picture, format_shape
from flaxcls.data.preparation import DEPTHS, Preparation, choose_channels, choose_range, choose_size, explain_size
from flaxcls.data.resize import share_kept
from flaxcls.data.stored import Stored
from flaxcls.errors import InputError

MOST_KINDS = 6  # of what is not read that have a line each
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


def _attempt(choose: Callable[[], T], guess: T, problems: list[str] | None) -> tuple[T, bool]:
    """Returns what is chosen and True or, if that is refused and there is a list of problems, the guess and False."""
    try:
        return choose(), True
    except InputError as error:
        if problems is None:
            raise
        problems.append(str(error))
        return guess, False


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
        preparation = Preparation(size, number, config.resize, config.value_range)
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
            for extent in _extents(pictures.get(part, stored), advice, spare or problems is not None)
        ]
        low, high = min(extent.low for extent in extents), max(extent.high for extent in extents)
        value_range: tuple[float, float] | None = config.value_range
        if value_range is None:
            guess: tuple[float, float] | None = (low, max(high, low + 1))
            value_range, range_known = _attempt(lambda: choose_range(dtypes, low, high, name), guess, problems)
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
    notes = [
        *_notes_on_values(extents, preparation, is_known=range_known, is_asked=config.value_range is not None),
        *_notes_on_resizing(heads, preparation, why="" if prepared or config.image_size else explain_size(sizes)),
        *(_notes_on_channels(heads, preparation) if channels_known else ()),
        *_notes_on_files(heads),
    ]
    return Arranged(images, preparation, notes)


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


def _notes_on_values(
    extents: Sequence[Extent], preparation: Preparation, *, is_known: bool, is_asked: bool
) -> list[str]:
    """Returns lines on the range of the values. is_known: False if it is refused. is_asked: it is the user's."""
    if preparation.value_range is None or not extents:
        return []
    low, high = preparation.value_range
    least, greatest = min(extent.low for extent in extents), max(extent.high for extent in extents)
    found = f"values of {least:g}..{greatest:g} in the files"
    if not is_known:
        return [f"{found}; which of them are black and white is not known"]
    why = "" if is_asked else _explain_range(low, high)
    notes = [f"{found}: {low:g} becomes black and {high:g} white{why} (--data.value-range)"]
    outside = sum(extent.low < low or extent.high > high for extent in extents)
    if outside:
        have = describe_some(outside, len(extents), "has", "have")
        notes.append(f"{have} values outside of that, which become its ends")
    missing = sum(extent.missing > 0 for extent in extents)
    if missing:
        count, have = sum(extent.missing for extent in extents), describe_some(missing, len(extents), "has", "have")
        notes.append(f"{have} {count:,} NaN or no-data values, which become {low:g}")
    return notes


def _explain_range(low: float, high: float) -> str:
    """Returns why `choose_range` chooses a range, as the end of a sentence."""
    if (low, high) == (0, 1):
        return ", as they are floating-point numbers in 0..1"
    *before, last = map(str, DEPTHS)
    above = f" above {low:g}" if low else ""
    bits = round(math.log2(high - low + 1))
    return f", as {bits} bits{above} are the fewest of {', '.join(before)} and {last} that hold them"


def notes_on_sizes(heads: Sequence[Head], preparation: Preparation, *, options: bool = True) -> list[str]:
    """Returns lines on images that are brought to another size or other channels, and on what of files is not read.

    options: True to name the options that decide it.
    """
    return [
        *_notes_on_resizing(heads, preparation, options=options),
        *_notes_on_channels(heads, preparation, options=options),
        *_notes_on_files(heads),
    ]


def _notes_on_resizing(
    heads: Sequence[Head], preparation: Preparation, *, options: bool = True, why: str = ""
) -> list[str]:
    """why: reason for the size, as the end of a sentence."""
    size, how = preparation.size, preparation.resize
    others = [head.size for head in heads if head.size != size]
    if not others:
        return []
    counts = Counter(others)
    common, count = counts.most_common(1)[0]
    found = f", but {format_shape(common)}"
    if len(counts) > 1:
        most = "most of them" if 2 * count > len(others) else f"{len(counts):,} sizes, most often"
        found = f" ({most} {format_shape(common)})"
    line = (
        f"{describe_some(len(others), len(heads), 'is', 'are')} not {format_shape(size)}{found}: {HOW[how]} to that"
        f"{why and f', {why}'}{_name_options(options, '--data.image-size, --data.resize')}"
    )
    if how == "crop":
        kept = [share_kept(other, size) for other in others]
        line += f"; evaluation sees {np.mean(kept):.0%} of them on average, {min(kept):.0%} at least"
    return [line]


def _notes_on_channels(heads: Sequence[Head], preparation: Preparation, *, options: bool = True) -> list[str]:
    notes = []
    grey = sum(head.channels <= 2 for head in heads)
    if preparation.channels == 3 and grey:
        done = describe_some(grey, len(heads), "is grey and gets", "are grey and get")
        notes.append(f"{done} three equal channels{_name_options(options, '--data.color grey')}")
    colours = sum(head.channels >= 3 for head in heads)
    if preparation.channels == 1 and colours:
        done = describe_some(colours, len(heads), "is in colours, which becomes", "are in colours, which become")
        notes.append(f"{done} grey{_name_options(options, '--data.color')}")
    transparent = sum(head.channels in (2, 4) for head in heads)
    if preparation.channels in (1, 3) and transparent:
        done = describe_some(transparent, len(heads), "is transparent and is", "are transparent and are")
        notes.append(f"{done} laid on white")
    return notes


def _notes_on_files(heads: Sequence[Head]) -> list[str]:
    """Returns lines on what of the files is not read."""
    kinds = Counter(head.note for head in heads if head.note).most_common()
    found = [(count, note) for note, count in kinds[:MOST_KINDS]]
    if more := sum(count for _, count in kinds[MOST_KINDS:]):
        found.append((more, "other parts that are not read"))
    return [f"{describe_some(count, len(heads), 'has', 'have', what='file')} {note}" for count, note in found]


def _name_options(options: bool, names: str) -> str:
    return f" ({names})" if options else ""


def describe_some(count: int, total: int, one: str, many: str, *, what: str = "image") -> str:
    """Returns the beginning of a sentence on some of all images, or others, with its verb for one or for many."""
    return f"{count:,} of {total:,} {what}{'s' * (total != 1)} {one if count == 1 else many}"


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


def unreadable(problems: Sequence[str], count: int, *, left_out: bool = False) -> str:
    """Returns a text that lists the first ten files that are not there, and the first ten that cannot be read.

    count: number of all files. left_out: True to say that they are left out.
    """
    missing = [problem.removesuffix(MISSING) for problem in problems if problem.endswith(MISSING)]
    others = [problem for problem in problems if not problem.endswith(MISSING)]
    lines = []
    for found, one, many in ((missing, "is not there", "are not there"), (others, "cannot be read", "cannot be read")):
        if found:
            heading = describe_some(len(found), count, one, many, what="file")
            done = f" and {'is' if len(found) == 1 else 'are'} left out" * left_out
            lines.append("\n  ".join([f"{heading}{done}:", *found[:10], *["..."] * (len(found) > 10)]))
    return "\n".join(lines)
