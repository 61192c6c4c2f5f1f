"""The headers of JPEG files: which are plain, and how deep they are."""

from collections.abc import Iterator

from flaxcls.data.formats.png import LARGE

NO_FRAMES = (0xC4, 0xC8, 0xCC)  # of the markers from 0xC0 to 0xCF


def is_plain_jpeg(data: bytes, most: int) -> bool:
    """True if the bytes begin like a JPEG with three colours and without metadata that could rotate it."""
    for marker, at in _segments(data):
        if marker in (0xC0, 0xC1, 0xC2):  # a frame: its length, bits, height, width, number of colours
            rows, columns = int.from_bytes(data[at + 3 : at + 5]), int.from_bytes(data[at + 5 : at + 7])
            # for larger images Pillow checks if they are an attempt to fill the memory
            return data[at + 2 : at + 8 : 5] == b"\x08\x03" and 0 < rows * columns <= min(most, LARGE)
        if marker == 0xE1:  # EXIF or XMP
            return False
    return False


def bits_of_jpeg(data: bytes) -> int:
    """Returns the number of bits in a channel; 0 if the bytes do not begin like a JPEG."""
    frames = (at for marker, at in _segments(data) if 0xC0 <= marker <= 0xCF and marker not in NO_FRAMES)
    at = next(frames, None)
    return 0 if at is None else data[at + 2]


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields marker and place of each segment of a JPEG that is not cut off, before its first scan."""
    at = 2
    while data[:2] == b"\xff\xd8" and data[at : at + 1] == b"\xff" and len(data) > at + 9:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        yield marker, at + 2
        if length < 2 or marker == 0xDA:
            return
        at += 2 + length
