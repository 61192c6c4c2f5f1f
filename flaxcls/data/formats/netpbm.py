"""Netpbm files (PBM, PGM, PPM, PAM) and PFM, with the numbers that they hold: Pillow stretches them to 8 or 16 bits."""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxcls.data.picture import SEVERAL, Head, Picture, beginning, check_size

MAGIC = re.compile(rb"P[1-6Ff][\s#]|P7\s")
FIELD = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*([^\s#]+)")  # of a header, after blanks and comments
PAM = re.compile(rb"P7\s.*?\nENDHDR[^\n]*\n", re.DOTALL)
HEADER = 2**16  # bytes in which it ends
CHANNELS = {b"P3": 3, b"P6": 3, b"PF": 3}  # of the others 1; a PAM says it


class Header(NamedTuple):
    """The header of a file.

    kind: the first two bytes of the file.
    size: height and width.
    top: the value that is white.
    alpha: True if the last channel is transparency.
    scale: of PFM: numbers times its absolute value are physical units; below 0, they are little-endian.
    end: the place of the pixels.
    """

    kind: bytes
    size: tuple[int, int]
    channels: int
    top: int
    alpha: bool
    scale: float
    end: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a number in the file."""
        if self.kind in (b"Pf", b"PF"):
            return np.dtype("<f4" if self.scale < 0 else ">f4")
        return np.dtype("u1" if self.top < 256 else ">u2")

    @property
    def length(self) -> int:
        """Bytes of the pixels, if they are not written as text."""
        rows, columns = self.size
        return rows * -(-columns // 8) if self.kind == b"P4" else rows * columns * self.channels * self.dtype.itemsize


def is_netpbm(start: bytes) -> bool:
    """True if a file begins like one of Netpbm, or PFM."""
    return MAGIC.match(start) is not None


def head_of_netpbm(source: Path | io.BytesIO | bytes, most: int) -> Head:
    """Returns what the header says. most: pixels of the picture that are read."""
    header = _header(beginning(source, HEADER))
    check_size(header.size, most)
    dtype = header.dtype.newbyteorder("=").name
    return Head(header.size, header.channels, dtype, _note(header, source), header.alpha)


def decode_netpbm(data: bytes, most: int) -> Picture:
    """Returns the (first) picture in the bytes of a file. most: pixels of the picture that are read.

    Whole numbers of more than 8 bits and floats are those of the file. Others are stretched to 0..255, as those of 1, 2
    and 4 bits in PNG and TIFF are, so that white is 255 in all files of 8 bits.
    """
    header = _header(data)
    check_size(header.size, most)
    values = _values(header, data)
    if header.kind in (b"P1", b"P4"):
        values = 1 - values  # 1 is black
    if header.top < 256 and values.max() > header.top:
        raise ValueError(f"it has the value {values.max()}, but its header says that {header.top} is the largest")
    if header.top < 255:
        values = np.rint(values * 255.0 / header.top).astype(np.uint8)
    pixels = values.reshape(*header.size, header.channels)
    if header.dtype.kind == "f":
        pixels = pixels[::-1]  # the last row is first
    return Picture(np.ascontiguousarray(pixels), header.alpha, _note(header, data))


def _header(data: bytes) -> Header:
    kind, alpha, channels, at = data[:2], False, CHANNELS.get(data[:2], 1), 2
    if kind == b"P7":
        text = PAM.match(data)
        if text is None:
            raise ValueError("its header has no end")
        lines = [line.split(None, 1) for line in text[0].splitlines()[1:] if line.strip() and line[:1] != b"#"]
        given = {words[0]: words[-1].strip() for words in lines}
        columns, rows, channels, top = (int(given[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
        alpha, scale, at = given.get(b"TUPLTYPE", b"").endswith(b"_ALPHA"), 0.0, text.end()
    else:
        fields = []
        for _ in range(2 if kind in (b"P1", b"P4") else 3):
            found = FIELD.match(data, at)
            if found is None:
                raise ValueError("its header is cut off")
            fields.append(found[1])
            at = found.end()
        at += 1  # a single blank
        columns, rows = int(fields[0]), int(fields[1])
        is_float = kind in (b"Pf", b"PF")
        scale = float(fields[2]) if is_float else 0.0
        top = 2**16 if is_float else int(fields[2]) if len(fields) > 2 else 1
    if min(columns, rows, channels, top) < 1 or (top > 65535 and not scale):
        raise ValueError(f"its header says {columns}x{rows} pixels of {channels} channels, up to {top}")
    return Header(kind, (rows, columns), channels, top, alpha, scale, at)


def _values(header: Header, data: bytes) -> np.ndarray:
    """Returns the numbers in the file, of the type that they have in it, [h*w*c]."""
    rows, columns = header.size
    count = rows * columns * header.channels
    if header.kind in (b"P1", b"P2", b"P3"):
        text = re.sub(rb"#[^\r\n]*", b"", data[header.end :])
        words = list(b"".join(text.split())) if header.kind == b"P1" else text.split()
        if len(words) < count:
            raise ValueError(f"it is cut off: it has {len(words)} of {count} numbers")
        values = np.array([int(word) for word in words[:count]], np.int64)
        values -= ord("0") if header.kind == b"P1" else 0
        if values.min() < 0 or values.max() > np.iinfo(header.dtype).max:
            raise ValueError(
                f"it has values of {values.min()} to {values.max()}, but its header says 0 to {header.top}"
            )
        return values.astype(header.dtype.newbyteorder("="))
    if len(data) < header.end + header.length:
        raise ValueError(f"it is cut off: it has {len(data) - header.end} of {header.length} bytes of pixels")
    if header.kind == b"P4":
        bits = np.frombuffer(data, np.uint8, header.length, header.end).reshape(rows, -1)
        return np.unpackbits(bits, axis=1, count=columns)
    return np.frombuffer(data, header.dtype, count, header.end).astype(header.dtype.newbyteorder("="))


def _note(header: Header, source: Path | io.BytesIO | bytes) -> str:
    if header.dtype.kind == "f":
        return "" if abs(header.scale) == 1 else f"a scale of {abs(header.scale):g}, which is not read"
    is_text = header.kind in (b"P1", b"P2", b"P3")
    return SEVERAL if not is_text and is_netpbm(beginning(source, 3, header.end + header.length)) else ""
