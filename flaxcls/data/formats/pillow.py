"""Images that Pillow has opened, as pictures: where it would lose depth or transparency, another decoder reads them."""

import io
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image

from flaxcls.data.formats.jpeg2000 import START, bits_of_jpeg2000, says_no_alpha, stretched
from flaxcls.data.formats.png import may_be_turned, transparent_grey
from flaxcls.data.picture import OF_PRINT, SEVERAL, Head, Picture, beginning, upright

GREY_MODES = ("1", "L", "LA", "La", "F")
GREY_PNGS = (0, 4)  # kinds of colour in its header: grey, and grey with transparency


def picture_of_image(image: Image.Image, data: bytes) -> Picture:
    """Returns the picture of an image that Pillow has opened. data: the bytes of its file."""
    head = _head(image, data)
    picture = Picture(_pixels(image, data, head), head.alpha, head.note)
    return upright(picture, 1 if image.format == "TIFF" else _orientation(image))  # Pillow itself turns a TIFF


def head_of_image(image: Image.Image, source: Path | io.BytesIO, start: bytes) -> Head:
    """Returns what the header of an image says that Pillow has opened. source: its file; start: its first bytes."""
    head = _head(image, beginning(source, START) if image.format in ("AVIF", "HEIF", "JPEG2000") else start)
    if image.format == "TIFF" or (image.format == "PNG" and not may_be_turned(source)):  # else Pillow decodes the PNG
        return head
    return head._replace(size=head.size[::-1]) if _orientation(image) >= 5 else head


def _head(image: Image.Image, start: bytes) -> Head:
    """Returns the head of an image before it is turned upright. start: the first bytes of its file."""
    is_png = image.format == "PNG"
    grey = image.mode in GREY_MODES or image.mode.startswith("I") or (is_png and start[25] in GREY_PNGS)
    channels = (1 if grey else 3) + (image.has_transparency_data and not _is_tga_without_alpha(image, start))
    dtype = "uint8"
    if image.mode == "F":
        dtype = "float32"
    elif image.mode.startswith("I") or (is_png and start[24] == 16) or _is_deep_jpeg2000(image, start):
        dtype = "uint16"
    alpha = channels in (2, 4) and not (image.format == "JPEG2000" and says_no_alpha(start))
    return Head(image.size[::-1], channels, dtype, ", and ".join(_notes(image, start)), alpha)


def _pixels(image: Image.Image, data: bytes, head: Head) -> np.ndarray:
    """Returns the pixels [h w c] of an image, in the channels and the type of its head."""
    if image.format == "PNG" and data[25] == 0 and head.channels == 2:
        return _with_transparent_grey(np.asarray(image if head.dtype == "uint16" else image.convert("L")), data)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image).astype(head.dtype)[..., np.newaxis]
        if image.format in ("HEIF", "JPEG2000"):  # Pillow has shifted them to the highest bits
            values >>= 16 - (image.info["bit_depth"] if image.format == "HEIF" else bits_of_jpeg2000(data)[0])
        return values
    if head.dtype == "uint16":
        return _decode_deep(data, head.channels)
    if _is_misread_bmp(image, data):
        return _by_opencv(data, cv2.IMREAD_GRAYSCALE)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[head.channels]
    pixels = np.asarray(image.convert(mode)).reshape(*head.size, head.channels)
    if image.format == "JPEG2000" and image.mode == mode:
        return stretched(pixels, bits_of_jpeg2000(data))
    return pixels


def _with_transparent_grey(grey: np.ndarray, data: bytes) -> np.ndarray:
    """Returns [h w 2]: the greys [h w] of a PNG and their transparency, of which Pillow takes other greys."""
    opaque = 65535 if data[24] == 16 else 255
    alpha = np.where(grey == transparent_grey(data), 0, opaque)
    return np.dstack([grey, alpha]).astype(np.uint16 if opaque == 65535 else np.uint8)


def _decode_deep(data: bytes, channels: int) -> np.ndarray:
    """Returns u16[h w c] of a PNG or JPEG 2000 of several channels."""
    pixels = _by_opencv(data, cv2.IMREAD_UNCHANGED)
    if pixels.dtype != np.uint16:
        raise ValueError("its 16 bits cannot be read: save it as PNG or TIFF")
    if channels <= 2:  # grey with transparency has three equal channels
        return pixels[..., [0, -1][:channels]]
    return pixels[..., [2, 1, 0, 3][:channels]]  # OpenCV has blue first


def _by_opencv(data: bytes, flags: int) -> np.ndarray:
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ValueError("it is damaged, or of a kind that OpenCV does not read: save it as PNG or TIFF")
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


def _is_deep_jpeg2000(image: Image.Image, start: bytes) -> bool:
    return image.format == "JPEG2000" and max(bits_of_jpeg2000(start)) > 8


def _is_misread_bmp(image: Image.Image, start: bytes) -> bool:
    """True for a BMP with a palette of greys, of which Pillow takes the bits as those of greys without a palette."""
    return image.format == "BMP" and {"1": 1, "L": 8}.get(image.mode, start[28]) != start[28]


def _is_tga_without_alpha(image: Image.Image, start: bytes) -> bool:
    """True for a TGA in colours that says to have no bits of transparency, whatever else is beside the colours."""
    return image.format == "TGA" and start[2] & 7 == 2 and start[17] & 15 == 0


def _notes(image: Image.Image, start: bytes) -> list[str]:
    """Returns what of a file is not read."""
    bits = _bits(image, start)
    notes = [f"{bits} bits, of which 8 are read"] if bits > 8 else []
    if image.mode == "CMYK":
        notes.append(OF_PRINT)
    if image.format == "BMP" and start[28] == 16 and start[14] >= 56 and start[30] == 3 and any(start[66:70]):
        notes.append("a bit of transparency, which is not read")
    if _is_tga_without_alpha(image, start) and start[16] == 32:
        notes.append("a fourth channel that is not said to be transparency, which is not read")
    if image.format == "ICO" and int.from_bytes(start[4:6], "little") > 1:
        notes.append("several pictures, of which one of the largest is read")
    sides = image.format == "DDS" and any(start[113:115])  # of a cube, or the layers of a volume
    if sides or (image.format != "MPO" and getattr(image, "is_animated", False)):  # an MPO has previews
        notes.append(SEVERAL)
    return notes


def _bits(image: Image.Image, start: bytes) -> int:
    """Returns the number of bits in a channel of the formats of which Pillow reads 8, whatever they have."""
    if image.format == "HEIF":
        return 8 if image.mode.startswith("I") else image.info["bit_depth"]
    if image.format == "AVIF":  # in the box that every picture should have, and in the one of its codec
        found = re.findall(rb"pixi\0{4}.(.)|av1C\x81.(.)", start[:START], re.DOTALL)
        return max([8, *(pixi[0] if pixi else (8, 8, 10, 12)[codec[0] >> 5 & 3] for pixi, codec in found)])
    if image.format == "SGI":
        return 8 * start[3]
    if image.format == "DDS":
        masks = (int.from_bytes(start[at : at + 4], "little") for at in range(92, 108, 4))
        is_float = getattr(image, "pixel_format", "").startswith("BC6")
        return 16 if is_float else max(mask.bit_count() for mask in masks) if start[80] & 0x40 else 8
    return 8


def _orientation(image: Image.Image) -> int:
    """Returns the orientation in the metadata: 1 is upright, from 5 on rows become columns. Damaged metadata says 1."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the parser raises many types
        return 1
    return found if found in range(1, 9) else 1
