"""TIFF files of all depths and bands, read by tifffile where Pillow would lose something."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from flaxcls.data.picture import Head, Picture, beginning, check_size, upright

ALPHA_SAMPLES = (1, 2)  # ExtraSamples of TIFF 6.0: associated and unassociated alpha
GDAL_NODATA = 42113  # a private tag of TIFF


def is_tiff(source: Path | io.BytesIO) -> bool:
    """True if a file begins like a TIFF, small or big."""
    return beginning(source, 4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def pillow_reads_all_of(source: Path | io.BytesIO) -> bool:
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


def decode_tiff(data: bytes, most: int) -> Picture:
    """Returns the first picture in a TIFF, as `decode` does. Values that mean no data are NaN, in float32.

    most: pixels of the picture that are read.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page: Any = tiff.pages.first
        check_size((page.imagelength, page.imagewidth), most)
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
            pixels = np.array(2 ** min(page.bitspersample, 8 * pixels.itemsize) - 1, pixels.dtype) - pixels
        pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3:
            raise ValueError(f"its first page has the axes {page.axes}, but a picture has height, width and channels")
        no_data = _no_data(page)
        if pixels.dtype.kind == "f" or no_data is not None:
            missing = pixels == (np.float32(no_data or 0) if pixels.dtype == np.float32 else no_data)
            pixels = pixels.astype(np.float32)
            if no_data is not None:
                pixels[missing] = np.nan
        pixels = pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels
        return upright(Picture(pixels, _has_alpha(page)), _orientation_of_tiff(page))


def head_of_tiff(source: Path | io.BytesIO, most: int) -> Head:
    """Returns what the header of a TIFF says. most: pixels of the picture that are read."""
    with tifffile.TiffFile(source) as tiff:
        page: Any = tiff.pages.first
        size = (page.imagelength, page.imagewidth)
        check_size(size, most)
        is_float = page.dtype.kind == "f" or _no_data(page) is not None
        dtype = "uint8" if page.dtype == bool else "float32" if is_float else page.dtype.name
        note = f"{len(tiff.pages)} pages, of which the first is read" if len(tiff.pages) > 1 else ""
        size = size[::-1] if _orientation_of_tiff(page) >= 5 else size
        return Head(size, page.samplesperpixel, dtype, note, _has_alpha(page))


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
