"""Image files, decoded: upright, with all their channels, at their own depth. The one decoder of every source."""

import contextlib
import importlib.util
import io
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from flaxcls.data.formats.jpeg import bits_of_jpeg, is_plain_jpeg
from flaxcls.data.formats.jpeg2000 import JPEG2000, START, bits_of_jpeg2000
from flaxcls.data.formats.netpbm import decode_netpbm, head_of_netpbm, is_netpbm
from flaxcls.data.formats.pillow import head_of_image, picture_of_image
from flaxcls.data.formats.png import PNG, is_plain_png, png_chunks, without_metadata
from flaxcls.data.formats.tiff import decode_tiff, head_of_tiff, is_tiff, pillow_reads_all_of
from flaxcls.data.picture import (
    MOST_PIXELS,
    Head,
    Picture,
    TooLargeError,
    beginning,
    check_size,
    check_values,
    shared,
)
from flaxcls.errors import InputError
from flaxcls.storage import printable

# The formats of Pillow that are pictures of pixels, and read by itself alone.
FORMATS = (
    *("AVIF", "BMP", "DDS", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)
MISSING = " is not there."  # how the message on a file ends that does not exist
T = TypeVar("T")


def read_picture(path: Path, most_pixels: int | None = None, *, is_channel: bool = False) -> Picture:
    """Returns the picture in a file.

    Raises InputError if it is not an image that is readable to its end, or has no value but NaN and no data.

    most_pixels: of the picture, so that no file fills the memory; None: `MOST_PIXELS`.
    is_channel: True if it is one channel of a picture, the others of which may have values.
    """

    def read() -> Picture:
        picture = decode(path.read_bytes(), most_pixels)
        return picture if is_channel else check_values(picture)

    return name_errors(printable(path), read)


def read_head(file: Path | bytes, name: str, most_pixels: int | None = None) -> Head:
    """Returns what the header of a file, or of its bytes, says. Raises InputError, with `name`, if it is no image.

    most_pixels: of the picture; None: `MOST_PIXELS`.
    """
    return name_errors(name, lambda: shared(_head(file, most_pixels or MOST_PIXELS)))


def decode(data: bytes, most_pixels: int | None = None) -> Picture:
    """Returns the picture in the bytes of a file.

    It is turned upright as its metadata says, and damage in metadata is no damage. Of an animation or a file of several
    pages, it is the first picture. Colour spaces become RGB; 8 and more bits and floating-point numbers stay what they
    are, and fewer become 0..255. Its note says what is not read. Raises the errors of the decoders.
    """
    most = most_pixels or MOST_PIXELS
    if is_plain_jpeg(data, most):  # the same pixels as Pillow's in half the time
        with contextlib.suppress(ValueError):  # Pillow names the problem of a damaged file, or reads what it can
            return Picture(simplejpeg.decode_jpeg(data))
    if data.startswith(PNG) and is_plain_png(png_chunks(data), most):  # the same pixels in a quarter of the time
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        return Picture(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels[..., np.newaxis])
    if is_netpbm(data):
        return decode_netpbm(data, most)
    with _opened(data, data, most) as image:
        return decode_tiff(data, most) if image is None else picture_of_image(image, data)


def _head(file: Path | bytes, most: int) -> Head:
    source, start = io.BytesIO(file) if isinstance(file, bytes) else file, beginning(file)
    if is_netpbm(start):
        return head_of_netpbm(source, most)
    with _opened(source, start, most) as image:
        return head_of_tiff(source, most) if image is None else head_of_image(image, source, start)


@contextlib.contextmanager
def _opened(source: Path | io.BytesIO | bytes, start: bytes, most: int) -> Iterator[Image.Image | None]:
    """Yields the image as Pillow opens it, or None if it is a TIFF that only tifffile reads without loss.

    start: the first bytes of the file.
    """
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual metadata
        if is_tiff(start) and not pillow_reads_all_of(source):
            yield None
            return
        _register_heif(start)
        if start.startswith(JPEG2000):  # Pillow refuses some by other names
            bits_of_jpeg2000(beginning(source, START))
        allowed = Image.MAX_IMAGE_PIXELS  # of the process: Pillow refuses twice as many, or none if it is None
        if allowed is not None and most > 2 * allowed:
            Image.MAX_IMAGE_PIXELS = -(-most // 2)
        try:
            image = Image.open(source, formats=_known_formats())
            if image.format == "PNG" and not isinstance(source, Path) and image.width * image.height <= most:
                image.load()
        except Exception:
            if is_tiff(start):  # in a compression that Pillow does not know
                if not isinstance(source, Path):
                    source.seek(0)
                yield None
                return
            data = source.read_bytes() if isinstance(source, Path) else source.getvalue()
            if (bits := bits_of_jpeg(data)) > 8:
                raise ValueError(
                    f"it is a JPEG of {bits} bits, but only those of 8 are read: save it as PNG or TIFF"
                ) from None
            stripped = without_metadata(data)
            if stripped is None:
                raise
            image = Image.open(io.BytesIO(stripped), formats=_known_formats())
        with image:
            check_size(image.size, most)
            yield image


def _register_heif(start: bytes) -> None:
    """Lets Pillow read HEIC, if pillow-heif is installed. Raises ValueError with the way to get it if it is not."""
    if start[4:12] not in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc", b"ftypheim", b"ftypheis"):
        return
    if "HEIF" not in Image.OPEN:
        if importlib.util.find_spec("pillow_heif") is None:
            raise ValueError("it is HEIC, which needs pillow-heif: pip install pillow-heif (flaxcls's extra images)")
        import pillow_heif

        pillow_heif.register_heif_opener()


def _known_formats() -> list[str]:
    """Returns those of `FORMATS` that this Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def name_errors(name: str, read: Callable[[], T]) -> T:
    """Returns `read()`. Raises InputError, with `name`, for any error in it."""
    try:
        return read()
    except FileNotFoundError as error:
        raise InputError(f"{name}{MISSING}") from error
    except (TooLargeError, Image.DecompressionBombError) as error:
        pixels, most = re.findall(r"\d+", str(error))[:2]
        raise InputError(
            f"{name} has {int(pixels):,} pixels, and at most {int(most):,} are read, so that no file fills the memory: "
            f"if it is what it should be, allow them by --data.max-pixels {pixels} (predict: --max-pixels)."
        ) from error
    except Exception as error:  # the decoders raise many types
        raise InputError(f"{name} is no image that can be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message contains a memory address
        return "it has no known format"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
