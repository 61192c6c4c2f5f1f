import io

import numpy as np
import pytest
from PIL import Image

from flaxcls.data import images as images_module
from flaxcls.data.images import Images, box_draws, decode, random_box, read_image, upright_size
from flaxcls.data.resize import fit_image, with_channels
from flaxcls.errors import InputError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]


def saved(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif"])
def test_colours_without_loss(tmp_path, suffix):
    path = saved(tmp_path / f"x{suffix}", COLOURS, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_image(path), COLOURS)


def test_jpeg(tmp_path):
    smooth = np.linspace(0, 255, 64 * 48, dtype=np.uint8).reshape(64, 48)
    path = saved(tmp_path / "x.jpg", np.stack([smooth] * 3, axis=2), quality=95)
    assert np.abs(read_image(path).astype(int) - smooth[..., None]).max() < 8
    assert read_image(saved(tmp_path / "grey.jpg", smooth)).shape == (64, 48, 1)


def jpeg(mode="RGB", **options):
    """Returns the bytes of one that is no multiple of its blocks large."""
    file = io.BytesIO()
    Image.fromarray(COLOURS).resize((61, 47)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def decoded(data):
    """Returns the pixels, or the kind of error."""
    try:
        return decode(data).tolist()
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
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_damaged_jpeg_is_what_pillow_makes_of_it(options, monkeypatch, capfd):
    rng, damaged = np.random.default_rng(0), []
    for _ in range(150):
        data = bytearray(jpeg(**options))
        for _ in range(3):
            data[rng.integers(2, len(data))] = rng.integers(256)
        damaged.append(bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data))
    found = [*map(decoded, damaged)]
    monkeypatch.setattr(images_module, "_is_plain_jpeg", lambda data: False)
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
    np.testing.assert_array_equal(read_image(saved(tmp_path / "grey.png", GREY)), GREY[..., None])
    bits = (GREY > 127).astype(np.uint8) * 255
    np.testing.assert_array_equal(read_image(saved(tmp_path / "bits.png", bits, "1")), bits[..., None])
    few = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "palette.png", few, "P")), few)


def test_transparency_is_laid_on_white(tmp_path):
    half = np.dstack([COLOURS, np.full((6, 9), 0, np.uint8)])
    half[:3, :, 3] = 255
    read = read_image(saved(tmp_path / "x.png", half))
    np.testing.assert_array_equal(read, half)
    laid = with_channels(read, 3)
    np.testing.assert_array_equal(laid[:3], COLOURS[:3])
    assert (laid[3:] == 255).all()


def test_cmyk(tmp_path):
    pure = np.zeros((8, 8, 4), np.uint8)
    pure[..., 1:3] = 255  # magenta and yellow make red
    path = tmp_path / "x.jpg"
    Image.fromarray(pure, "CMYK").save(path, quality=100)
    assert np.abs(read_image(path).astype(int) - [255, 0, 0]).max() < 6


