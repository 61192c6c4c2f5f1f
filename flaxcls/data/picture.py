"""Decoded pictures, and what the header of a file says of its picture."""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

MOST_PIXELS = 178_956_970  # that Pillow reads


class Picture(NamedTuple):
    """A decoded picture.

    pixels: [h w c], of uint8, uint16, float32, or another integer type of the file.
    alpha: True if the last channel is transparency.
    """

    pixels: np.ndarray
    alpha: bool = False


class Head(NamedTuple):
    """What the header of a file says of its picture.

    size: height and width of the upright picture.
    channels: number of channels, transparency included.
    dtype: name of the type of the values, such as "uint8".
    note: what is not read, such as further pages; or "".
    alpha: True if the last channel is transparency.
    """

    size: tuple[int, int]
    channels: int
    dtype: str
    note: str = ""
    alpha: bool = False


@lru_cache(4096)
def shared(head: Head) -> Head:
    """Returns one object for all equal heads: a data set has millions of them, and few that differ."""
    return head


def head_of(picture: Picture) -> Head:
    """Returns the head of a decoded picture."""
    pixels = picture.pixels
    return shared(Head(pixels.shape[:2], pixels.shape[2], pixels.dtype.name, alpha=picture.alpha))


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
    return Picture(np.ascontiguousarray(pixels), picture.alpha)


class TooLargeError(ValueError):
    """A picture has more pixels than are read."""


def check_size(size: tuple[int, int], most: int) -> None:
    """Raises TooLargeError if a picture of this height and width has more than `most` pixels."""
    if size[0] * size[1] > most:
        raise TooLargeError(f"{size[0] * size[1]} pixels exceed {most}")


def beginning(source: Path | io.BytesIO | bytes, count: int = 4096) -> bytes:
    """Returns the first bytes of a file, or of the bytes of one."""
    if isinstance(source, bytes):
        return source[:count]
    if isinstance(source, io.BytesIO):
        return bytes(source.getbuffer()[:count])
    with source.open("rb") as file:
        return file.read(count)
