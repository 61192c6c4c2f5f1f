"""Image files, decoded: upright, with all their channels, at their own depth. The one decoder of every source."""

import contextlib
import importlib.util
import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import simplejpeg
import tifffile
from PIL import ExifTags, Image, UnidentifiedImageError

from flaxcls.errors import InputError
from flaxcls.storage import printable

# The formats of Pillow that are pictures of pixels, and read by itself alone.
FORMATS = (
    *("AVIF", "BMP", "DDS", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP"),
)
GREY_MODES = ("1", "L", "LA", "La")
ALPHA_SAMPLES = (1, 2)  # ExtraSamples of TIFF 6.0: associated and unassociated alpha
GDAL_NODATA = 42113  # a private tag of TIFF
PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
LARGE = 2**26  # pixels
T = TypeVar("T")


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
    """

    size: tuple[int, int]
    channels: int
    dtype: str
    note: str = ""


def read_picture(path: Path) -> Picture:
    """Returns the picture in a file. Raises InputError if it is not an image that is readable to its end."""
    return named(printable(path), lambda: decode(path.read_bytes()))


def read_head(file: Path | bytes, name: str) -> Head:
    """Returns what the header of a file, or of its bytes, says. Raises InputError, with `name`, if it is no image."""
    return named(name, lambda: _shared(_head(file)))


@lru_cache(4096)
def _shared(head: Head) -> Head:
    """Returns one object for all equal heads: a data set has millions of them, and few that differ."""
    return head


def head_of(picture: Picture) -> Head:
    """Returns the head of a decoded picture."""
    return _shared(Head(picture.pixels.shape[:2], picture.pixels.shape[2], picture.pixels.dtype.name))


def decode(data: bytes) -> Picture:
    """Returns the picture in the bytes of a file.

    It is turned upright as its metadata says, and damage in metadata is no damage. Of an animation or a file of several
    pages, it is the first picture. Colour spaces become RGB; 8, 16 and more bits and floating-point numbers stay what
    they are. Raises the errors of the decoders.
    """
    if _is_plain_jpeg(data):  # the same pixels as Pillow's in half the time
        with contextlib.suppress(ValueError):  # Pillow names the problem of a damaged file, or reads what it can
            return Picture(simplejpeg.decode_jpeg(data))
    if data.startswith(PNG) and _is_plain_png(_png_chunks(data)):  # the same pixels in a quarter of the time
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        return Picture(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels[..., np.newaxis])
    with _opened(data) as image:
        if image is None:
            return _decode_tiff(data)
        if _is_deeper_than_pillow_reads(image, data):
            return _upright(_decode_deep(data, image), _orientation(image))
        orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow itself turns a TIFF
        return _upright(_convert(image), orientation)


def _head(file: Path | bytes) -> Head:
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    with _opened(source) as image:
        if image is None:
            return _head_of_tiff(source)
        size = image.size if image.format != "TIFF" and _orientation(image) >= 5 else image.size[::-1]
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # the others of an MPO are previews
        note = f"{frames} pictures, of which the first is read" if frames > 1 else ""
        deep = _is_deeper_than_pillow_reads(image, _beginning(file))
        if deep or image.mode.startswith("I"):
            return Head(size, len(image.getbands()), "uint16", note)
        if image.mode == "F":
            return Head(size, 1, "float32", note)
        channels = (1 if image.mode in GREY_MODES else 3) + image.has_transparency_data
        bits = _bits_of_heif(_beginning(file)) if image.format in ("AVIF", "HEIF") else 8
        return Head(size, channels, "uint8", f"{bits} bits, of which 8 are read" if bits > 8 else note)


@contextlib.contextmanager
def _opened(source: Path | io.BytesIO | bytes) -> Iterator[Image.Image | None]:
    """Yields the image as Pillow opens it, or None if it is a TIFF that only tifffile reads without loss."""
    source = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual metadata
        if _is_tiff(source) and not _pillow_reads_all_of(source):
            yield None
            return
        _register_heif(source)
        try:
            image = Image.open(source, formats=_known_formats())
            if image.format == "PNG" and not isinstance(source, Path):
                image.load()
        except Exception:
            stripped = _without_metadata(source.read_bytes() if isinstance(source, Path) else source.getvalue())
            if stripped is None:
                raise
            image = Image.open(io.BytesIO(stripped), formats=_known_formats())
        with image:
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


def _is_tiff(source: Path | io.BytesIO) -> bool:
    return _beginning(source, 4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _pillow_reads_all_of(source: Path | io.BytesIO) -> bool:
    """True if Pillow reads the first page of a TIFF without loss: 8 bits with known channels, or one of 16 or float."""
    try:
        with tifffile.TiffFile(source) as tiff:
            page = tiff.pages.first
            colours = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}.get(int(page.photometric))  # of its colour space
            alpha = sum(int(sample) in ALPHA_SAMPLES for sample in page.extrasamples)
            kind = (int(page.sampleformat), page.bitspersample)
            known = colours is not None and page.samplesperpixel == colours + alpha and _no_data(page) is None
            deep = page.photometric == 1 and kind in ((1, 12), (1, 16), (3, 32))
            return known and (deep or kind in ((1, 1), (1, 2), (1, 4), (1, 8)))
    except Exception:  # it raises many types; Pillow may read what is damaged for tifffile
        return True
    finally:
        if not isinstance(source, Path):
            source.seek(0)


def _decode_tiff(data: bytes) -> Picture:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages.first
        try:
            pixels = page.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error) and importlib.util.find_spec("imagecodecs") is None:
                raise ValueError(
                    f"its compression needs imagecodecs: pip install 'flaxcls[images]' ({error})"
                ) from None
            raise
        if page.axes == "SYX":  # a plane for each channel
            pixels = np.moveaxis(pixels, 0, -1)
        if int(page.photometric) == 0 and pixels.dtype.kind == "u":  # 0 is white
            pixels = np.iinfo(pixels.dtype).max - pixels
        pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3:
            raise ValueError(f"its first page has the axes {page.axes}, but a picture has height, width and channels")
        if pixels.dtype.kind == "f":
            pixels = pixels.astype(np.float32)
        no_data = _no_data(page)
        if no_data is not None and pixels.dtype.kind == "f":
            pixels[pixels == np.float32(no_data)] = np.nan
        pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
        return _upright(Picture(pixels, _has_alpha(page)), _orientation_of_tiff(page))


def _head_of_tiff(source: Path | io.BytesIO) -> Head:
    with tifffile.TiffFile(source) as tiff:
        page: Any = tiff.pages.first
        size = (page.imagelength, page.imagewidth)
        dtype = "uint8" if page.dtype == bool else "float32" if page.dtype.kind == "f" else page.dtype.name
        note = f"{len(tiff.pages)} pages, of which the first is read" if len(tiff.pages) > 1 else ""
        return Head(size[::-1] if _orientation_of_tiff(page) >= 5 else size, page.samplesperpixel, dtype, note)


def _has_alpha(page: Any) -> bool:
    return bool(page.extrasamples) and int(page.extrasamples[-1]) in ALPHA_SAMPLES


def _no_data(page: Any) -> float | None:
    """Returns the value that means no data, from the tag that GDAL writes."""
    tag = page.tags.get(GDAL_NODATA)
    try:
        return None if tag is None else float(str(tag.value).strip("\0 "))
    except ValueError:
        return None


def _orientation_of_tiff(page: Any) -> int:
    tag = page.tags.get("Orientation")
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _orientation(image: Image.Image) -> int:
    """Returns the orientation in the metadata: 1 is upright, from 5 on rows become columns. Damaged metadata says 1."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the parser raises many types
        return 1
    return found if found in range(1, 9) else 1


def _upright(picture: Picture, orientation: int) -> Picture:
    """Returns the picture that is stored in this orientation, as EXIF 2.32 numbers it, upright."""
    pixels = picture.pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return Picture(np.ascontiguousarray(pixels), picture.alpha)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Returns kind and bytes of each chunk of a PNG, in which only metadata may be damaged.

    Raises ValueError if the checksum of a chunk is wrong that decides the pixels, which Pillow does not check.
    """
    chunks, at = [], len(PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind, chunk = data[at + 4 : at + 8], data[at:end]
        if chunk[-4:] == zlib.crc32(chunk[4:-4]).to_bytes(4):
            chunks.append((kind, chunk))
        elif kind in PNG_PIXELS:
            raise ValueError(f"it is damaged or cut off: the checksum of its {kind.decode()} is wrong")
        at = end
    return chunks


def _is_plain_png(chunks: list[tuple[bytes, bytes]]) -> bool:
    """True for a whole PNG of 8 bits, grey or in three colours, without metadata but its resolution."""
    head = chunks[0][1] if chunks else b""
    size = int.from_bytes(head[8:12]) * int.from_bytes(head[12:16])
    plain = head[16:18] in (b"\x08\x00", b"\x08\x02") and chunks[-1][0] == b"IEND"
    # for larger images Pillow checks if they are an attempt to fill the memory
    return plain and 0 < size < LARGE and {kind for kind, _ in chunks} <= {b"IHDR", b"IDAT", b"IEND", b"pHYs"}


def _without_metadata(data: bytes) -> bytes | None:
    """Returns a PNG without the chunks that decide neither pixels nor orientation; None if the bytes are no PNG."""
    if not data.startswith(PNG):
        return None
    return PNG + b"".join(chunk for kind, chunk in _png_chunks(data) if kind in (*PNG_PIXELS, b"eXIf"))


def _register_heif(source: Path | io.BytesIO) -> None:
    """Lets Pillow read HEIC, if pillow-heif is installed. Raises ValueError with the way to get it if it is not."""
    brand = _beginning(source, 12)[4:]
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


def _beginning(source: Path | io.BytesIO | bytes, count: int = 4096) -> bytes:
    if isinstance(source, bytes):
        return source[:count]
    if isinstance(source, io.BytesIO):
        return bytes(source.getbuffer()[:count])
    with source.open("rb") as file:
        return file.read(count)


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


def allow_pixels(most: int | None) -> None:
    """Lets this process read pictures of so many pixels; None: as many as Pillow does, 178,956,970."""
    if most is not None:
        Image.MAX_IMAGE_PIXELS = -(-most // 2)  # Pillow refuses twice as many


def named(name: str, read: Callable[[], T]) -> T:
    """Returns `read()`. Raises InputError, with `name`, for any error in it."""
    try:
        return read()
    except FileNotFoundError as error:
        raise InputError(f"{name} is not there.") from error
    except Image.DecompressionBombError as error:
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
