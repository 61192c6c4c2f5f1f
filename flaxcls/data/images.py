"""Images of several sizes that are indexed like one array, in memory or read from their files."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from flaxcls.data.decode import Head, Picture, allow_pixels, read_picture
from flaxcls.data.preparation import Preparation, choose_channels, choose_range, choose_size
from flaxcls.data.resize import resize, share_kept
from flaxcls.errors import InputError
from flaxcls.storage import printable

# The endings of names that say that a file is an image; a file without one may be an image by its content.
SUFFIXES = (
    *(".avif", ".bmp", ".dds", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".jxl", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
)
# width / height of random crops, from Szegedy et al. 2015, "Going Deeper with Convolutions"
RATIOS = (3 / 4, 4 / 3)
TRIES = 10
# True in a worker process: it reads the images of a batch one after another, since others work beside it
one_of_several = False
T = TypeVar("T")


class Stored(Protocol):
    """Pictures, each read when it is requested. Reading may raise InputError.

    What `take` returns for a batch is pickled and sent to a worker process, so it should be small.
    """

    def __len__(self) -> int:
        """Returns the number of pictures."""

    def __getitem__(self, index: int) -> Picture:
        """Returns one picture."""

    def name(self, index: int) -> str:
        """Returns the name of a picture for messages."""

    def take(self, indices: np.ndarray) -> "Stored":
        """Returns the pictures at `indices`, i64[m]."""


class Files:
    """The pictures in files, as `Stored`. most_pixels: of a picture; None: as many as Pillow reads."""

    def __init__(self, paths: Sequence[Path], most_pixels: int | None = None) -> None:
        self._paths, self._most_pixels = paths, most_pixels

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Picture:
        allow_pixels(self._most_pixels)  # this may be another process than the one that found the files
        return read_picture(self._paths[index])

    def name(self, index: int) -> str:
        """Returns the path of a picture."""
        return printable(self._paths[index])

    def take(self, indices: np.ndarray) -> "Files":
        """Returns the pictures at `indices`, i64[m]."""
        return Files([self._paths[index] for index in indices], self._most_pixels)


class Images:
    """Images of several sizes that are indexed like an array [n h w c] of uint8, or of float32 in 0..1.

    images: in the channels and values of an input, or pictures that are read when they are needed.
    preparation: how a picture becomes an input.
    shape: (n, h, w, c) of the result.
    whole: True if every image already has that size, so that nothing is resized.
    """

    ndim = 4

    def __init__(self, images: list[np.ndarray] | Stored, preparation: Preparation, *, whole: bool = False) -> None:
        self._images, self.preparation, self.whole = images, preparation, whole
        self.shape, self.dtype = (len(images), *preparation.shape), preparation.dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def in_memory(self) -> bool:
        """True if they are decoded in memory, False if they are read each time."""
        return isinstance(self._images, list)

    def take(self, indices: np.ndarray) -> "Images":
        """Returns the images at `indices`, i64[m]."""
        images = self._images
        taken = [images[index] for index in indices] if isinstance(images, list) else images.take(indices)
        return Images(taken, self.preparation, whole=self.whole)

    def original(self, index: int) -> np.ndarray:
        """Returns an image [h w c] in its own size, in the channels and values of an input."""
        images = self._images
        return images[index] if isinstance(images, list) else _unified(images, index, images[index], self.preparation)

    def __getitem__(self, which: Any) -> np.ndarray:
        """Returns [h w c] for a number, and [m h w c] for a slice or i64[m]."""
        if np.ndim(which) == 0 and not isinstance(which, slice):
            return self.preparation.fit(self.original(which))
        return self._stack(lambda index: self.preparation.fit(self.original(index)), np.arange(len(self))[which])

    def random_crops(self, indices: np.ndarray, positions: np.ndarray, *, seed: int, least_area: float) -> np.ndarray:
        """Returns a random part of each image, scaled to the common size: [m h w c].

        Args:
          indices: i64[m], indices of the images.
          positions: i64[m], positions in the endless training stream; seed and position decide the part.
          seed: the run's seed.
          least_area: smallest share of an image that is kept, above 0; the largest is the whole image.
        """

        def crop(index: int, draws: list[float]) -> np.ndarray:
            image = self.original(index)
            top, left, height, width = box_of(draws, image.shape[:2], least_area)
            return resize(image[top : top + height, left : left + width], self.preparation.size)

        return self._stack(crop, indices, box_draws(seed, positions))

    def _stack(self, make: Callable[..., np.ndarray], *arguments: np.ndarray) -> np.ndarray:
        stacked = np.empty((len(arguments[0]), *self.shape[1:]), self.dtype)

        def put(row: int, *values: Any) -> None:
            stacked[row] = make(*values)

        values = [range(len(stacked)), *(argument.tolist() for argument in arguments)]
        if one_of_several:
            list(map(put, *values))
        else:
            with ThreadPoolExecutor() as pool:  # Pillow and OpenCV release Python's lock
                list(pool.map(put, *values))
        return stacked


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


def arranged(
    parts: Mapping[str, tuple[Stored | list[Picture], Sequence[Head]]],
    *,
    size: int | tuple[int, int] | None,
    how: str,
    color: str,
    value_range: tuple[float, float] | None,
    memory: float,
    name: str,
    advice: str,
) -> Arranged:
    """Returns the images of each split: one array if all images have one size and together fit into the memory.

    Args:
      parts: for each split, its pictures, maybe decoded already, and their heads.
      size: height and width, or side, of the result; None: see `choose_size`.
      how: crop, squash or pad, how a picture of another size is brought to it.
      color: rgb, grey or stored, see `choose_channels`.
      value_range: see `Preparation`; None: see `choose_range`.
      memory: GiB of decoded pictures to keep at most.
      name: of the data set.
      advice: text for the error message: what to do about pictures that cannot be read.

    Raises InputError for pictures that cannot be read, and if channels or range of values cannot be known.
    """
    heads = [head for _, part in parts.values() for head in part]
    sizes = [head.size for head in heads]
    target = as_size(size) or choose_size(sizes)
    channels = choose_channels(color, heads, name)
    dtypes = {head.dtype for head in heads}
    deep = value_range is not None or not dtypes <= {"uint8"}
    needed = sum(height * width for height, width in sizes) * channels * (4 if deep else 1)
    fits_memory, whole = needed <= memory * 2**30, set(sizes) <= {target}
    pictures = {part: read_all(stored, advice) for part, (stored, _) in parts.items() if fits_memory}
    extents = []
    if deep:
        extents = [
            extent for part, (stored, _) in parts.items() for extent in _extents(pictures.get(part, stored), advice)
        ]
        low, high = min(extent.low for extent in extents), max(extent.high for extent in extents)
        value_range = value_range or choose_range(dtypes, low, high, name)
    preparation = Preparation(target, channels, how, value_range)

    def arrange(part: str, stored: Stored | list[Picture]) -> np.ndarray | Images:
        if part not in pictures:
            assert not isinstance(stored, list)
            return Images(stored, preparation, whole=whole)
        ready = []
        for index, picture in enumerate(pictures[part]):
            ready.append(_unified(stored, index, picture, preparation))
        return np.stack(ready) if whole else Images(ready, preparation)

    images = {part: arrange(part, stored) for part, (stored, _) in parts.items()}
    return Arranged(images, preparation, [*_notes_on_values(extents, preparation), *notes_on_sizes(heads, preparation)])


def _unified(stored: Stored | list[Picture], index: int, picture: Picture, preparation: Preparation) -> np.ndarray:
    try:
        return preparation.unify(picture)
    except ValueError as error:
        name = f"image {index}" if isinstance(stored, list) else stored.name(index)
        raise InputError(f"{name}: {error}.") from error


def _extents(stored: Stored | list[Picture], advice: str) -> list[Extent]:
    return _each(lambda index: _extent(stored[index]), len(stored), advice)


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


def notes_on_sizes(heads: Sequence[Head], preparation: Preparation) -> list[str]:
    """Returns lines on images that are brought to another size or other channels, and on further pages."""
    notes = []
    size, how = preparation.size, preparation.resize
    others = [head.size for head in heads if head.size != size]
    if others:
        common, _ = Counter(others).most_common(1)[0]
        line = (
            f"{len(others):,} of {len(heads):,} images are not {_by(size)} (most of them {_by(common)}): "
            f"{HOW[how]} to that (--data.image-size, --data.resize)"
        )
        if how == "crop":
            kept = [share_kept(other, size) for other in others]
            line += f"; evaluation sees {np.mean(kept):.0%} of them on average, {min(kept):.0%} at least"
        notes.append(line)
    grey = sum(head.channels <= 2 for head in heads)
    if preparation.channels == 3 and grey:
        notes.append(f"{grey:,} of {len(heads):,} images are grey and get three equal channels (--data.color grey)")
    colours = sum(head.channels >= 3 for head in heads)
    if preparation.channels == 1 and colours:
        notes.append(f"{colours:,} of {len(heads):,} images are in colours, which become grey (--data.color)")
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


def _by(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def read_all(stored: Stored | list[Picture], advice: str) -> list[Picture]:
    """Returns all pictures. Raises InputError with the first ten that cannot be read, and the advice."""
    return stored if isinstance(stored, list) else _each(lambda index: stored[index], len(stored), advice)


def _each(read: Callable[[int], T], count: int, advice: str) -> list[T]:
    """Returns `read(index)` for each picture. Raises InputError with the first ten that cannot be read."""

    def attempt(index: int) -> T | str:
        try:
            return read(index)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(attempt, range(count)))
    check_readable(results, advice)
    return [result for result in results if not isinstance(result, str)]


def check_readable(results: Sequence[object], advice: str) -> None:
    """Raises InputError if some results are strings, which say why a file cannot be read."""
    problems = [problem for problem in results if isinstance(problem, str)]
    if problems:
        raise InputError(f"{unreadable(problems, len(results))}\n{advice}")


def unreadable(problems: Sequence[str], count: int) -> str:
    """Returns a text that lists the first ten problems. count: number of all files."""
    more = ["..."] if len(problems) > 10 else []
    return "\n  ".join([f"{len(problems)} of {count} files are no images:", *problems[:10], *more])


def random_box(seed: int, position: int, size: tuple[int, int], least_area: float) -> tuple[int, int, int, int]:
    """Draws row and column of the corner, height and width of a part of an image, like `random_crop_boxes`.

    The draw depends on (seed, position) only, and is the same in every version of NumPy.
    """
    return box_of(box_draws(seed, np.array([position]))[0].tolist(), size, least_area)


def box_draws(seed: int, positions: np.ndarray) -> np.ndarray:
    """Returns the draws for `box_of` at `positions`, i64[m], of the stream: f64[m 2*TRIES+2], uniform in 0..1."""
    bits = np.random.Philox()
    state: Any = {**bits.state, "buffer_pos": 4}  # the buffer is empty
    raw = np.empty((len(positions), 2 * TRIES + 2), np.uint64)
    for row, position in zip(raw, positions.tolist(), strict=True):  # a new state costs less than a new generator
        state["state"] = {"counter": [0, 0, 0, 1], "key": [seed, position]}
        bits.state = state
        row[:] = bits.random_raw(row.size)
    return (raw >> np.uint64(11)) * 2.0**-53


def box_of(draws: list[float], size: tuple[int, int], least_area: float) -> tuple[int, int, int, int]:
    """Returns row and column of the corner, height and width of the part of an image that `draws` select."""
    height, width = size
    for area, ratio in zip(draws[:TRIES], draws[TRIES : 2 * TRIES], strict=True):
        area = height * width * (least_area + area * (1 - least_area))
        ratio = math.exp(math.log(RATIOS[0]) + ratio * (math.log(RATIOS[1]) - math.log(RATIOS[0])))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = int(draws[-2] * (height - rows + 1)), int(draws[-1] * (width - columns + 1))
            return top, left, rows, columns
    rows = min(height, max(1, round(width / RATIOS[0])))
    columns = min(width, max(1, round(height * RATIOS[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns
