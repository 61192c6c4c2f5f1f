import numpy as np
import pytest
import tifffile

from flaxcls.data.images import Images, box_draws, random_box
from flaxcls.data.picture import Extent
from flaxcls.data.preparation import Preparation
from flaxcls.data.resize import fit_image, resize, share_kept
from flaxcls.data.stored import Files

RNG = np.random.default_rng(0)


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


def test_squash_and_pad_keep_the_whole_image():
    image = RNG.integers(1, 256, (20, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_image(image, (30, 30), "squash"), resize(image, (30, 30)))
    padded = fit_image(image, (30, 30), "pad")
    np.testing.assert_array_equal(padded[10:20], resize(image, (10, 30)))
    assert not padded[:10].any()
    assert not padded[20:].any()
    tall = image.swapaxes(0, 1)
    np.testing.assert_array_equal(fit_image(tall, (30, 30), "pad")[:, 10:20], resize(tall, (30, 10)))
    for how in ("crop", "squash", "pad"):
        for size in ((7, 50), (50, 7), (200, 3), (1, 1)):
            assert fit_image(image, size, how).shape == (*size, 3)


def test_the_share_that_a_crop_keeps():
    assert share_kept((20, 60), (10, 10)) == pytest.approx(1 / 3)
    assert share_kept((60, 20), (10, 10)) == pytest.approx(1 / 3)
    assert share_kept((20, 60), (5, 15)) == pytest.approx(1)


@pytest.mark.parametrize("size", [(20, 17), (50, 90), (64, 30)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_of_many_channels_is_resized_as_it_would_be_alone(size, dtype):
    image = (RNG.random((60, 80, 10)) * 255).astype(dtype)
    alone = [resize(np.ascontiguousarray(image[..., channel, None]), size) for channel in range(10)]
    np.testing.assert_allclose(resize(image, size), np.concatenate(alone, axis=2), rtol=1e-4)


@pytest.fixture
def several():
    sizes = [(20, 30), (31, 17), (24, 24), (50, 40)]
    return Images([RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes], Preparation((12, 12), 3))


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


def test_a_part_of_images_whose_values_are_measured_is_measured_too(tmp_path):
    for number in range(3):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.full((4, 4), 100 * number, np.uint16))
    files = Files([tmp_path / f"{number}.tif" for number in range(3)])
    images = Images(files, Preparation((4, 4), 1, value_range=(0.0, 4095.0)), is_measured=True)
    part = images.take(np.array([2, 0]))
    np.testing.assert_allclose(part[:].max(axis=(1, 2, 3)), [200 / 4095, 0], rtol=1e-6)
    assert part.extents == {0: Extent(200, 200, 0), 1: Extent(0, 0, 0)}
