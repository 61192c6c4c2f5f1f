"""The chunks of PNG files: damage in metadata is told from damage in pixels."""

import io
import zlib
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
LARGE = 2**26  # pixels


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
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


def is_plain_png(chunks: list[tuple[bytes, bytes]], most: int) -> bool:
    """True for a whole PNG of 8 bits, grey or in three colours, without metadata but its resolution."""
    head = chunks[0][1] if chunks else b""
    size = int.from_bytes(head[8:12]) * int.from_bytes(head[12:16])
    plain = head[16:18] in (b"\x08\x00", b"\x08\x02") and chunks[-1][0] == b"IEND"
    # for larger images Pillow checks if they are an attempt to fill the memory
    known = {kind for kind, _ in chunks} <= {b"IHDR", b"IDAT", b"IEND", b"pHYs"}
    return plain and known and 0 < size <= min(most, LARGE)


def transparent_grey(data: bytes) -> int | None:
    """Returns the value of the grey that is transparent, in 0..255 for up to 8 bits; None if there is none."""
    for kind, chunk in png_chunks(data):
        if kind == b"tRNS":
            bits = data[24]
            level = int.from_bytes(chunk[8:10]) & (2**bits - 1)
            return level if bits == 16 else level * 255 // (2**bits - 1)
    return None


def without_metadata(data: bytes) -> bytes | None:
    """Returns a PNG without the chunks that decide neither pixels nor orientation; None if the bytes are no PNG."""
    if not data.startswith(PNG):
        return None
    return PNG + b"".join(chunk for kind, chunk in png_chunks(data) if kind in (*PNG_PIXELS, b"eXIf"))


def may_be_turned(source: Path | io.BytesIO) -> bool:
    """True if a PNG has metadata that may hold an orientation, before or after its pixels, which are not read."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source.getbuffer()) as file:
        file.seek(len(PNG))
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4]), head[4:]
            begin = file.read(min(length, 16)) if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
            if kind == b"eXIf" or begin == b"Raw profile type":
                return True
            file.seek(length - len(begin) + 4, io.SEEK_CUR)
    return False
