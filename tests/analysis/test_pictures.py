import numpy as np
import pytest
from PIL import Image

from flaxcls.analysis.pictures import (
    beside,
    enlarged,
    filters_picture,
    in_colours,
    maps_picture,
    overlay,
    strength,
    tiled,
    write_png,
)
from flaxcls.data.decode import read_picture


def test_files_come_back_as_they_were_written(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, picture)
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "grey.png").pixels, picture[..., :1])


@pytest.mark.parametrize(("shape", "expected"), [((8, 8), (224, 224)), ((32, 20), (224, 140)), ((300, 9), (300, 9))])
def test_pictures_are_enlarged_by_whole_factors(shape, expected):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    large = enlarged(picture)
    assert large.shape == (*expected, 3)
    factor = expected[0] // shape[0]
    np.testing.assert_array_equal(large[factor // 2 :: factor, factor // 2 :: factor], picture)


def test_strength():
    gradients = np.zeros((10, 10, 2))
    gradients[0, 0] = [3, -1]
    gradients[:, 5] = [-1, 1]
    heat = strength(gradients)
    assert heat[0, 0] == 1
    assert heat[3, 5] > 0.5
    assert heat[1, 1] == 0
    np.testing.assert_allclose(strength(np.array([[-4.0, 1], [2, 0]])), [[0, 0.5], [1, 0]])
    for nothing in (np.zeros((3, 3)), np.zeros((3, 3, 1)), -np.ones((3, 3))):
        np.testing.assert_array_equal(strength(nothing), np.zeros((3, 3)))
    single = np.zeros((20, 20, 1))
    single[2, 3] = 7
    assert strength(single)[2, 3] == 1


def test_heat_brightens_and_the_image_shines_through():
    image = np.zeros((2, 2, 3), np.uint8)
    image[1] = 255
    heat = np.array([[0, 1], [0, 1]], np.float32)
    picture = overlay(image, heat).astype(int).sum(axis=2)
    assert picture[0, 0] < picture[1, 0] < picture[0, 1] < picture[1, 1]
    red, _, blue = overlay(image, np.full((2, 2), 0.6, np.float32))[0, 0].astype(int)
    assert red > blue  # OpenCV's order of colours is the reverse
    assert beside(image[..., :1], heat).shape == (224, 3 * 224 + 2 * 14, 3)


def test_filters_are_grey_at_zero_and_each_on_its_own_scale():
    kernel = np.zeros((2, 2, 1, 3), np.float32)
    kernel[0, 0, 0, 0], kernel[1, 1, 0, 1] = 5, -0.1
    picture = filters_picture(kernel)
    side = 448 // 2 * 2
    assert picture[0, 0].tolist() == [255] * 3
    assert picture[side - 1, side - 1].tolist() == [128] * 3
    assert picture[side - 1, -1].tolist() == [0] * 3
    assert picture[-1, -1].tolist() == [255] * 3  # where there is no fourth
    colours = np.zeros((1, 1, 3, 1), np.float32)
    colours[..., 0, :], colours[..., 2, :] = 1, -1
    assert filters_picture(colours)[0, 0].tolist() == [255, 128, 0]


def test_maps_reach_from_their_least_to_their_largest_value():
    maps = np.array([[[0.0, 7.0], [4.0, 7.0]]])
    picture = maps_picture(maps)
    dark, bright, flat = (picture[0, column].astype(int).sum() for column in (0, 400, -1))
    assert dark == flat < bright


def test_tiles():
    pictures = [np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 30)]
    made = tiled(pictures, columns=2)
    assert made.shape == (10, 10, 3)
    assert [made[0, 0, 0], made[0, 9, 0], made[9, 0, 0], made[9, 9, 0], made[5, 5, 0]] == [10, 20, 30, 255, 255]


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (9, [0, 1, 2])]
)
def test_the_first_three_channels_are_shown_and_none_is_taken_for_transparency(channels, shown):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, channels), dtype=np.uint8)
    np.testing.assert_array_equal(in_colours(image), image[..., shown])
    np.testing.assert_array_equal(in_colours(image / np.float32(255)), image[..., shown])
