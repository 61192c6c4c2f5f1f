"""Images of several sizes that are indexed like one array, and the random crops of them."""

import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from flaxcls.data.decode import MISSING
from flaxcls.data.picture import Extent, Picture, describe_some, extent_of
from flaxcls.data.preparation import Preparation
from flaxcls.data.resize import resize
from flaxcls.data.stored import Stored
from flaxcls.errors import InputError

# width / height of random crops, from Szegedy et al. 2015, "Going Deeper with Convolutions"
RATIOS = (3 / 4, 4 / 3)
TRIES = 10


class Unread(NamedTuple):
    """Why an image could not be read, and the number of the one that took its place; None: it was only left out."""

    reason: str
    instead: int | None


class Images:
    """Images of several sizes that are indexed like an array [n h w c] of uint8, or of float32 in 0..1.

    images: in the channels and values of an input, or pictures that are read when they are needed. A text in place of
      an image says why it cannot be read.
    preparation: how a picture becomes an input.
    shape: (n, h, w, c) of the result.
    whole: True if every image already has that size, so that nothing is resized.
    labels: i32[n]. If they are given, the place of an image that cannot be read is taken by the next one of its label
      that can, in their order, in which the first follows the last. None: an InputError.
    advice: what its message says in the end.
    is_measured: True to keep the extents of pictures whose values are brought to 0..1 by a range of values.
    in_threads: False to make the images of a batch one after another, as in a worker process: others work beside it.
    unread: the images that could not be read so far, by their numbers.
    extents: of the pictures that were read so far, by their numbers, if they are kept.
    """

    ndim = 4

    def __init__(
        self,
        images: list[np.ndarray] | list[np.ndarray | str] | Stored,
        preparation: Preparation,
        *,
        whole: bool = False,
        labels: np.ndarray | None = None,
        advice: str = "",
        is_measured: bool = False,
        in_threads: bool = True,
    ) -> None:
        self._images, self.preparation, self.whole = images, preparation, whole
        self._labels, self._advice, self._in_threads = labels, advice, in_threads
        self._is_measured = is_measured
        self.shape, self.dtype = (len(images), *preparation.shape), preparation.dtype
        self.unread: dict[int, Unread] = {}
        self.extents: dict[int, Extent] = {}

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def in_memory(self) -> bool:
        """True if they are decoded in memory, False if they are read each time."""
        return isinstance(self._images, list)

    @property
    def complete(self) -> bool:
        """False if some are in memory as texts, because they could not be read."""
        return not isinstance(self._images, list) or not any(isinstance(image, str) for image in self._images)

    def take(self, indices: np.ndarray) -> "Images":
        """Returns the images at `indices`, i64[m]."""
        labels = None if self._labels is None else self._labels[indices]
        return Images(
            self._taken(indices),
            self.preparation,
            whole=self.whole,
            labels=labels,
            advice=self._advice,
            is_measured=self._is_measured,
            in_threads=self._in_threads,
        )

    def alone(self, indices: np.ndarray, *, in_threads: bool = True) -> "Images":
        """Returns the images at `indices`, i64[m], as they are now known. One that cannot be read is an InputError."""
        chosen = np.array([self._place(index) for index in indices.tolist()], int)
        return Images(self._taken(chosen), self.preparation, whole=self.whole, in_threads=in_threads)

    def _taken(self, indices: np.ndarray) -> Any:
        images = self._images
        return [images[index] for index in indices] if isinstance(images, list) else images.take(indices)

    def picture(self, index: int) -> Picture:
        """Returns an image as its file has it or, if it is in memory, in the channels and values of an input."""
        images = self._images
        return Picture(self._read(index)) if isinstance(images, list) else images[index]

    def original(self, index: int) -> np.ndarray:
        """Returns an image [h w c] in its own size, in the channels and values of an input.

        Raises InputError if neither it nor an image that may take its place can be read.
        """
        try:
            return self._read(self._place(index))
        except InputError as error:
            if self._labels is None:
                raise
            return self._replace(index, self.unread.get(index, Unread(str(error), None)).reason)

    def _place(self, index: int) -> int:
        """Returns the number of the image that is read for the one at `index`: another's, if it is unread."""
        unread = self.unread.get(index)
        return index if unread is None or unread.instead is None else unread.instead

    def _replace(self, index: int, reason: str) -> np.ndarray:
        """Returns the next image of the same label that can be read, and keeps which one it is."""
        assert self._labels is not None
        alike = np.flatnonzero(self._labels == self._labels[index])
        for other in np.roll(alike, -int(np.searchsorted(alike, index)))[1:].tolist():
            with contextlib.suppress(InputError):
                image = self._read(other)
                self.unread[index] = Unread(reason, other)
                return image
        raise InputError(
            f"{reason}\nNone of the {len(alike):,} images of its class can be read, so none can take its place: put "
            "them back or repair them."
        )

    def _read(self, index: int) -> np.ndarray:
        images = self._images
        try:
            if not isinstance(images, list):
                picture = images[index]
                unified = unify(images, index, picture, self.preparation)
                if self._is_measured and self.preparation.has_range_for(picture.pixels.dtype):
                    self.extents[index] = extent_of(picture)
                return unified
            if isinstance(image := images[index], str):
                raise InputError(image)
            return image
        except InputError as error:
            if self._labels is None and self._advice:
                raise InputError(f"{error}\n{self._advice}") from error
            raise

    def check_any_readable(self) -> None:
        """Raises InputError if images may be left out, but none of them can be read; reads until one can."""
        if reasons := self.why_none_readable():
            raise InputError(none_readable(reasons))

    def why_none_readable(self) -> list[str]:
        """Returns why each image cannot be read, if they may be left out and none can be; else nothing."""
        reasons: list[str] = []
        for index in range(0 if self._labels is None else len(self)):
            try:
                self._read(index)
                return []
            except InputError as error:
                reasons.append(str(error))
        return reasons

    def readable(self, which: slice) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images [m h w c] of a slice, and bool[m], False for those that cannot be read, which are black.

        Raises InputError for one that cannot be read if the images have no labels.
        """
        chosen = np.arange(len(self))[which]

        def make(index: int) -> np.ndarray:
            try:
                return self.preparation.fit(self._read(index))
            except InputError as error:
                if self._labels is None:
                    raise
                self.unread.setdefault(index, Unread(str(error), None))
                return np.zeros(self.preparation.shape, self.dtype)

        stacked = self._stack(make, chosen)
        return stacked, np.array([index not in self.unread for index in chosen.tolist()], bool)

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
        if self._in_threads:
            with ThreadPoolExecutor() as pool:  # Pillow and OpenCV release Python's lock
                list(pool.map(put, *values))
        else:
            list(map(put, *values))
        return stacked


def read_rows(images: np.ndarray | Images, which: slice) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images [m h w c] of a slice, and bool[m], False for those left out, see `Images.readable`."""
    if isinstance(images, Images):
        return images.readable(which)
    rows = images[which]
    return rows, np.ones(len(rows), bool)


