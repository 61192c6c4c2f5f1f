import struct

import numpy as np
import pytest

from flaxcls.data.decode import decode, read_head
from flaxcls.data.picture import head_of
from flaxcls.errors import InputError

imagecodecs = pytest.importorskip("imagecodecs")
RNG = np.random.default_rng(0)


def jpeg2000(values, bits, kind="jp2"):
    """Returns the bytes of a JPEG 2000 with these numbers, exactly."""
    return imagecodecs.jpeg2k_encode(
        values, bitspersample=bits, codecformat=kind, reversible=True, level=0, mct=False, resolutions=2
    )


def numbers(bits, channels):
    values = RNG.integers(0, 2**bits, (20, 31, channels)).astype(np.uint8 if bits <= 8 else np.uint16)
    return values if channels > 1 else values[..., 0]


@pytest.mark.parametrize("kind", ["jp2", "j2k"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [1, 4, 8, 10, 12, 16])
def test_every_depth_keeps_its_numbers_and_fewer_than_8_bits_become_0_to_255(bits, channels, kind):
    values = numbers(bits, channels)
    data = jpeg2000(values, bits, kind)
    expected = np.rint(values * 255.0 / (2**bits - 1)).astype(np.uint8) if bits < 8 else values
    read = decode(data)
    np.testing.assert_array_equal(read.pixels, expected.reshape(20, 31, channels))
    assert read.pixels.dtype == expected.dtype
    assert read_head(data, "x") == head_of(read)


def box(kind, data):
    return struct.pack(">I4s", 8 + len(data), kind) + data


def with_boxes(data, *boxes):
    """Returns a JP2 file with further boxes in its header."""
    at = data.index(b"jp2h") - 4
    length = int.from_bytes(data[at : at + 4])
    more = b"".join(boxes)
    return data[:at] + struct.pack(">I", length + len(more)) + data[at + 4 : at + length] + more + data[at + length :]


def test_the_header_says_if_the_fourth_channel_is_transparency():
    data = jpeg2000(numbers(8, 4), 8)
    for kind, alpha in ((0, False), (1, True), (2, True), (65535, False)):
        channels = b"".join(struct.pack(">3H", index, kind if index == 3 else 0, index) for index in range(4))
        read = decode(with_boxes(data, box(b"cdef", b"\0\4" + channels)))
        assert (read.alpha, read.pixels.shape[2]) == (alpha, 4)


def test_a_long_header_hides_no_depth():
    values = numbers(12, 3)
    data = with_boxes(jpeg2000(values, 12), box(b"uuid", bytes(20_000)))
    assert read_head(data, "x") == head_of(decode(data))


def with_palette(indices, bits, palette):
    count = struct.pack(">HB", *palette.shape) + bytes([7] * palette.shape[1]) + palette.tobytes()
    return with_boxes(jpeg2000(indices, bits), box(b"pclr", count), box(b"cmap", b"\0\0\1\0\0\0\1\1\0\0\1\2"))


def test_a_palette():
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    indices = numbers(8, 1)
    data = with_palette(indices, 8, palette).replace(b"\0\0\0\x11", b"\0\0\0\x10", 1)  # its colours are RGB
    np.testing.assert_array_equal(decode(data).pixels, palette[indices])
    with pytest.raises(InputError, match=r"x is no image.* a palette that is not of 8 bits"):
        read_head(with_palette(numbers(4, 1), 4, palette[:16]), "x")


@pytest.mark.parametrize(
    ("values", "bits", "words"),
    [
        (numbers(8, 1).view(np.int8), 8, "1 channel of 8 signed bits"),
        (numbers(16, 3).view(np.int16), 16, "3 channels of 16 signed bits"),
        (numbers(12, 2), 12, "2 channels of 12 bits"),
        (numbers(8, 5), 8, "5 channels of 8 bits"),
        (numbers(16, 1).astype(np.uint32), 20, "1 channel of 20 bits"),
    ],
)
def test_what_would_lose_something_is_refused_by_name(values, bits, words, capfd):
    data = jpeg2000(values, bits)
    with pytest.raises(InputError, match=f"JPEG 2000 with {words}, which is not read: save it as TIFF"):
        read_head(data, "x")
    with pytest.raises(ValueError, match=words):
        decode(data)
    assert capfd.readouterr().err == ""
