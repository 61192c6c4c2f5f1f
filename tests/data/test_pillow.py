import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from flaxcls.data.decode import decode, read_head
from flaxcls.data.picture import head_of
from flaxcls.errors import InputError

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 12, 16
FOUR = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
BGRA = FOUR[..., [2, 1, 0, 3]]
SEVERAL = "several pictures, of which the first is read"


def check(data, expected, *, alpha=False, note=""):
    read = decode(data)
    np.testing.assert_array_equal(read.pixels, expected.reshape(HEIGHT, WIDTH, -1))
    assert (read.pixels.dtype, read.alpha, read.note) == (expected.dtype, alpha, note)
    assert read_head(data, "x") == head_of(read)


def chunk(kind, data):
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def png(rows, bits, colours, transparent=None):
    """Returns the bytes of a PNG of these rows; colours: the kind in its header."""
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colours, 0, 0, 0)
    level = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + level + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey(bits):
    levels = (
        RNG.integers(0, 2, (HEIGHT, WIDTH)) * (2**bits - 2) + 1 if bits > 1 else RNG.integers(0, 2, (HEIGHT, WIDTH))
    )
    unpacked = (levels[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)
    data = png(np.packbits(unpacked.reshape(HEIGHT, -1), axis=1), bits, 0, transparent=1)
    dtype, top = (np.uint16, 65535) if bits == 16 else (np.uint8, 255)
    shown = levels if bits == 16 else levels * 255 // (2**bits - 1)
    check(data, np.dstack([shown, np.where(levels == 1, 0, top)]).astype(dtype), alpha=True)


def test_grey_of_16_bits_with_transparency_has_two_channels():
    values = RNG.integers(0, 2**16, (HEIGHT, WIDTH, 2), dtype=np.uint16)
    check(png(values.astype(">u2"), 16, 4), values, alpha=True)


def bmp(bits, pixels, *, palette=b"", colours=0, masks=()):
    """Returns the bytes of a BMP; masks: of red, green, blue and transparency."""
    length = 56 if masks else 40
    head = struct.pack("<IiiHHIIiiII", length, WIDTH, HEIGHT, 1, bits, 3 if masks else 0, 0, 0, 0, colours, 0)
    head += struct.pack(f"<{len(masks)}I", *masks)
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + pixels.nbytes, 0, 0, start) + head + palette + pixels[::-1].tobytes()


def test_a_bmp_with_transparency():
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    check(bmp(32, BGRA, masks=masks), FOUR, alpha=True)
    check(bmp(32, BGRA), FOUR[..., :3])  # the fourth byte is unused
    words = RNG.integers(0, 2**15, (HEIGHT, WIDTH), dtype=np.uint16)
    note = "a bit of transparency, which is not read"
    assert decode(bmp(16, words, masks=(0x7C00, 0x3E0, 0x1F, 0x8000))).note == note
    assert decode(bmp(16, words, masks=(0x7C00, 0x3E0, 0x1F, 0))).note == ""


def test_a_bmp_of_few_greys():
    indices = RNG.integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8)
    two = b"\0\0\0\0\xff\xff\xff\0"
    check(bmp(8, indices, palette=two, colours=2), indices * 255)  # as tools write masks
    check(bmp(1, np.packbits(np.pad(indices, ((0, 0), (0, 16))), axis=1), palette=two), indices * 255)
    dark = RNG.integers(0, 16, (HEIGHT, WIDTH), dtype=np.uint8)
    sixteen = b"".join(bytes([level] * 3 + [0]) for level in range(16))
    check(bmp(4, dark[:, ::2] << 4 | dark[:, 1::2], palette=sixteen), dark)


def tga(flags):
    head = struct.pack("<BBB5xHHHHBB", 0, 0, 2, 0, 0, WIDTH, HEIGHT, 32, flags | 0x20)
    return head + BGRA.tobytes()


def test_the_fourth_channel_of_a_tga_is_transparency_if_it_says_so(tmp_path):
    check(tga(8), FOUR, alpha=True)
    check(tga(0), FOUR[..., :3], note="a fourth channel that is not said to be transparency, which is not read")


def sgi(values):
    """Returns the bytes of an SGI, whose channels and rows from below follow each other."""
    head = struct.pack(">HBBHHHHII", 474, 0, values.itemsize, 3, WIDTH, HEIGHT, 3, 0, np.iinfo(values.dtype).max)
    return head.ljust(512, b"\0") + np.moveaxis(values[::-1], 2, 0).astype(values.dtype.newbyteorder(">")).tobytes()


