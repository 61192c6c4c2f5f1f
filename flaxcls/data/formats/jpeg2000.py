"""The components of JPEG 2000 files, of which Pillow and OpenCV each read some with the numbers that they hold."""

import re

import numpy as np

JPEG2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")
START = 2**20  # bytes in which the sizes of the components are


def bits_of_jpeg2000(data: bytes) -> list[int]:
    """Returns the number of bits of each component. Raises ValueError if no decoder at hand keeps their numbers.

    data: the first `START` bytes of the file, or all.
    """
    at = data.find(b"\xff\x4f\xff\x51")  # a codestream, that begins with its sizes
    if at < 0 or len(data) < at + 45:
        raise ValueError("it is JPEG 2000 without a picture")
    sizes = data[at + 42 : at + 42 + 3 * int.from_bytes(data[at + 40 : at + 42]) : 3]
    bits = [(size & 0x7F) + 1 for size in sizes]
    sign = "signed " if any(size & 0x80 for size in sizes) else ""
    of_several = max(bits) > 8 and (len(set(bits)) > 1 or len(bits) == 2)
    palette = re.search(rb"pclr..(.)", data[:at], re.DOTALL)  # its number of channels and their bits, less 1
    if palette and (bits != [8] or {*data[palette.end() : palette.end() + palette[1][0]]} != {7}):
        raise ValueError("it is JPEG 2000 with a palette that is not of 8 bits, which is not read: save it as PNG")
    if sign or of_several or len(bits) > 4 or max(bits) > 16:
        each = " and ".join(map(str, sorted(set(bits))))
        count = "1 channel" if len(bits) == 1 else f"{len(bits)} channels"
        raise ValueError(f"it is JPEG 2000 with {count} of {each} {sign}bits, which is not read: save it as TIFF")
    return bits


def says_no_alpha(data: bytes) -> bool:
    """True if the header of a JP2 file defines its channels, and none as transparency."""
    found = re.search(rb"cdef(..)", data[: data.find(b"\xff\x4f\xff\x51")], re.DOTALL)
    if found is None:
        return False
    entries = data[found.end() : found.end() + 6 * int.from_bytes(found[1])]  # number, kind and colour of each channel
    return not {1, 2} & {*entries[3::6]}  # transparency, which the colours are multiplied by or not


def stretched(pixels: np.ndarray, bits: list[int]) -> np.ndarray:
    """Returns u8[h w c] in 0..255 of numbers of at most 8 bits, which Pillow has shifted to the highest bits."""
    if min(bits) == 8:
        return pixels
    shifts, tops = 8 - np.array(bits, np.uint8), 2.0 ** np.array(bits) - 1
    return np.rint((pixels >> shifts) * 255.0 / tops).astype(np.uint8)
