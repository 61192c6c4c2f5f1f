"""Real images of many kinds, where they are there (FLAXCLS_DATA_DIR): what is read equals the files, to the value."""

import csv
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from experiments.benchmarks.resizing import rows_of_grocery, write_table
from flaxcls.config import DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.decode import read_head, read_picture
from flaxcls.errors import InputError

ROOT = Path(os.environ.get("FLAXCLS_DATA_DIR", "."))
pytestmark = pytest.mark.skipif("FLAXCLS_DATA_DIR" not in os.environ, reason="FLAXCLS_DATA_DIR names no data")


def load(place, **options):
    return load_dataset(DataConfig(source="folder", dir=str(place), validation_fraction=0, **options))


def write(table, columns, rows):
    """Writes a table whose last row is the test split, with two classes in turn."""
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "label", "split"])
        for number, row in enumerate(rows):
            writer.writerow([*row, "ab"[number % 2], "test" if number == len(rows) - 1 else "train"])
    return table


def examples(dataset):
    """Yields the name and the image of each example."""
    for split in dataset.splits.values():
        yield from zip(split.ids, split.images[:], strict=True)


def in_files_values(image, value_range):
    """Returns the image in the values of the file, f64."""
    low, high = value_range
    return image.astype(np.float64) * (high - low) + low


