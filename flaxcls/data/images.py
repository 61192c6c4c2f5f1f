"""Image files, and images of several sizes as one array."""

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from flaxcls.data.resize import fit_image, resize, with_channels
from flaxcls.errors import InputError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# width / height of random crops, from Szegedy et al. 2015, "Going Deeper with Convolutions"
RATIOS = (3 / 4, 4 / 3)
TRIES = 10
USUAL_SIDE = 224  # pixels; the size for ImageNet, for which most networks are made
LARGE = 2**26  # pixels
# True in a worker process: it reads the images of a batch one after another, since others work beside it
one_of_several = False


def read_image(path: Path) -> np.ndarray:
    """Returns the picture in a file as u8[h w c]: 1 channel if it is grey, 3 in colours, 2 and 4 with transparency.

    It is turned upright according to its EXIF data. Of an animation, it is the first picture. 16 bits per channel
    become 8, and other colour spaces become RGB. Raises InputError if the file is not an image that is readable to its
    end.
    """
    try:
        return decode(path.read_bytes())
    except Exception as error:  # the decoders of Pillow raise many types
        raise InputError(f"{path} is no image that can be read: {_first_line(error)}") from error


def decode(data: bytes) -> np.ndarray:
    """Like `read_image`, for the bytes of a file. Raises the errors of Pillow if they are not an image."""
    if _is_plain_jpeg(data):  # the same pixels as Pillow's in half the time
        with contextlib.suppress(ValueError):  # Pillow names the problem of a damaged file, or reads what it can
            return simplejpeg.decode_jpeg(data)
    with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as opened:
        warnings.simplefilter("ignore")  # warnings about unusual metadata
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits; Pillow itself reduces RGB to 8 bits
            values = np.asarray(image)
            if values.min() < 0 or values.max() > 65535:
                raise ValueError(f"its grey values are {values.min()} to {values.max()}, but must be in 0 to 65535")
            return (values >> 8).astype(np.uint8)[..., np.newaxis]
        if image.mode == "F":
            raise ValueError("its grey values are floating-point numbers, whose scale is not known: save it as 16 bits")
        transparent = image.has_transparency_data
        grey = image.mode in ("1", "L", "LA", "La")
        pixels = np.asarray(image.convert(("LA" if transparent else "L") if grey else "RGBA" if transparent else "RGB"))
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def _is_plain_jpeg(data: bytes) -> bool:
    """True if the bytes begin like a JPEG with three colours and without metadata that could rotate it."""
    at = 2
    while data[:2] == b"\xff\xd8" and data[at : at + 1] == b"\xff":
        marker, length = data[at + 1 : at + 2], int.from_bytes(data[at + 2 : at + 4])
        if marker in (b"\xc0", b"\xc1", b"\xc2"):  # a frame: its length, bits, height, width, number of colours
            rows, columns = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            # for larger images Pillow checks if they are an attempt to fill the memory
            return data[at + 4 : at + 10 : 5] == b"\x08\x03" and 0 < rows * columns < LARGE
        if marker == b"\xe1" or length < 2:  # EXIF or XMP
            return False
        at += 2 + length
    return False


def upright_size(file: Path | io.BytesIO, name: str) -> tuple[int, int]:
    """Returns height and width of the upright picture in a file, from its header.

    Raises InputError, with `name`, if the file is not an image.
    """
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")
            return image.size if _orientation(image) >= 5 else image.size[::-1]
    except Exception as error:
        raise InputError(f"{name} is no image that can be read: {_first_line(error)}") from error


