import numpy as np
import pytest

from flaxcls.data.decode import decode, name_errors, read_head, read_picture
from flaxcls.data.files import find_below
from flaxcls.data.picture import head_of
from flaxcls.errors import InputError

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 6, 13
BITS = RNG.integers(0, 2, (HEIGHT, WIDTH))


def numbers(top, channels=1):
    return RNG.integers(0, top + 1, (HEIGHT, WIDTH, channels)).astype(np.uint16 if top > 255 else np.uint8)


def binary(kind, top, values):
    head = b"%s\n# by a camera\n%d %d\n%d\n" % (kind, WIDTH, HEIGHT, top)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def plain(kind, top, values):
    rows = b"\n".join(b" ".join(b"%d" % value for value in row.ravel()) for row in values)
    return b"%s # a comment\n%d %d\n%d\n%s # the end" % (kind, WIDTH, HEIGHT, top, rows)


def pam(tuples, top, values):
    head = b"P7\nWIDTH %d\nHEIGHT %d\n# by hand\nDEPTH %d\nMAXVAL %d\nTUPLTYPE %s\nENDHDR\n"
    head %= WIDTH, HEIGHT, values.shape[2], top, tuples
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def pfm(kind, scale, values):
    head = b"%s\n%d %d\n%g\n" % (kind, WIDTH, HEIGHT, scale)
    return head + values[::-1].astype("<f4" if scale < 0 else ">f4").tobytes()


def check(data, expected, *, alpha=False, note=""):
    read = decode(data)
    np.testing.assert_array_equal(read.pixels, expected.reshape(HEIGHT, WIDTH, -1))
    assert (read.pixels.dtype, read.alpha, read.note) == (expected.dtype, alpha, note)
    assert read_head(data, "x") == head_of(read)


@pytest.mark.parametrize("top", [256, 1023, 4095, 65535])
@pytest.mark.parametrize(("write", "kinds"), [(binary, (b"P5", b"P6")), (plain, (b"P2", b"P3"))])
def test_more_than_8_bits_keep_their_numbers(top, write, kinds):
    for kind, channels in zip(kinds, (1, 3), strict=True):
        values = numbers(top, channels)
        check(write(kind, top, values), values)


@pytest.mark.parametrize("top", [1, 15, 100, 255])
@pytest.mark.parametrize(("write", "kinds"), [(binary, (b"P5", b"P6")), (plain, (b"P2", b"P3"))])
def test_in_8_bits_and_fewer_white_is_255(top, write, kinds):
    for kind, channels in zip(kinds, (1, 3), strict=True):
        values = numbers(top, channels)
        check(write(kind, top, values), np.rint(values * 255.0 / top).astype(np.uint8))


def test_in_a_bitmap_1_is_black():
    black = ((1 - BITS) * 255).astype(np.uint8)
    check(b"P4 %d %d\n" % (WIDTH, HEIGHT) + np.packbits(BITS.astype(np.uint8), axis=1).tobytes(), black)
    check(b"P1 %d %d\n" % (WIDTH, HEIGHT) + b"".join(b"%d" % bit for bit in BITS.ravel()), black)


def test_pam():
    check(pam(b"BLACKANDWHITE", 1, BITS[..., None].astype(np.uint8)), (BITS * 255).astype(np.uint8))
    for tuples, top, channels, alpha in (
        (b"GRAYSCALE_ALPHA", 255, 2, True),
        (b"RGB", 4095, 3, False),
        (b"RGB_ALPHA", 65535, 4, True),
        (b"bands", 1000, 7, False),
    ):
        values = numbers(top, channels)
        check(pam(tuples, top, values), values, alpha=alpha)


def test_floats_of_either_order():
    for kind, channels in ((b"Pf", 1), (b"PF", 3)):
        values = RNG.normal(size=(HEIGHT, WIDTH, channels)).astype(np.float32)
        check(pfm(kind, -1, values), values)
        check(pfm(kind, 1, values), values)
        check(pfm(kind, -2.5, values), values, note="a scale of 2.5, which is not read")


def test_of_several_pictures_the_first_and_that_is_said(tmp_path):
    values = numbers(4095)
    data = binary(b"P5", 4095, values)
    check(data + data, values, note="several pictures, of which the first is read")
    check(data + b"\n", values)
    (tmp_path / "x.pgm").write_bytes(data + data)
    assert read_head(tmp_path / "x.pgm", "x") == head_of(read_picture(tmp_path / "x.pgm"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (binary(b"P5", 4095, numbers(4095))[:-1], "cut off: it has 155 of 156 bytes"),
        (plain(b"P2", 9, numbers(9)[1:]), "cut off: it has 65 of 78 numbers"),
        (plain(b"P2", 100, numbers(100)).replace(b"100\n", b"50\n"), "its header says that 50 is the largest"),
        (b"P5 4 4", "its header is cut off"),
        (b"P5 0 4 255\n", "its header says 0x4 pixels"),
        (b"P5 1 1 70000\n\0\0", "up to 70000"),
        (b"P7\nWIDTH 3\n", "its header has no end"),
    ],
)
def test_what_is_damaged_is_refused(data, words):
    with pytest.raises(InputError, match=f"x is no image that can be read: .*{words}"):
        name_errors("x", lambda: decode(data))


def test_the_limit_of_pixels_holds():
    data = binary(b"P5", 255, numbers(255))
    with pytest.raises(InputError, match="x has 78 pixels, and at most 77 are read"):
        read_head(data, "x", 77)
    assert decode(data, 78).pixels.size == 78


def test_a_folder_finds_them_by_name_or_content(tmp_path):
    for name in ("a.pam", "b"):
        (tmp_path / name).write_bytes(pam(b"RGB", 255, numbers(255, 3)))
    (tmp_path / "c.pfm").write_bytes(pfm(b"Pf", -1, np.ones((HEIGHT, WIDTH), np.float32)))
    assert find_below(tmp_path).images == ["a.pam", "b", "c.pfm"]