def test_kaggles_worms_are_found_by_their_ids_and_lose_no_level_of_12_bits():
    dataset = load(ROOT / "worms_16bit" / "train.csv", color="grey")
    assert (dataset.sizes, dataset.image_shape) == ((38, 0, 10), (256, 256, 1))
    assert dataset.preparation.value_range == (0, 4095)
    assert any("train, with .png after each name" in note for note in dataset.notes)
    for name, image in [*examples(dataset)][::12]:
        stored = cv2.imread(str(ROOT / "worms_16bit" / "train" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert stored.max() > 255
        np.testing.assert_array_equal(np.rint(in_files_values(image[..., 0], (0, 4095))), stored)


def test_an_original_plate_with_private_tags_is_read_to_the_value():
    path = ROOT / "worms_16bit" / "original" / "A01_w2.tif"
    picture = read_picture(path)
    assert (picture.pixels.shape, picture.pixels.dtype) == ((520, 696, 1), np.uint16)
    np.testing.assert_array_equal(picture.pixels[..., 0], tifffile.imread(path))


def test_photos_of_three_sizes_go_by_their_series_and_are_squashed_whole(tmp_path):
    table = write_table(tmp_path / "grocery.csv", rows_of_grocery(ROOT / "grocery_photos"))
    dataset = load(table, image_size=32)
    assert (dataset.sizes, dataset.class_names) == ((77, 0, 51), ("banana", "carrots", "kiwi", "lemon"))
    assert all(Path(name).name.startswith("test_") for name in dataset.test.ids)
    assert any(note.startswith("128 of 128 images are not 32x32 (most of them 348x348)") for note in dataset.notes)
    sizes = {read_head(path, "it").size for path in (ROOT / "grocery_photos").glob("*/*.jpg")}
    assert sizes == {(348, 348), (464, 348), (348, 464)}


def test_photos_in_every_orientation_of_exif_are_alike_upright():
    files = sorted((ROOT / "exif_orientation").glob("*.jpg"))
    assert len(files) == 9
    pictures = [read_picture(path).pixels for path in files]
    assert {picture.shape for picture in pictures} == {(400, 600, 3)}
    assert {read_head(path, path.name).size for path in files} == {(400, 600)}
    # a number and compression differ
    small = [cv2.resize(picture, (24, 16), interpolation=cv2.INTER_AREA).astype(int) for picture in pictures]
    for picture in small[1:]:
        assert np.abs(picture - small[0]).mean() < 8
    assert np.abs(small[0] - small[0][::-1]).mean() > 30  # one that is turned would be far from it


ODD = {
    "cherry_12bit_offset32768.tif": (32768, 36863),
    "speckles_12bit_bigendian.tif": (0, 4095),
    "colocalization_16bit.png": (0, 65535),  # no usual depth but 16 bits holds 29,952
}


@pytest.mark.parametrize(("name", "value_range"), ODD.items())
def test_an_odd_picture_of_a_microscope_keeps_every_value_in_the_range_that_it_uses(name, value_range, tmp_path):
    path = ROOT / "microscopy_odd_tiff" / name
    stored = tifffile.imread(path) if path.suffix == ".tif" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    copies = [shutil.copy(path, tmp_path / f"{number}{path.suffix}") for number in range(3)]
    dataset = load(write(tmp_path / "table.csv", ["path"], [[copy] for copy in copies]), color="grey")
    assert dataset.preparation.value_range == value_range
    for _, image in examples(dataset):
        np.testing.assert_array_equal(np.rint(in_files_values(image[..., 0], value_range)), stored)


def test_a_geotiff_of_ten_bands_keeps_them_all_and_asks_for_the_range_of_its_floats(tmp_path):
    (path,) = (ROOT / "multiband_geotiff").glob("*.tif")
    stored = tifffile.imread(path)
    np.testing.assert_array_equal(read_picture(path).pixels, stored)
    copies = [shutil.copy(path, tmp_path / f"{number}.tif") for number in range(3)]
    table = write(tmp_path / "table.csv", ["path"], [[copy] for copy in copies])
    with pytest.raises(InputError, match=r"--data.value-range LOW HIGH, for example -1600 11400"):
        load(table, color="stored")
    with pytest.raises(InputError, match="an image of 10 channels cannot be converted to 3"):
        load(table, value_range=(-1600, 11400))
    dataset = load(table, color="stored", value_range=(-1600, 11400))
    assert dataset.image_shape == (224, 224, 10)
    for _, image in examples(dataset):
        np.testing.assert_allclose(in_files_values(image, (-1600, 11400)), stored, atol=0.001)


def test_four_bands_of_a_satellite_in_one_file_are_not_taken_for_transparency(tmp_path):
    files = sorted((ROOT / "bigearthnet_tiny" / "rgbn_stack").glob("*.tif"))
    dataset = load(write(tmp_path / "table.csv", ["path"], [[file] for file in files]), color="stored")
    assert dataset.preparation.value_range == (0, 16383)
    for name, image in examples(dataset):
        np.testing.assert_array_equal(np.rint(in_files_values(image, (0, 16383))), tifffile.imread(name))


BANDS = ("B02", "B03", "B04", "B08", "B05", "B01")  # the last two are of 60x60 and 20x20


def test_bands_in_files_of_their_own_are_the_channels_in_the_order_of_the_columns(tmp_path):
    rows = [
        [patch / f"{patch.name}_{band}.tif" for band in BANDS]
        for patch in sorted((ROOT / "bigearthnet_tiny" / "s2-tiny").iterdir())
    ]
    dataset = load(write(tmp_path / "table.csv", BANDS, rows), path_column=BANDS)
    assert dataset.image_shape == (120, 120, 6)
    sizes = "read at that of the first, 120x120 (60x60: B05; 20x20: B01)"
    assert f"3 of 3 files have channels of several sizes, {sizes}" in dataset.notes
    for (_, image), files in zip(examples(dataset), rows, strict=True):
        values = in_files_values(image, dataset.preparation.value_range)
        for channel, file in enumerate(files[:4]):
            np.testing.assert_array_equal(np.rint(values[..., channel]), tifffile.imread(file))
        for channel in (4, 5):  # these are enlarged
            assert values[..., channel].mean() == pytest.approx(tifffile.imread(files[channel]).mean(), rel=0.02)


def test_decibels_of_a_radar_keep_their_values_in_the_range_that_is_advised(tmp_path):
    rows = [
        [patch / f"{patch.name}_{band}.tif" for band in ("VV", "VH")]
        for patch in sorted((ROOT / "bigearthnet_tiny" / "s1-tiny").iterdir())
    ]
    table = write(tmp_path / "table.csv", ("VV", "VH"), rows)
    with pytest.raises(InputError) as refused:
        load(table, path_column=("VV", "VH"))
    low, high = map(float, str(refused.value).rstrip(".").split()[-2:])
    dataset = load(table, path_column=("VV", "VH"), value_range=(low, high))
    assert not any("outside" in note for note in dataset.notes)
    for (_, image), files in zip(examples(dataset), rows, strict=True):
        stored = np.stack([tifffile.imread(file) for file in files], axis=2)
        np.testing.assert_allclose(in_files_values(image, (low, high)), stored, atol=1e-5)
