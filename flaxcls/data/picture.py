"""Decoded pictures, and what the header of a file says of its picture."""

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

MOST_PIXELS = 178_956_970  # that Pillow reads
SEVERAL = "several pictures, of which the first is read"


OF_PRINT = "the colours of print (CMYK), which are read as RGB without their profile"  # a note


class Picture(NamedTuple):
    """A decoded picture.

    pixels: [h w c], of uint8, uint16, float32, or another integer type of the file.
    alpha: True if the last channel is transparency.
    note: what of the file is not read, such as further pages; or "".
    channel_dtypes: the type of each channel, if they are from files of their own and differ.
    """

    pixels: np.ndarray
    alpha: bool = False
    note: str = ""
    channel_dtypes: tuple[str, ...] = ()

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the types of its values in the file, or in the files of its channels."""
        return self.channel_dtypes or (self.pixels.dtype.name,)


class Head(NamedTuple):
    """What the header of a file says of its picture.

    size: height and width of the upright picture.
    channels: number of channels, transparency included.
    dtype: name of the type of the values, such as "uint8".
    note: what is not read, such as further pages; or "".
    alpha: True if the last channel is transparency.
    channel_dtypes: the type of each channel, if they are files of their own and differ; `dtype` then holds all of them.
    """

    size: tuple[int, int]
    channels: int
    dtype: str
    note: str = ""
    alpha: bool = False
    channel_dtypes: tuple[str, ...] = ()

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the types of its values in the file, or in the files of its channels."""
        return self.channel_dtypes or (self.dtype,)


class Extent(NamedTuple):
    """Least and greatest value of a picture, transparency aside, and the number of values that are NaN or infinite.

    If all are, the least is infinity and the greatest is its negative.
    """

    low: float
    high: float
    missing: int


@lru_cache(4096)
def shared(head: Head) -> Head:
    """Returns one object for all equal heads: a data set has millions of them, and few that differ."""
    return head


def head_of(picture: Picture) -> Head:
    """Returns the head of a decoded picture."""
    pixels = picture.pixels
    depth = pixels.dtype.name
    return shared(Head(pixels.shape[:2], pixels.shape[2], depth, picture.note, picture.alpha, picture.channel_dtypes))


def extent_of(picture: Picture) -> Extent:
    """Returns the extent of the values of a picture."""
    pixels = picture.pixels[..., :-1] if picture.alpha else picture.pixels
    if pixels.dtype.kind != "f":
        return Extent(float(pixels.min()), float(pixels.max()), 0)
    values = pixels[np.isfinite(pixels)]
    return Extent(
        float(values.min(initial=math.inf)), float(values.max(initial=-math.inf)), int(pixels.size - values.size)
    )


def check_values(picture: Picture) -> Picture:
    """Returns the picture. Raises ValueError if all of its values are NaN, infinite or no data."""
    if picture.pixels.dtype.kind == "f" and extent_of(picture).low == math.inf:
        raise ValueError("all of its values are NaN, infinite or no data")
    return picture


def describe_some(count: int, total: int, one: str, many: str, *, what: str = "image") -> str:
    """Returns the beginning of a sentence on some of all images, or others, with its verb for one or for many."""
    return f"{count:,} of {total:,} {what}{'s' * (total != 1)} {one if count == 1 else many}"


def format_shape(shape: Sequence[int]) -> str:
    """Returns a height and a width, and maybe channels, as text such as 32x48 or 32x48x3."""
    return "x".join(map(str, shape))


def upright(picture: Picture, orientation: int) -> Picture:
    """Returns the picture that is stored in this orientation, as EXIF 2.32 numbers it, upright."""
    pixels = picture.pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return picture._replace(pixels=np.ascontiguousarray(pixels))


class TooLargeError(ValueError):
    """A picture has more pixels than are read."""


def check_size(size: tuple[int, int], most: int) -> None:
    """Raises TooLargeError if a picture of this height and width has more than `most` pixels."""
    if size[0] * size[1] > most:
        raise TooLargeError(f"{size[0] * size[1]} pixels exceed {most}")


def beginning(source: Path | io.BytesIO | bytes, count: int = 4096, start: int = 0) -> bytes:
    """Returns the first bytes, or those from `start` on, of a file, or of the bytes of one."""
    if isinstance(source, bytes):
        return source[start : start + count]
    if isinstance(source, io.BytesIO):
        return bytes(source.getbuffer()[start : start + count])
    with source.open("rb") as file:
        file.seek(start)
        return file.read(count)
