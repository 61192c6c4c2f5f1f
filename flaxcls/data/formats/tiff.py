"""TIFF files of all depths and bands, read by tifffile where Pillow would lose something."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from flaxcls.data.picture import OF_PRINT, SEVERAL, Head, Picture, check_size, upright

# PhotometricInterpretation of TIFF 6.0
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR = range(7)
MOSAIC, LINEAR = 32803, 34892  # of cameras
MULTIPLIED, NOT_MULTIPLIED = 1, 2  # ExtraSamples: transparency, by which the colours are multiplied or not
GDAL_NODATA = 42113  # a private tag of TIFF


def is_tiff(start: bytes) -> bool:
    """True if a file begins like a TIFF, small or big."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def pillow_reads_all_of(source: Path | io.BytesIO) -> bool:
    """True if Pillow reads the first page of a TIFF without loss: 8 bits with known channels, or one of 16 or float."""
    try:
        with tifffile.TiffFile(source) as tiff:
            page = tiff.pages.first
            colours = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}.get(int(page.photometric))  # of its colour space
            alpha = sum(int(sample) in (MULTIPLIED, NOT_MULTIPLIED) for sample in page.extrasamples)
            kind = (int(page.sampleformat), page.bitspersample)
            known = colours is not None and page.samplesperpixel == colours + alpha and _no_data(page) is None
            known = known and not (alpha and page.photometric in (WHITE_IS_ZERO, CMYK)) and not page.is_reduced
            deep = page.photometric == BLACK_IS_ZERO and kind in ((1, 12), (1, 16), (3, 32))
            few = page.samplesperpixel == 1 and kind in ((1, 1), (1, 2), (1, 4))
            return known and (deep or few or kind == (1, 8))
    except Exception:  # it raises many types; Pillow may read what is damaged for tifffile
        return True
    finally:
        if not isinstance(source, Path):
            source.seek(0)


