import io

import numpy as np
import pytest
import tifffile

from flaxcls.data.decode import decode, read_head
from flaxcls.data.picture import head_of
from flaxcls.errors import InputError

RNG = np.random.default_rng(0)


def tiff(pixels, **options):
    """Returns the bytes of a TIFF."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def numbers(bits, channels=1):
    values = RNG.integers(0, 2**bits, (16, 24, channels)).astype(np.uint8 if bits <= 8 else np.uint16)
    return values if channels > 1 else values[..., 0]


def check(data, expected, *, alpha=False, tolerance=0):
    read = decode(data)
    expected = expected.reshape(16, 24, -1)
    assert (read.pixels.shape, read.pixels.dtype, read.alpha) == (expected.shape, expected.dtype, alpha)
    np.testing.assert_allclose(read.pixels.astype(float), expected.astype(float), atol=tolerance)
    assert read_head(data, "x") == head_of(read)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
@pytest.mark.parametrize("bits", range(2, 8))
def test_fewer_than_8_bits_become_0_to_255(bits, photometric):
    pytest.importorskip("imagecodecs")
    values = numbers(bits, 3 if photometric == "rgb" else 1)
    shown = np.rint(values * 255.0 / (2**bits - 1)).astype(np.uint8)
    data = tiff(values, photometric=photometric, bitspersample=bits)
    check(data, 255 - shown if photometric == "miniswhite" else shown)


def test_a_value_that_means_no_data_is_the_one_of_the_file():
    pytest.importorskip("imagecodecs")
    values = numbers(4)
    read = decode(tiff(values, bitspersample=4, photometric="minisblack", extratags=[(42113, "s", 0, "15", True)]))
    np.testing.assert_array_equal(np.isnan(read.pixels[..., 0]), values == 15)


@pytest.mark.parametrize("bits", [8, 16])
def test_colours_of_inks_become_red_green_and_blue(bits):
    top = 2**bits - 1
    inks = numbers(bits, 4)
    light = (top - inks.astype(float)) / top
    colours = np.rint(light[..., :3] * light[..., 3:] * top).astype(inks.dtype)
    check(tiff(inks, photometric="separated"), colours, tolerance=1)
    alpha = numbers(bits)
    data = tiff(np.dstack([inks, alpha]), photometric="separated", extrasamples=["unassalpha"])
    check(data, np.dstack([colours, alpha]), alpha=True, tolerance=1)


def test_a_palette_of_16_bits():
    palette = RNG.integers(0, 2**16, (3, 2**16), dtype=np.uint16)
    values = numbers(16)
    check(tiff(values, photometric="palette", colormap=palette), palette.T[values])


@pytest.mark.parametrize("bits", [8, 16])
def test_where_white_is_0_transparency_is_not(bits):
    values = numbers(bits, 2)
    data = tiff(values, photometric="miniswhite", planarconfig="contig", extrasamples=["unassalpha"])
    check(data, np.dstack([2**bits - 1 - values[..., 0], values[..., 1]]), alpha=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colours_that_are_multiplied_by_transparency_are_divided_by_it(dtype):
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    colours = np.full((16, 24, 3), [0.2, 0.6, 1])
    alpha = np.where(np.arange(24) < 12, 0.5, 1) * np.ones((16, 1))
    stored = np.dstack([colours * alpha[..., None], alpha]) * top
    stored = stored if dtype == np.float32 else np.rint(stored)
    read = decode(tiff(stored.astype(dtype), photometric="rgb", extrasamples=["assocalpha"]))
    np.testing.assert_allclose(read.pixels[..., :3] / top, colours, atol=0.008)
    assert read.alpha


def small_copy_first():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(numbers(8)[:8, :8].copy(), subifds=1, subfiletype=1)
        writer.write(numbers(16))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(numbers(16, 3), photometric="cielab"), "its colours are CIELAB of 16 bits: save it in RGB"),
        (tiff(numbers(16, 3), photometric="ycbcr"), "its colours are YCBCR of 16 bits: save it in RGB"),
        (tiff(np.ones((16, 24), np.complex64)), "its values are .* save them as real numbers"),
        (small_copy_first(), "its first page is a small copy of another"),
    ],
)
def test_what_is_no_grey_and_no_colours_is_refused_by_name(data, words):
    with pytest.raises(InputError, match=f"x is no image that can be read: {words}"):
        read_head(data, "x")
    with pytest.raises(ValueError, match=words):
        decode(data)