def test_sixteen_bits(tmp_path):
    deep = np.array([[0, 257, 65535]], np.uint16)
    path = saved(tmp_path / "x.png", deep)
    np.testing.assert_array_equal(read_image(path)[..., 0], [[0, 1, 255]])
    dark = saved(tmp_path / "dark.png", np.array([[0, 100, 255]], np.uint16))  # one bright pixel decides of no other
    assert not read_image(dark).any()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.array([[0, 70000]], np.int32), "grey values are 0 to 70000, but must be in 0 to 65535"),
        (np.array([[-1, 5]], np.int32), "grey values are -1 to 5, but must be in 0 to 65535"),
        (np.array([[0.5, 1]], np.float32), "floating-point numbers"),
    ],
)
def test_values_that_cannot_be_eight_bits(tmp_path, values, problem):
    Image.fromarray(values).save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match=problem):
        read_image(tmp_path / "x.tiff")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_it_stands_upright_as_exif_says(tmp_path, suffix):
    upright = np.zeros((32, 16, 3), np.uint8)
    upright[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    path = saved(tmp_path / f"x{suffix}", np.rot90(upright).copy(), exif=exif, quality=100)
    read = read_image(path)
    assert read.shape == upright.shape
    assert read[2, 8].min() > 200
    assert read[20, 8].max() < 50
    assert upright_size(path, "x") == (32, 16)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_picture(tmp_path, suffix):
    first, second = (np.full((8, 8, 3), value, np.uint8) for value in (0, 255))
    frames = [Image.fromarray(second)]
    Image.fromarray(first).save(tmp_path / f"x{suffix}", save_all=True, append_images=frames, duration=50)
    assert read_image(tmp_path / f"x{suffix}").max() == 0


def test_what_is_no_image(tmp_path):
    whole = saved(tmp_path / "whole.jpg", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).read_bytes()
    for name, data in (("text.jpg", b"hello"), ("empty.png", b""), ("cut.jpg", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name} is no image that can be read"):
            read_image(tmp_path / name)


def test_the_centre_is_kept_in_its_proportions():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 200  # the square in the middle
    image[:10, 20:40, 0] = 100
    fitted = fit_image(image, (10, 10))
    assert (fitted[:5] == [100, 200, 200]).all()
    assert (fitted[5:] == 200).all()
    np.testing.assert_array_equal(fit_image(image, (20, 60)), image)
    tall = fit_image(image.transpose(1, 0, 2), (10, 10))
    np.testing.assert_array_equal(tall, fitted.transpose(1, 0, 2))
    assert fit_image(image, (40, 40)).shape == (40, 40, 3)


@pytest.fixture
def several():
    sizes = [(20, 30), (31, 17), (24, 24), (50, 40)]
    return Images([RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes], (12, 12, 3))


def test_they_are_indexed_like_an_array(several):
    assert several.shape == (4, 12, 12, 3)
    assert len(several) == 4
    whole = several[:]
    assert (whole.shape, whole.dtype) == ((4, 12, 12, 3), np.uint8)
    np.testing.assert_array_equal(several[1], whole[1])
    np.testing.assert_array_equal(several[np.array([3, 0])], whole[[3, 0]])
    np.testing.assert_array_equal(several[1:3], whole[1:3])
    np.testing.assert_array_equal(several.take(np.array([2, 1]))[:], whole[[2, 1]])
    assert several[4:].shape == (0, 12, 12, 3)


def test_random_crops_depend_on_seed_and_position_alone(several):
    indices, positions = np.array([0, 1, 2, 3]), np.array([10, 11, 12, 13])
    crops = several.random_crops(indices, positions, seed=5, least_area=0.3)
    again = several.random_crops(indices[::-1], positions[::-1], seed=5, least_area=0.3)
    np.testing.assert_array_equal(crops, again[::-1])
    for other in ({"seed": 6}, {"positions": positions + 1}):
        changed = several.random_crops(
            **{"indices": indices, "positions": positions, "seed": 5, "least_area": 0.3, **other}
        )
        assert (changed != crops).any()


def test_random_boxes_lie_within_the_image_and_have_the_areas_that_are_asked_for():
    size = (60, 80)
    boxes = np.array([random_box(3, position, size, 0.25) for position in range(4000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 60).all()
    assert (left + width <= 80).all()
    areas = height * width / 4800
    assert areas.min() > 0.24
    assert 0.5 < areas.mean() < 0.625  # uniform in 0.25..1, less those that do not fit
    assert 0.72 < (width / height).min() < 0.8
    assert 1.25 < (width / height).max() < 1.38
    assert abs((top / (60 - height).clip(1)).mean() - 0.5) < 0.03
    assert random_box(0, 0, (10, 1000), 1.0) == (0, 493, 10, 13)  # none fits: the largest of an allowed shape


@pytest.mark.parametrize("seed", [0, 3, 2**63 + 5])
def test_what_decides_a_part_is_a_generator_of_its_own(seed):
    positions = np.array([7, 0, 2**40])
    for position, draws in zip(positions, box_draws(seed, positions), strict=True):
        bits = np.random.Philox(key=np.array([seed, position], np.uint64), counter=[0, 0, 0, 1])
        np.testing.assert_array_equal(draws, (bits.random_raw(22) >> np.uint64(11)) * 2.0**-53)