def decode_tiff(data: bytes, most: int) -> Picture:
    """Returns the first picture in a TIFF, as `decode` does. Values that mean no data are NaN, in float32.

    most: pixels of the picture that are read.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page: Any = tiff.pages.first
        check_size((page.imagelength, page.imagewidth), most)
        _check_kind(tiff)
        stored, no_data = _read(page), _no_data(page)
        pixels = _in_rgb(page, stored)
        if pixels.dtype.kind == "f" or no_data is not None:
            pixels = pixels.astype(np.float32)
        if no_data is not None:
            missing = stored == (np.float32(no_data) if stored.dtype == np.float32 else no_data)
            pixels[missing if missing.shape == pixels.shape else missing.any(2)] = np.nan
        return upright(Picture(pixels, _has_alpha(page), _note(tiff)), _orientation_of_tiff(page))


def head_of_tiff(source: Path | io.BytesIO, most: int) -> Head:
    """Returns what the header of a TIFF says. most: pixels of the picture that are read."""
    with tifffile.TiffFile(source) as tiff:
        page: Any = tiff.pages.first
        size = (page.imagelength, page.imagewidth)
        check_size(size, most)
        _check_kind(tiff)
        is_float = page.dtype.kind == "f" or _no_data(page) is not None
        dtype = "uint8" if page.dtype == bool else "float32" if is_float else page.dtype.name
        more = 2 if page.photometric == PALETTE else -1 if _is_cmyk(page) else 0
        size = size[::-1] if _orientation_of_tiff(page) >= 5 else size
        return Head(size, page.samplesperpixel + more, dtype, _note(tiff), _has_alpha(page))


def _check_kind(tiff: tifffile.TiffFile) -> None:
    """Raises ValueError for a kind of picture whose numbers cannot be read as grey, colours or bands."""
    page: Any = tiff.pages.first
    bits = " and ".join(map(str, sorted({*np.atleast_1d(page.bitspersample).tolist()})))
    known = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, MOSAIC, LINEAR)
    is_jpeg = "JP" in page.compression.name  # its decoders return RGB
    if int(page.photometric) not in known and not (page.photometric == YCBCR and is_jpeg):
        raise ValueError(f"its colours are {page.photometric.name} of {bits} bits: save it in RGB")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise ValueError(f"its values are {page.sampleformat.name} of {bits} bits: save them as real numbers")
    if page.is_reduced and (page.subifds or _is_multipage(tiff)):
        raise ValueError("its first page is a small copy of another, as in raw photos: save that as a file of its own")


def _read(page: Any) -> np.ndarray:
    """Returns the numbers in a page, [h w c]."""
    try:
        pixels = page.asarray()
    except ValueError as error:
        if "imagecodecs" in str(error) and importlib.util.find_spec("imagecodecs") is None:
            raise ValueError(
                f"its compression needs imagecodecs: pip install imagecodecs (flaxcls's extra images); {error}"
            ) from None
        raise
    if page.axes == "SYX":  # a plane for each channel
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3:
        raise ValueError(f"its first page has the axes {page.axes}, but a picture has height, width and channels")
    return pixels


def _in_rgb(page: Any, pixels: np.ndarray) -> np.ndarray:
    """Returns the numbers [h w c] of a page in grey or RGB: 0 is black, and fewer than 8 bits become 0..255.

    Colours are not multiplied by transparency.
    """
    bits = np.atleast_1d(page.bitspersample)
    if bits.max() < 8 and page.photometric != PALETTE:
        pixels = np.rint(pixels * 255.0 / (2.0**bits - 1)).astype(np.uint8)
    if pixels.dtype.kind == "u":
        top = np.array(2 ** max(8, int(bits.max())) - 1, pixels.dtype)
        if page.photometric == WHITE_IS_ZERO:
            pixels = np.concatenate([top - pixels[..., :1], pixels[..., 1:]], 2)
        if _is_cmyk(page):
            ink = pixels[..., :4] / float(top)
            colours = np.rint((1 - ink[..., :3]) * (1 - ink[..., 3:]) * top).astype(pixels.dtype)
            pixels = np.concatenate([colours, pixels[..., 4:]], 2)
    if page.photometric == PALETTE:
        colours = page.colormap.T[pixels[..., 0]]  # u16
        colours = (colours >> 8).astype(np.uint8) if pixels.dtype == np.uint8 else colours
        pixels = np.concatenate([colours, pixels[..., 1:]], 2)
    if _last_sample(page) == MULTIPLIED:
        pixels = _divided_by_alpha(pixels)
    return pixels


def _divided_by_alpha(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels [h w c] whose colours are not multiplied by their last channel; nothing is seen where it is 0."""
    top = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1.0
    alpha = pixels[..., -1:].astype(np.float64)
    colours = np.divide(pixels[..., :-1] * float(top), alpha, out=np.zeros(pixels[..., :-1].shape), where=alpha > 0)
    colours = colours if pixels.dtype.kind == "f" else np.rint(colours.clip(0, top))
    return np.concatenate([colours.astype(pixels.dtype), pixels[..., -1:]], 2)


def _is_cmyk(page: Any) -> bool:
    inks = page.tags.get("InkSet")
    return page.photometric == CMYK and page.samplesperpixel >= 4 and (inks is None or inks.value == 1)


def _last_sample(page: Any) -> int:
    """Returns what the last channel is, as ExtraSamples numbers it: 0 if it is a colour, or not said."""
    return int(page.extrasamples[-1]) if page.extrasamples else 0


def _has_alpha(page: Any) -> bool:
    return _last_sample(page) in (MULTIPLIED, NOT_MULTIPLIED)


def _note(tiff: tifffile.TiffFile) -> str:
    return ", and ".join([OF_PRINT] * _is_cmyk(tiff.pages.first) + [SEVERAL] * _is_multipage(tiff))


def _is_multipage(tiff: tifffile.TiffFile) -> bool:
    try:
        tiff.pages[1]
    except IndexError:
        return False
    return True


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
