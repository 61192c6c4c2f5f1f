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
from PIL import ExifTags, Image, UnidentifiedImageError

from flaxcls.data.picture import MOST_PIXELS, Head, Picture, TooLargeError, beginning, check_size, shared, upright
from flaxcls.data.png import LARGE, PNG, is_plain_png, png_chunks, without_metadata
from flaxcls.data.tiff import decode_tiff, head_of_tiff, is_tiff, pillow_reads_all_of
from flaxcls.errors import InputError
from flaxcls.storage import printable

# The formats of Pillow that are pictures of pixels, and read by itself alone.
FORMATS = (
    *("AVIF", "BMP", "DDS", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)
GREY_MODES = ("1", "L", "LA", "La")
T = TypeVar("T")


def read_picture(path: Path, most_pixels: int | None = None) -> Picture:
    """Returns the picture in a file. Raises InputError if it is not an image that is readable to its end.

    most_pixels: of the picture, so that no file fills the memory; None: `MOST_PIXELS`.
    """
    return named(printable(path), lambda: decode(path.read_bytes(), most_pixels))


def read_head(file: Path | bytes, name: str, most_pixels: int | None = None) -> Head:
    """Returns what the header of a file, or of its bytes, says. Raises InputError, with `name`, if it is no image.

    most_pixels: of the picture; None: `MOST_PIXELS`.
    """
    return named(name, lambda: shared(_head(file, most_pixels or MOST_PIXELS)))


def decode(data: bytes, most_pixels: int | None = None) -> Picture:
    """Returns the picture in the bytes of a file.

    It is turned upright as its metadata says, and damage in metadata is no damage. Of an animation or a file of several
    pages, it is the first picture. Colour spaces become RGB; 8, 16 and more bits and floating-point numbers stay what
    they are. Raises the errors of the decoders.
    """
    most = most_pixels or MOST_PIXELS
    if _is_plain_jpeg(data, most):  # the same pixels as Pillow's in half the time
        with contextlib.suppress(ValueError):  # Pillow names the problem of a damaged file, or reads what it can
            return Picture(simplejpeg.decode_jpeg(data))
    if data.startswith(PNG) and is_plain_png(png_chunks(data), most):  # the same pixels in a quarter of the time
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        return Picture(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels[..., np.newaxis])
    with _opened(data, most) as image:
        if image is None:
            return decode_tiff(data, most)
        if _is_deeper_than_pillow_reads(image, data):
            return upright(_decode_deep(data, image), _orientation(image))
        orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow itself turns a TIFF
        return upright(_convert(image), orientation)


def _head(file: Path | bytes, most: int) -> Head:
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    with _opened(source, most) as image:
        if image is None:
            return head_of_tiff(source, most)
        size = image.size if image.format != "TIFF" and _orientation(image) >= 5 else image.size[::-1]
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # the others of an MPO are previews
        note = f"{frames} pictures, of which the first is read" if frames > 1 else ""
        deep = _is_deeper_than_pillow_reads(image, beginning(file))
        if deep or image.mode.startswith("I"):
            transparent = image.mode == "RGB" and image.has_transparency_data
            channels = len(image.getbands()) + transparent
            return Head(size, channels, "uint16", note, channels in (2, 4))
        if image.mode == "F":
            return Head(size, 1, "float32", note)
        channels = (1 if image.mode in GREY_MODES else 3) + image.has_transparency_data
        bits = _bits_of_heif(beginning(file)) if image.format in ("AVIF", "HEIF") else 8
        note = f"{bits} bits, of which 8 are read" if bits > 8 else note
        return Head(size, channels, "uint8", note, image.has_transparency_data)


@contextlib.contextmanager
def _opened(source: Path | io.BytesIO | bytes, most: int) -> Iterator[Image.Image | None]:
    """Yields the image as Pillow opens it, or None if it is a TIFF that only tifffile reads without loss."""
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual metadata
        if is_tiff(source) and not pillow_reads_all_of(source):
            yield None
            return
        _register_heif(source)
        allowed = Image.MAX_IMAGE_PIXELS  # of the process: Pillow refuses twice as many, or none if it is None
        if allowed is not None and most > 2 * allowed:
            Image.MAX_IMAGE_PIXELS = -(-most // 2)
        try:
            image = Image.open(source, formats=_known_formats())
            if image.format == "PNG" and not isinstance(source, Path) and image.width * image.height <= most:
                image.load()
        except Exception:
            if is_tiff(source):  # in a compression that Pillow does not know
                if not isinstance(source, Path):
                    source.seek(0)
                yield None
                return
            stripped = without_metadata(source.read_bytes() if isinstance(source, Path) else source.getvalue())
            if stripped is None:
                raise
            image = Image.open(io.BytesIO(stripped), formats=_known_formats())
        with image:
            check_size(image.size, most)
            yield image


def _convert(image: Image.Image) -> Picture:
    """Returns the pixels of an image of Pillow, in grey or colour, with or without transparency."""
    if image.mode == "F":
        return Picture(np.asarray(image, np.float32)[..., np.newaxis])
    if image.mode.startswith("I"):  # 16 bits
        values = np.asarray(image)
        return Picture(values.astype(np.uint16 if values.min() >= 0 and values.max() < 2**16 else np.int32)[..., None])
    alpha, grey = image.has_transparency_data, image.mode in GREY_MODES
    pixels = np.asarray(image.convert(("LA" if alpha else "L") if grey else "RGBA" if alpha else "RGB"))
    return Picture(pixels if pixels.ndim == 3 else pixels[..., np.newaxis], alpha)


def _is_deeper_than_pillow_reads(image: Image.Image, data: bytes) -> bool:
    """True if the file has more than 8 bits in each of several channels, of which Pillow would keep 8."""
    if image.format == "PNG":
        return data[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06")  # bits, kind of colour
    if image.format == "PPM" and image.mode == "RGB":
        largest = re.match(rb"P6(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)", data)
        return largest is not None and int(largest[1]) > 255
    if image.format == "JPEG2000" and len(image.getbands()) > 1:
        start = data.find(b"\xff\x4f\xff\x51")  # its component sizes follow 40 bytes later
        return start >= 0 and (data[start + 42] & 0x7F) > 7
    return False


def _decode_deep(data: bytes, image: Image.Image) -> Picture:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("its 16 bits cannot be read: save it as PNG or TIFF")
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    if pixels.shape[2] in (3, 4):  # OpenCV has blue first
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    if image.mode in GREY_MODES:
        pixels = pixels[..., [0, 3]] if pixels.shape[2] == 4 else pixels[..., :1]
    return Picture(pixels, image.has_transparency_data)


def _orientation(image: Image.Image) -> int:
    """Returns the orientation in the metadata: 1 is upright, from 5 on rows become columns. Damaged metadata says 1."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the parser raises many types
        return 1
    return found if found in range(1, 9) else 1


def _register_heif(source: Path | io.BytesIO) -> None:
    """Lets Pillow read HEIC, if pillow-heif is installed. Raises ValueError with the way to get it if it is not."""
    brand = beginning(source, 12)[4:]
    if brand not in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc", b"ftypheim", b"ftypheis"):
        return
    if "HEIF" not in Image.OPEN:
        if importlib.util.find_spec("pillow_heif") is None:
            raise ValueError("it is HEIC, which needs pillow-heif: pip install 'flaxcls[images]'")
        import pillow_heif

        pillow_heif.register_heif_opener()


def _known_formats() -> list[str]:
    """Returns those of `FORMATS` that this Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _bits_of_heif(data: bytes) -> int:
    """Returns the largest number of bits in a channel that a file of AVIF or HEIC says to have."""
    bits = [8]
    for found in re.finditer(b"pixi\0{4}", data):
        count = data[found.end()] if found.end() < len(data) else 0
        bits += data[found.end() + 1 : found.end() + 1 + count]
    return max(bits)


def _is_plain_jpeg(data: bytes, most: int) -> bool:
    """True if the bytes begin like a JPEG with three colours and without metadata that could rotate it."""
    at = 2
    while data[:2] == b"\xff\xd8" and data[at : at + 1] == b"\xff":
        marker, length = data[at + 1 : at + 2], int.from_bytes(data[at + 2 : at + 4])
        if marker in (b"\xc0", b"\xc1", b"\xc2"):  # a frame: its length, bits, height, width, number of colours
            rows, columns = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            # for larger images Pillow checks if they are an attempt to fill the memory
            return data[at + 4 : at + 10 : 5] == b"\x08\x03" and 0 < rows * columns <= min(most, LARGE)
        if marker == b"\xe1" or length < 2:  # EXIF or XMP
            return False
        at += 2 + length
    return False


def named(name: str, read: Callable[[], T]) -> T:
    """Returns `read()`. Raises InputError, with `name`, for any error in it."""
    try:
        return read()
    except FileNotFoundError as error:
        raise InputError(f"{name} is not there.") from error
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
