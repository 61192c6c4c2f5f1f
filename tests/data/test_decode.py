import io
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from flaxcls.data import decode as decode_module
from flaxcls.data.decode import decode, read_head, read_picture
from flaxcls.data.picture import head_of
from flaxcls.data.resize import with_channels
from flaxcls.errors import InputError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]


def pixels_of(path):
    return read_picture(path).pixels


def saved(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif"])
def test_colours_without_loss(tmp_path, suffix):
    path = saved(tmp_path / f"x{suffix}", COLOURS, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(pixels_of(path), COLOURS)


def test_jpeg(tmp_path):
    smooth = np.linspace(0, 255, 64 * 48, dtype=np.uint8).reshape(64, 48)
    path = saved(tmp_path / "x.jpg", np.stack([smooth] * 3, axis=2), quality=95)
    assert np.abs(pixels_of(path).astype(int) - smooth[..., None]).max() < 8
    assert pixels_of(saved(tmp_path / "grey.jpg", smooth)).shape == (64, 48, 1)


def jpeg(mode="RGB", **options):
    """Returns the bytes of one that is no multiple of its blocks large."""
    file = io.BytesIO()
    Image.fromarray(COLOURS).resize((61, 47)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def decoded(data):
    """Returns the pixels, or the kind of error."""
    try:
        return decode(data).pixels.tolist()
    except Exception as error:
        return type(error)


PLAIN = [
    {},
    {"progressive": True},
    {"subsampling": "4:4:4"},
    {"subsampling": "4:2:2"},
    {"keep_rgb": True},
    {"restart_marker_rows": 1},
    {"icc_profile": b"profile" * 100, "comment": b"comment"},
]


@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_a_plain_jpeg_has_the_pixels_that_pillow_reads(options, monkeypatch):
    data = jpeg(**options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image)
    monkeypatch.setattr(Image, "open", None)
    np.testing.assert_array_equal(decode(data).pixels, expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_damaged_jpeg_is_what_pillow_makes_of_it(options, monkeypatch, capfd):
    rng, damaged = np.random.default_rng(0), []
    for _ in range(150):
        data = bytearray(jpeg(**options))
        for _ in range(3):
            data[rng.integers(2, len(data))] = rng.integers(256)
        damaged.append(bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data))
    found = [*map(decoded, damaged)]
    monkeypatch.setattr(decode_module, "is_plain_jpeg", lambda data, most: False)
    assert found == [*map(decoded, damaged)]
    assert sum(isinstance(result, list) for result in found) > 20
    assert sum(isinstance(result, type) for result in found) > 20
    assert capfd.readouterr().err == ""


def test_a_jpeg_so_large_that_it_may_be_meant_to_fill_the_memory_is_left_to_pillow():
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xdc" * 2
    with pytest.raises(Image.DecompressionBombError):
        decode(bytes(data))


def test_grey_palette_and_one_bit(tmp_path):
    np.testing.assert_array_equal(pixels_of(saved(tmp_path / "grey.png", GREY)), GREY[..., None])
    bits = (GREY > 127).astype(np.uint8) * 255
    np.testing.assert_array_equal(pixels_of(saved(tmp_path / "bits.png", bits, "1")), bits[..., None])
    few = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_array_equal(pixels_of(saved(tmp_path / "palette.png", few, "P")), few)


def test_transparency_is_laid_on_white(tmp_path):
    half = np.dstack([COLOURS, np.full((6, 9), 0, np.uint8)])
    half[:3, :, 3] = 255
    read = pixels_of(saved(tmp_path / "x.png", half))
    np.testing.assert_array_equal(read, half)
    laid = with_channels(read, 3)
    np.testing.assert_array_equal(laid[:3], COLOURS[:3])
    assert (laid[3:] == 255).all()


def test_cmyk(tmp_path):
    pure = np.zeros((8, 8, 4), np.uint8)
    pure[..., 1:3] = 255  # magenta and yellow make red
    path = tmp_path / "x.jpg"
    Image.fromarray(pure, "CMYK").save(path, quality=100)
    assert np.abs(pixels_of(path).astype(int) - [255, 0, 0]).max() < 6
    for data in (path.read_bytes(), tiff(pure, photometric="separated"), tiff(pure * np.uint16(257), photometric=5)):
        assert "(CMYK), which are read as RGB" in decode(data).note
        assert "(CMYK), which are read as RGB" in read_head(data, "x").note


def tiff(pixels, **options):
    """Returns the bytes of a TIFF."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def coded(suffix, pixels):
    """Returns the bytes that OpenCV writes for pixels whose channels are red, green, blue and alpha."""
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    return cv2.imencode(suffix, pixels[..., order[pixels.shape[2]]] if pixels.ndim == 3 else pixels)[1].tobytes()


GREY16 = RNG.integers(0, 2**16, (64, 72), dtype=np.uint16)
RGB16 = RNG.integers(0, 2**16, (64, 72, 3), dtype=np.uint16)
FOUR16 = RNG.integers(0, 2**16, (64, 72, 4), dtype=np.uint16)
SIGNED = (GREY16.astype(np.int64) - 2**15).astype(np.int16)
DEEP = {
    "png": (coded(".png", GREY16), GREY16, False),
    "png, colours": (coded(".png", RGB16), RGB16, False),
    "png, alpha": (coded(".png", FOUR16), FOUR16, True),
    "pgm": (coded(".pgm", GREY16), GREY16, False),
    "ppm": (coded(".ppm", RGB16), RGB16, False),
    "tiff": (tiff(GREY16), GREY16, False),
    "tiff, big-endian": (tiff(GREY16, byteorder=">"), GREY16, False),
    "tiff, LZW": (tiff(GREY16, compression="lzw"), GREY16, False),
    "tiff, 12 bits": (tiff(GREY16 >> 4, bitspersample=12), GREY16 >> 4, False),
    "tiff, white is 0": (tiff(GREY16, photometric="miniswhite"), 65535 - GREY16, False),
    "tiff, colours": (tiff(RGB16, photometric="rgb"), RGB16, False),
    "tiff, alpha": (tiff(FOUR16, photometric="rgb", extrasamples=["unassalpha"]), FOUR16, True),
    "tiff, near infrared": (tiff(FOUR16, photometric="rgb", extrasamples=["unspecified"]), FOUR16, False),
    "tiff, 2 bands": (
        tiff(FOUR16[..., :2].copy(), photometric="minisblack", planarconfig="contig"),
        FOUR16[..., :2],
        False,
    ),
    "tiff, planes": (
        tiff(np.moveaxis(FOUR16, 2, 0).copy(), photometric="minisblack", planarconfig="separate"),
        FOUR16,
        False,
    ),
    "tiff, int8": (tiff(SIGNED.astype(np.int8)), SIGNED.astype(np.int8), False),
    "tiff, int16": (tiff(SIGNED), SIGNED, False),
    "tiff, uint32": (tiff(GREY16 * np.uint32(60000)), GREY16 * np.uint32(60000), False),
    "tiff, float16": (tiff((GREY16 / 65535).astype(np.float16)), (GREY16 / 65535).astype(np.float16), False),
    "tiff, float32": (tiff(GREY16 / np.float32(7)), GREY16 / np.float32(7), False),
    "tiff, float64": (tiff(GREY16 / 7), GREY16 / 7, False),
}


@pytest.mark.parametrize("kind", DEEP)
def test_every_depth_and_every_channel_is_kept_and_the_header_says_the_same(kind):
    data, expected, alpha = DEEP[kind]
    read = decode(data)
    expected = expected.astype(np.float32) if expected.dtype.kind == "f" else expected
    np.testing.assert_array_equal(read.pixels, expected.reshape(64, 72, -1))
    assert read.pixels.dtype == expected.dtype
    assert read.alpha == alpha
    assert read_head(data, "x") == head_of(read)


def test_values_that_mean_no_data_are_nan():
    values = np.array([[1.5, -9999, 3]], np.float32)
    read = decode(tiff(values, extratags=[(42113, "s", 0, "-9999", True)])).pixels[..., 0]
    np.testing.assert_array_equal(read, [[1.5, np.nan, 3]])
    whole = tiff(np.array([[0, 65535, 3]], np.uint16), extratags=[(42113, "s", 0, "65535", True)])
    np.testing.assert_array_equal(decode(whole).pixels[..., 0], [[0, np.nan, 3]])
    assert read_head(whole, "x") == head_of(decode(whole))
    zero = tiff(np.array([[0, 2.5]], np.float32), extratags=[(42113, "s", 0, "0", True)])
    np.testing.assert_array_equal(decode(zero).pixels[..., 0], [[np.nan, 2.5]])


def test_of_a_stack_the_first_page_and_that_is_said():
    stack = tiff(np.stack([GREY16, GREY16 + 1]), photometric="minisblack")
    np.testing.assert_array_equal(decode(stack).pixels[..., 0], GREY16)
    floats = tiff(np.stack([RGB16, RGB16]) / 2, photometric="rgb")
    for data in (stack, floats):
        assert read_head(data, "x").note == "several pictures, of which the first is read"


TURNED = [
    lambda a: a,
    lambda a: a[:, ::-1],
    lambda a: a[::-1, ::-1],
    lambda a: a[::-1],
    lambda a: a.swapaxes(0, 1),
    lambda a: np.rot90(a),
    lambda a: a[::-1, ::-1].swapaxes(0, 1),
    lambda a: np.rot90(a, -1),
]
LOSSLESS = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("kind", [*LOSSLESS, "TIFF of 16 bits"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_stands_upright_as_its_metadata_says(kind, orientation):
    upright = np.zeros((32, 16, 3), np.uint8)
    upright[:8] = 255
    upright[:, :8, 2] = 200
    stored, scale = np.ascontiguousarray(TURNED[orientation - 1](upright)), 1
    if kind in LOSSLESS:
        exif, file = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        Image.fromarray(stored).save(file, kind, exif=exif, **LOSSLESS[kind])
        data = file.getvalue()
    else:
        scale = 257
        data = tiff(stored * np.uint16(scale), photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    read = decode(data)
    assert np.abs(read.pixels.astype(int) / scale - upright).max() < 30
    assert read_head(data, "x").size == upright.shape[:2]


@pytest.mark.parametrize("kind", ["eXIf", "text of ImageMagick"])
@pytest.mark.parametrize("place", ["before the pixels", "after them"])
def test_a_png_says_its_orientation_before_or_after_the_pixels(tmp_path, kind, place):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes()
    hexadecimal = "\n".join(["", "exif", f"{len(data):8}", data.hex()]).encode()
    found = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexadecimal))
    found = chunk(b"eXIf", data.removeprefix(b"Exif\0\0")) if kind == "eXIf" else found
    plain = saved(tmp_path / "x.png", RNG.integers(0, 256, (5, 9, 3), dtype=np.uint8)).read_bytes()
    at = 33 if place == "before the pixels" else len(plain) - 12
    (tmp_path / "x.png").write_bytes(plain[:at] + found + plain[at:])
    assert read_head(tmp_path / "x.png", "x").size == (9, 5)
    assert read_picture(tmp_path / "x.png").pixels.shape == (9, 5, 3)


def chunk(kind, data):
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


@pytest.mark.parametrize(
    "damage",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**24))),
        chunk(b"tEXt", b"Comment\0x")[:-4] + b"oops",
        chunk(b"iCCP", b"profile\0\0" + b"no profile"),
        chunk(b"eXIf", b"II*\0" + b"\xff" * 20),
    ],
    ids=["much text", "checksum of a text", "profile", "EXIF"],
)
@pytest.mark.parametrize("place", ["before the pixels", "after them"])
def test_damage_in_the_metadata_of_a_png_is_no_damage(tmp_path, damage, place):
    data = saved(tmp_path / "x.png", COLOURS).read_bytes()
    at = data.index(b"IDAT" if place == "before the pixels" else b"IEND") - 4
    (tmp_path / "x.png").write_bytes(data[:at] + damage + data[at:])
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png"), COLOURS)
    assert read_head(tmp_path / "x.png", "x").size == (6, 9)


def test_damage_in_the_metadata_of_a_jpeg_is_no_damage():
    data = jpeg()
    damaged = data[:2] + b"\xff\xe1\x00\x16Exif\0\0II*\0" + b"\xff" * 10 + data[2:]
    np.testing.assert_array_equal(decode(damaged).pixels, decode(data).pixels)
    assert read_head(damaged, "x") == read_head(data, "x")


def test_damage_in_the_pixels_is_damage(tmp_path):
    data = bytearray(saved(tmp_path / "x.png", COLOURS).read_bytes())
    data[data.index(b"IDAT") + 20] ^= 255
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(InputError, match="the checksum of its IDAT is wrong"):
        pixels_of(tmp_path / "x.png")


def test_heic_of_a_phone(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(np.full((32, 16, 3), 200, np.uint8))).save(file, quality=100)
    assert np.abs(decode(file.getvalue()).pixels.astype(int) - 200).max() < 5
    assert read_head(file.getvalue(), "x").size == (32, 16)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"photo.heic is no image .* it is HEIC.*pip install pillow-heif .*images"):
        read_head(file.getvalue(), "photo.heic")


def test_a_large_picture_says_its_size_the_limit_and_the_option(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    plan = tmp_path / "plan.png"
    Image.new("1", (14000, 14300)).save(plan)
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"plan.png has 200,200,000 pixels.*178,956,970.*--data.max-pixels 200200000"
        ):
            read_head(plan, str(plan))
        assert read_head(plan, "x", 200_200_000).size == (14300, 14000)  # which changes nothing for the next


def test_a_process_that_has_lifted_pillows_limit_keeps_it_lifted(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_head(saved(tmp_path / "x.png", COLOURS), "x", 10**9).size == (6, 9)
    assert Image.MAX_IMAGE_PIXELS is None


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff of 5 bands", "webp"])
def test_every_format_keeps_the_limit(tmp_path, kind):
    bands = np.zeros((6, 9, 5), np.uint8)
    data = {
        "png": lambda: saved(tmp_path / "x.png", COLOURS).read_bytes(),
        "jpeg": jpeg,
        "tiff of 5 bands": lambda: tiff(bands, photometric="minisblack", planarconfig="contig"),
        "webp": lambda: saved(tmp_path / "x.webp", COLOURS).read_bytes(),
    }[kind]()
    with pytest.raises(InputError, match=r"x has .* pixels, and at most 50 are read"):
        read_head(data, "x", 50)
    (tmp_path / "y").write_bytes(data)
    with pytest.raises(InputError, match=r"y has .* pixels, and at most 50 are read"):
        read_picture(tmp_path / "y", 50)
    assert read_picture(tmp_path / "y").pixels.size


@pytest.mark.parametrize("compression", ["lerc", "jpegxl", "jpeg2000"])
def test_a_tiff_that_pillow_does_not_know_is_read_by_tifffile(compression):
    pytest.importorskip("imagecodecs")
    data = tiff(
        COLOURS,
        photometric="rgb",
        compression=compression,
        compressionargs={"lossless": True} if compression == "jpegxl" else None,
    )
    read = decode(data)
    assert read_head(data, "x") == head_of(read)
    np.testing.assert_allclose(read.pixels, COLOURS, atol=60 if compression == "jpeg2000" else 0)


def test_sixteen_bits_with_a_transparent_colour_have_four_channels():
    data = coded(".png", RGB16)
    at = data.index(b"IDAT") - 4
    data = data[:at] + chunk(b"tRNS", bytes(6)) + data[at:]
    assert read_head(data, "x") == head_of(decode(data))
    assert decode(data).alpha


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_picture(tmp_path, suffix):
    first, second = (np.full((8, 8, 3), value, np.uint8) for value in (0, 255))
    frames = [Image.fromarray(second)]
    Image.fromarray(first).save(tmp_path / f"x{suffix}", save_all=True, append_images=frames, duration=50)
    assert pixels_of(tmp_path / f"x{suffix}").max() == 0


def test_what_is_no_image(tmp_path):
    whole = saved(tmp_path / "whole.jpg", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).read_bytes()
    for name, data in (("text.jpg", b"hello"), ("empty.png", b""), ("cut.jpg", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name} is no image that can be read"):
            pixels_of(tmp_path / name)