def test_of_an_sgi_of_16_bits_8_are_read_and_that_is_said():
    values = RNG.integers(0, 2**16, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    check(sgi(values), (values >> 8).astype(np.uint8), note="16 bits, of which 8 are read")
    check(sgi(FOUR[..., :3]), FOUR[..., :3])


def dds(flags, *, code=b"\0" * 4, bits=0, masks=(0, 0, 0, 0), more=b"", sides=0):
    head = struct.pack("<7I44x", 124, 0x1007, HEIGHT, WIDTH, 0, 0, 0)
    kind = struct.pack("<II4s5I", 32, flags, code, bits, *masks)
    return b"DDS " + head + kind + struct.pack("<5I", 0x1000, sides, 0, 0, 0) + more + bytes(4 * HEIGHT * WIDTH)


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (dds(0x41, bits=32, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000)), ""),
        (dds(0x41, bits=32, masks=(0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)), "10 bits, of which 8 are read"),
        (dds(4, code=b"DX10", more=struct.pack("<5I", 95, 3, 0, 1, 0)), "16 bits, of which 8 are read"),
        (dds(4, code=b"DXT1", sides=0xFE00), SEVERAL),
    ],
    ids=["8 bits", "10 bits", "floats", "cube"],
)
def test_what_of_a_dds_is_not_read_is_said(data, note):
    assert decode(data).note == note
    assert read_head(data, "x") == head_of(decode(data))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_of_several_pictures_the_first_and_that_is_said(kind):
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), value, np.uint8)) for value in (0, 255, 0)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    assert decode(file.getvalue()).note == SEVERAL
    assert read_head(file.getvalue(), "x") == head_of(decode(file.getvalue()))


def test_of_the_sizes_of_an_icon_the_largest_and_that_is_said():
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (32, 32, 4), dtype=np.uint8)).save(file, "ICO", sizes=[(16, 16), (32, 32)])
    read = decode(file.getvalue())
    assert (read.note, read.pixels.shape) == ("several pictures, of which one of the largest is read", (32, 32, 4))
    assert read_head(file.getvalue(), "x") == head_of(read)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_of_an_avif_of_more_bits_8_are_read_and_that_is_said(bits):
    imagecodecs = pytest.importorskip("imagecodecs")
    picture = np.full((HEIGHT, WIDTH, 3), 2 ** (bits - 1), np.uint8 if bits == 8 else np.uint16)
    data = imagecodecs.avif_encode(picture, level=100, bitspersample=bits)
    for mended in (data, data.replace(b"pixi", b"free")):  # not all encoders write that box
        read = decode(mended)
        assert read.note == ("" if bits == 8 else f"{bits} bits, of which 8 are read")
        assert read_head(mended, "x") == head_of(read)
    both = imagecodecs.avif_encode(np.stack([picture, picture]), level=100, bitspersample=bits)
    assert decode(both).note == ("" if bits == 8 else f"{bits} bits, of which 8 are read, and ") + SEVERAL


def heic(pixels, mode):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.encode(mode, pixels.shape[1::-1], pixels.tobytes(), file, quality=-1)
    return file.getvalue()


def test_heic_of_10_bits():
    colours = heic(np.full((64, 64, 3), 2**15, np.uint16), "RGB;16")
    assert decode(colours).note == "10 bits, of which 8 are read"
    grey = heic(np.full((64, 64), 2**15, np.uint16), "L;16")
    read = decode(grey)  # which keeps its numbers
    assert (read.note, read.pixels.dtype, read.pixels.max()) == ("", np.uint16, 2**9)
    for data in (colours, grey):
        assert read_head(data, "x") == head_of(decode(data))


@pytest.mark.parametrize("bits", [12, 16])
def test_a_jpeg_of_more_than_8_bits_is_refused_by_name(bits):
    imagecodecs = pytest.importorskip("imagecodecs")
    grey = RNG.integers(0, 2**bits, (HEIGHT, WIDTH)).astype(np.uint16)
    data = imagecodecs.jpeg8_encode(grey, bitspersample=12) if bits == 12 else imagecodecs.ljpeg_encode(grey)
    with pytest.raises(
        InputError, match=f"it is a JPEG of {bits} bits, but only those of 8 are read: save it as PNG or TIFF"
    ):
        read_head(data, "x")