def unify(stored: Stored | list[Picture], index: int, picture: Picture, preparation: Preparation) -> np.ndarray:
    """Like `Preparation.unify`, but an InputError names a picture that cannot be an input, or is of another depth."""
    try:
        preparation.check_depth(picture.dtypes)
        return preparation.unify(picture)
    except ValueError as error:
        name = f"image {index}" if isinstance(stored, list) else stored.name(index)
        raise InputError(f"{name}: {error}") from error


def unreadable(problems: Sequence[str], count: int, *, left_out: bool = False) -> str:
    """Returns a text that lists the first ten files that are not there, and the first ten that cannot be used.

    count: number of all files. left_out: True to say that they are left out.
    """
    missing = [problem.removesuffix(MISSING) for problem in problems if problem.endswith(MISSING)]
    others = [problem for problem in problems if not problem.endswith(MISSING)]
    lines = []
    for found, one, many in ((missing, "is not there", "are not there"), (others, "cannot be used", "cannot be used")):
        if found:
            heading = describe_some(len(found), count, one, many, what="file")
            done = f" and {'is' if len(found) == 1 else 'are'} left out" * left_out
            lines.append("\n  ".join([f"{heading}{done}:", *found[:10], *["..."] * (len(found) > 10)]))
    return "\n".join(lines)


def none_readable(reasons: Sequence[str]) -> str:
    """Returns the message for a split none of whose images can be read. reasons: why, for each."""
    return f"{unreadable(reasons, len(reasons))}\nPut them back or repair them: without any, nothing can be evaluated."


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