class Stored(Protocol):
    """Pictures u8[h w channels], each read when it is requested. Reading may raise InputError.

    What `take` returns for a batch is pickled and sent to a worker process, so it should be small.
    """

    def __len__(self) -> int:
        """Returns the number of pictures."""

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one picture."""

    def take(self, indices: np.ndarray) -> "Stored":
        """Returns the pictures at `indices`, i64[m]."""


class Files:
    """The pictures in files, as `Stored`."""

    def __init__(self, paths: Sequence[Path], channels: int) -> None:
        self._paths, self._channels = paths, channels

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return with_channels(read_image(self._paths[index]), self._channels)

    def take(self, indices: np.ndarray) -> "Files":
        """Returns the pictures at `indices`, i64[m]."""
        return Files([self._paths[index] for index in indices], self._channels)


class Images:
    """Images of several sizes that are indexed like an array u8[n h w c]. Each is scaled and cropped at its centre.

    images: u8[h w c] each.
    shape: (h, w, c) of the result.
    whole: True if every image already has that size, so that training does not crop.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, images: list[np.ndarray] | Stored, shape: tuple[int, int, int], *, whole: bool = False) -> None:
        self._images, self._size, self.whole = images, shape[:2], whole
        self.shape = (len(images), *shape)

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
        return Images(taken, self.shape[1:], whole=self.whole)

    def __getitem__(self, which: Any) -> np.ndarray:
        """Returns u8[h w c] for a number, and u8[m h w c] for a slice or i64[m]."""
        if np.ndim(which) == 0 and not isinstance(which, slice):
            return fit_image(self._images[which], self._size)
        return self._stack(lambda index: fit_image(self._images[index], self._size), np.arange(len(self))[which])

    def random_crops(self, indices: np.ndarray, positions: np.ndarray, *, seed: int, least_area: float) -> np.ndarray:
        """Returns a random part of each image, scaled to the common size: u8[m h w c].

        Args:
          indices: i64[m], indices of the images.
          positions: i64[m], positions in the endless training stream; seed and position decide the part.
          seed: the run's seed.
          least_area: smallest share of an image that is kept, above 0; the largest is the whole image.
        """

        def crop(index: int, draws: list[float]) -> np.ndarray:
            image = self._images[index]
            top, left, height, width = box_of(draws, image.shape[:2], least_area)
            return resize(image[top : top + height, left : left + width], self._size)

        return self._stack(crop, indices, box_draws(seed, positions))

    def _stack(self, make: Callable[..., np.ndarray], *arguments: np.ndarray) -> np.ndarray:
        stacked = np.empty((len(arguments[0]), *self.shape[1:]), np.uint8)

        def put(row: int, *values: Any) -> None:
            stacked[row] = make(*values)

        values = [range(len(stacked)), *(argument.tolist() for argument in arguments)]
        if one_of_several:
            list(map(put, *values))
        else:
            with ThreadPoolExecutor() as pool:  # Pillow and OpenCV release Python's lock
                list(pool.map(put, *values))
        return stacked


def arranged(
    parts: Mapping[str, tuple[Stored, Sequence[tuple[int, int]]]],
    *,
    size: tuple[int, int] | None,
    channels: int,
    memory: float,
    advice: str,
) -> dict[str, np.ndarray | Images]:
    """Returns the images of each split: one array if all images have one size and together fit into the memory.

    Args:
      parts: for each split, its pictures, and the height and width of each.
      size: height and width of the result; None: their own size if all have the same, else `USUAL_SIDE`.
      channels: number of channels of the pictures.
      memory: GiB of decoded pictures to keep at most.
      advice: text for the error message: what to do about pictures that cannot be read.
    """
    sizes = [size for _, part in parts.values() for size in part]
    size = size or ((USUAL_SIDE, USUAL_SIDE) if len(set(sizes)) > 1 else sizes[0])
    fits_memory = sum(height * width for height, width in sizes) * channels <= memory * 2**30
    whole = set(sizes) <= {size}

    def arrange(stored: Stored) -> np.ndarray | Images:
        if fits_memory and whole:
            return np.stack(read_all(stored, advice))
        return Images(read_all(stored, advice) if fits_memory else stored, (*size, channels), whole=whole)

    return {name: arrange(stored) for name, (stored, _) in parts.items()}


def read_all(stored: Stored, advice: str) -> list[np.ndarray]:
    """Returns all pictures. Raises InputError with the first ten that cannot be read, and the advice."""

    def read(index: int) -> np.ndarray | str:
        try:
            return stored[index]
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(read, range(len(stored))))
    check_readable(images, advice)
    return [image for image in images if not isinstance(image, str)]


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


def _orientation(image: Image.Image) -> int:
    """Returns the orientation in EXIF: 1 is upright, from 5 on rows become columns."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _first_line(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message contains a memory address
        return "it has no known format"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
