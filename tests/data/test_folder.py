import csv
import hashlib
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pyarrow
import pytest
import tifffile
from PIL import Image
from pyarrow import parquet
from rich.console import Console

from flaxcls.analysis import load_run
from flaxcls.analysis.evaluation import evaluate_run
from flaxcls.analysis.inference import with_temperature
from flaxcls.analysis.prediction import predict_files
from flaxcls.config import AugmentConfig, Config, DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.held_out import hash_split
from flaxcls.data.images import Images
from flaxcls.data.notes import notes_on_heads
from flaxcls.data.picture import Head
from flaxcls.data.preparation import Preparation, choose_size
from flaxcls.errors import InputError, Interrupted
from flaxcls.run import fit
from flaxcls.run.setup import make_setup
from tests.conftest import make_stripes

pytestmark = pytest.mark.usefixtures("shared_programs")

NAMES = ("rows", "columns", "none")


def save_all(place, images, labels, *, prefix="", grey=False):
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = place / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0] if grey else image).save(folder / f"{prefix}{number:03d}.png")


def stripes_of_sizes(count, seed=0):
    """Returns stripes of several sizes and shapes in colours, and their labels."""
    images, labels = make_stripes(count, seed)
    scaled = [
        np.repeat(np.repeat(image, 2 + i % 3, axis=0), 2 + (i + 1) % 3, axis=1).repeat(3, axis=2)
        for i, image in enumerate(images)
    ]
    return scaled, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data") / "stripes"
    save_all(place, *stripes_of_sizes(120))
    return place


def config(place, **options):
    return DataConfig(source="folder", dir=str(place), **options)


def contents(split):
    return {hashlib.sha256(np.ascontiguousarray(image)).digest() for image in split.images[:]}


def test_a_folder_for_each_class(folder):
    dataset = load_dataset(config(folder, image_size=16))
    assert dataset.class_names == ("columns", "none", "rows")
    assert dataset.name == "stripes"
    assert dataset.image_shape == (16, 16, 3)
    sizes = [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sum(sizes) == 120
    assert 18 <= sizes[2] <= 30  # a fifth
    for split in (dataset.train, dataset.validation, dataset.test):
        assert set(split.labels) == {0, 1, 2}
        assert all(
            name.startswith(dataset.class_names[label]) for name, label in zip(split.ids, split.labels, strict=True)
        )
        assert isinstance(split.images, Images)
    again = load_dataset(config(folder, image_size=16))
    assert again.test.ids == dataset.test.ids
    assert load_dataset(config(folder, image_size=16, split_seed=1)).test.ids != dataset.test.ids


def test_images_of_one_size_are_one_array_of_their_own(tmp_path):
    images, labels = make_stripes(60)
    save_all(tmp_path / "d", images.repeat(3, axis=3), labels)
    dataset = load_dataset(config(tmp_path / "d"))
    assert dataset.train.images.dtype == np.uint8
    assert dataset.image_shape == (8, 8, 3)
    grey = load_dataset(config(tmp_path / "d", color="grey"))
    np.testing.assert_array_equal(grey.train.images[..., 0], dataset.train.images[..., 0])


def test_an_example_stays_in_its_split_when_others_come_or_it_moves(folder, tmp_path):
    before = load_dataset(config(folder, image_size=16))
    images, labels = stripes_of_sizes(120)
    save_all(tmp_path / "d", images[:60], labels[:60], prefix="moved-")
    after = load_dataset(config(tmp_path / "d", image_size=16))
    kept = set.union(*map(contents, (after.train, after.validation, after.test)))
    assert len(contents(before.test) & kept ^ contents(after.test)) <= 6  # only what lies at the limit of a share


def test_copies_are_never_parted(tmp_path):
    images, labels = stripes_of_sizes(60)
    save_all(tmp_path / "d", images, labels)
    save_all(tmp_path / "d", images[:30], labels[:30], prefix="copy-")
    dataset = load_dataset(config(tmp_path / "d", image_size=16))
    parts = [contents(split) for split in (dataset.train, dataset.validation, dataset.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert sum(len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)) == 90


def test_hash_split_holds_a_share_of_each_class_out_and_follows_the_hashes():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2)
    hashes = [hashlib.sha256(b"%d" % number).digest() for number in range(62)]
    rest, held_out = hash_split(labels, hashes, 0.2, 0)
    assert np.bincount(labels[held_out]).tolist() == [10, 2, 1]  # of two, one on either side
    order = np.random.default_rng(0).permutation(62)
    _, shuffled = hash_split(labels[order], [hashes[i] for i in order], 0.2, 0)
    assert set(order[shuffled]) == set(held_out)
    assert sorted([*rest, *held_out]) == list(range(62))


def test_splits_that_are_given_are_kept(tmp_path):
    images, labels = stripes_of_sizes(90)
    save_all(tmp_path / "d" / "train", images[:60], labels[:60])
    save_all(tmp_path / "d" / "test", images[60:], labels[60:])
    dataset = load_dataset(config(tmp_path / "d", image_size=16))
    assert len(dataset.test.labels) == 30
    assert len(dataset.train.labels) + len(dataset.validation.labels) == 60
    assert all(name.startswith("test/") for name in dataset.test.ids)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_paths_and_labels(folder, tmp_path, kind):
    paths = sorted(folder.rglob("*.png"))
    rows = [
        {"path": str(path), "label": path.parent.name, "split": ("train", "train", "val", "test")[number % 4]}
        for number, path in enumerate(paths)
    ]
    table = tmp_path / f"labels.{kind}"
    if kind == "csv":
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    dataset = load_dataset(config(table, image_size=16))
    assert [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] == [60, 30, 30]
    assert dataset.validation.ids == [row["path"] for row in rows if row["split"] == "val"]
    assert dataset.class_names == ("columns", "none", "rows")


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    images, _ = stripes_of_sizes(36)
    for number, image in enumerate(images):
        (tmp_path / "d" / str(number % 12)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "d" / str(number % 12) / f"{number}.png")
    assert load_dataset(config(tmp_path / "d", image_size=8)).class_names == tuple(map(str, range(12)))


def break_by(place, kind):
    if kind == "file":
        place.write_text("x")
    elif kind == "empty":
        place.mkdir()
    elif kind == "class":
        save_all(place, *stripes_of_sizes(20))
        (place / "more").mkdir()
    elif kind == "one":
        (place / "only").mkdir(parents=True)
        Image.fromarray(stripes_of_sizes(1)[0][0]).save(place / "only" / "x.png")
    elif kind == "unknown":
        images, labels = stripes_of_sizes(40)
        save_all(place / "train", images, labels)
        (place / "test" / "colums").mkdir(parents=True)
        Image.fromarray(images[0]).save(place / "test" / "colums" / "x.png")
    elif kind == "stray":
        for part in ("train", "test", "annotations"):
            save_all(place / part, *stripes_of_sizes(20))
    elif kind == "test only":
        save_all(place / "test", *stripes_of_sizes(20))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "is no folder, and no table"),
        ("file", "is no folder, and no table"),
        ("empty", "has no folders of classes: it needs one for each class"),
        ("class", "more holds no image"),
        ("one", "has the class only alone"),
        ("unknown", "Did you mean 'columns'"),
        ("stray", "has the split test and beside it annotations, which is no split"),
        ("test only", "has the splits test, but none named train"),
    ],
)
def test_what_is_no_set_of_images(tmp_path, kind, message):
    break_by(tmp_path / "d", kind)
    with pytest.raises(InputError, match=message):
        load_dataset(config(tmp_path / "d"))


def test_files_that_are_no_images_are_listed_or_skipped(tmp_path):
    save_all(tmp_path / "d", *stripes_of_sizes(60))
    for number in range(12):
        (tmp_path / "d" / "rows" / f"broken-{number:02d}.jpg").write_text("no image")
    (tmp_path / "d" / "rows" / ".hidden").write_text("is not looked at")
    with pytest.raises(InputError) as caught:
        load_dataset(config(tmp_path / "d", image_size=16))
    text = str(caught.value)
    assert "12 of 72 files cannot be used:\n" in text
    assert text.count("is no image that can be read") == 10
    assert "--data.unreadable skip" in text
    dataset = load_dataset(config(tmp_path / "d", image_size=16, unreadable="skip"))
    assert sum(len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)) == 60
    hidden, note = dataset.notes[:2]
    assert hidden == "left out, as they are hidden or left behind by tools (1): .hidden (1)"
    assert note.startswith("12 of 72 files cannot be used and are left out:\n")
    assert note.count("is no image that can be read") == 10


@pytest.mark.slow
def test_it_trains_resumes_and_stops_early_as_any_other(folder, small_config, quiet, tmp_path):
    data = config(folder, image_size=16, sampling="balanced")
    ours: Config = replace(small_config, data=data, augment=AugmentConfig(flip=True))
    whole = fit(ours, workdir=tmp_path / "whole", console=quiet)
    with pytest.raises(Interrupted):
        fit(ours, workdir=tmp_path / "run", console=quiet, stop_after=4)
    resumed = fit(ours, workdir=tmp_path / "run", console=quiet, resume=True)
    assert resumed.fingerprint == whole.fingerprint
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["split"] == "validation"


def test_a_set_too_large_for_the_memory_is_read_from_its_files_to_the_same_bits(folder, plain_config, quiet, tmp_path):
    results = []
    for memory in (2.0, 0.0):
        ours = replace(plain_config, data=config(folder, image_size=16, memory=memory))
        dataset = load_dataset(ours.data)
        assert isinstance(dataset.train.images._images, list) == bool(memory)
        results.append(fit(ours, dataset=dataset, workdir=tmp_path / str(memory), console=quiet))
    assert results[0].fingerprint == results[1].fingerprint
    assert results[0].test == results[1].test


def save_deep(place, images, labels, write=cv2.imwrite, suffix=".png"):
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (place / NAMES[label]).mkdir(parents=True, exist_ok=True)
        write(place / NAMES[label] / f"{number:03d}{suffix}", image)


def deep_stripes(count, values):
    """Returns stripes u16[count 8 8] with values below `values`, and their labels."""
    images, labels = make_stripes(count)
    return (images[..., 0].astype(np.float64) / 255 * values).astype(np.uint16), labels


@pytest.mark.parametrize(("start", "bits"), [(0, 12), (2**15, 12), (0, 16)])
def test_no_level_of_sixteen_bits_is_lost_and_the_range_is_said(tmp_path, start, bits):
    images, labels = deep_stripes(60, 2**bits - 1)
    images[0, 0] = np.arange(8)
    images[0, 1, 0] = 2**bits - 1
    save_deep(tmp_path, images + np.uint16(start), labels)
    held, read = (load_dataset(config(tmp_path, color="grey", memory=memory)) for memory in (2, 0))
    low, high = start, start + 2**bits - 1
    assert held.preparation.value_range == read.preparation.value_range == (low, high)
    assert held.notes == [
        f"values of {low}..{high} in the files: {low} becomes black and {high} white, as {bits} bits"
        f"{' above 32768' * bool(start)} are the fewest of 8, 10, 12, 14 and 16 that hold them (--data.value-range)"
    ]
    assert held.notes == read.notes
    for part, split in held.splits.items():
        np.testing.assert_array_equal(split.images, read.splits[part].images[:])
        numbers = [int(name.split("/")[1][:3]) for name in split.ids]
        np.testing.assert_array_equal(np.rint(split.images[..., 0] * (high - low)), images[numbers])


def test_a_pgm_of_12_bits_keeps_them(tmp_path):
    images, labels = deep_stripes(60, 4096)
    images[0, 0, 0] = 4095

    def write(path, image):
        path.write_bytes(b"P5 8 8 4095\n" + image.astype(">u2").tobytes())

    save_deep(tmp_path, images, labels, write, ".pgm")
    dataset = load_dataset(config(tmp_path, color="grey"))
    assert dataset.notes[0].startswith("values of 0..4095 in the files: 0 becomes black and 4095 white, as 12 bits are")
    for split in dataset.splits.values():
        numbers = [int(name.split("/")[1][:3]) for name in split.ids]
        np.testing.assert_array_equal(np.rint(split.images[..., 0] * 4095), images[numbers])


def test_all_that_is_not_read_is_said():
    kinds = [f"{bits} bits, of which 8 are read" for bits in range(9, 17)]
    heads = [Head((8, 8), 3, "uint8", kind) for kind in kinds for _ in range(2)]
    notes = notes_on_heads([*heads, Head((8, 8), 3, "uint8", kinds[7])], Preparation((8, 8), 3))
    assert notes[0] == "3 of 17 files have 16 bits, of which 8 are read"
    assert notes[-1] == "4 of 17 files have other parts that are not read"
    assert sum(int(note.split()[0]) for note in notes) == 17


def test_the_range_that_is_advised_holds_all_values(tmp_path):
    images, labels = make_stripes(60)
    for scale in (1e-4 / 7, 1e4 / 7):
        values = (images[..., 0].astype(np.float32) - 100.3) * np.float32(scale)
        place = tmp_path / f"{scale:.5f}"
        save_deep(place, values, labels, tifffile.imwrite, ".tif")
        with pytest.raises(InputError, match="whose range is not known") as refused:
            load_dataset(config(place, color="grey"))
        low, high = map(float, str(refused.value).rstrip(".").split()[-2:])
        dataset = load_dataset(config(place, color="grey", value_range=(low, high)))
        assert not any("outside" in note for note in dataset.notes)
        assert dataset.train.images.max() - dataset.train.images.min() > 0.9  # and is not much larger


@pytest.mark.parametrize("memory", [2.0, 0.0])
def test_images_without_any_value_cannot_be_read(tmp_path, memory):
    images, labels = make_stripes(60)
    values = images[..., 0].astype(np.float32)
    values[:3] = np.nan
    save_deep(tmp_path / "some", values, labels, tifffile.imwrite, ".tif")
    ours = config(tmp_path / "some", color="grey", value_range=(0, 255), memory=memory, validation_fraction=0)
    with pytest.raises(InputError, match=r"files cannot be used:.*\n.* all of its values are NaN(?s:.*) skip"):
        load_dataset(ours)
    dataset = load_dataset(replace(ours, unreadable="skip"))
    assert sum(dataset.sizes) == 57
    assert "3 of 60 files cannot be used and are left out:" in dataset.notes[0]
    assert not any("no-data" in note for note in dataset.notes)
    save_deep(tmp_path / "all", np.full_like(values, np.nan), labels, tifffile.imwrite, ".tif")
    for unreadable in ("stop", "skip", "replace"):
        with pytest.raises(InputError, match="all of its values are NaN"):
            load_dataset(config(tmp_path / "all", color="grey", memory=memory, unreadable=unreadable))


def test_floats_need_a_range_unless_they_are_in_0_to_1(tmp_path):
    images, labels = make_stripes(60)
    decibels = images[..., 0].astype(np.float32) / 10 - 25
    decibels[0, 0, 0] = np.nan
    save_deep(tmp_path / "sar", decibels, labels, tifffile.imwrite, ".tif")
    with pytest.raises(InputError, match=r"float32, from -25 to -4.*--data.value-range LOW HIGH"):
        load_dataset(config(tmp_path / "sar", color="grey"))
    dataset = load_dataset(config(tmp_path / "sar", color="grey", value_range=(-25, -10)))
    assert "values of -25..-4.1 in the files: -25 becomes black and -10 white (--data.value-range)" in dataset.notes
    assert "1 of 60 images has 1 NaN or no-data values, which become -25" in dataset.notes
    assert any("have values outside of that, which become its ends" in note for note in dataset.notes)
    all_values = np.concatenate([split.images for split in dataset.splits.values()])
    assert (all_values.min(), all_values.max()) == (0, 1)
    save_deep(tmp_path / "unit", images[..., 0] / np.float32(255), labels, tifffile.imwrite, ".tif")
    unit = load_dataset(config(tmp_path / "unit", color="grey")).train
    numbers = [int(name.split("/")[1][:3]) for name in unit.ids]
    np.testing.assert_array_equal(unit.images, images[numbers] / np.float32(255))


def test_depths_that_are_mixed_are_refused(tmp_path):
    images, labels = deep_stripes(60, 4095)
    save_deep(tmp_path, images, labels)
    cv2.imwrite(tmp_path / "rows" / "x.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(InputError, match=r"uint16 in 60 files, uint8 in 1 file\. Leave some out"):
        load_dataset(config(tmp_path))


def test_channels_of_the_files_are_kept_where_that_is_asked_for(tmp_path, plain_config, quiet):
    images, labels = make_stripes(90)
    bands = np.concatenate([images, images, 255 - images, images // 2, images // 3], axis=3)
    save_deep(
        tmp_path / "data",
        bands,
        labels,
        lambda path, a: tifffile.imwrite(path, a, photometric="minisblack", planarconfig="contig"),
        ".tif",
    )
    with pytest.raises(InputError, match=r"5 channels cannot be converted to 3: .* --data.color stored"):
        load_dataset(config(tmp_path / "data"))
    held, read = (load_dataset(config(tmp_path / "data", color="stored", memory=memory)) for memory in (2, 0))
    assert held.image_shape == (8, 8, 5)
    np.testing.assert_array_equal(held.train.images, read.train.images[:])
    run = fit(
        replace(plain_config, data=config(tmp_path / "data", color="stored")), workdir=tmp_path / "run", console=quiet
    )
    found = load_run(run.workdir).predict([bands[0], bands[1]])
    path = next((tmp_path / "data").rglob("000.tif"))
    np.testing.assert_allclose(
        predict_files(load_run(run.workdir), [str(path)]).predictions.probabilities, found.probabilities[:1], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ([(32, 32)] * 9 + [(33, 32)], (32, 32)),
        ([(32, 48)] * 9 + [(48, 32)] * 2, (32, 48)),
        ([(32, 48)] * 5 + [(48, 32)] * 5, (224, 224)),
        ([(1500, 2000)] * 3, (192, 256)),
        ([(256, 256)] * 3, (256, 256)),
        ([(8000, 100)] * 3, (2016, 32)),
    ],
)
def test_the_size_is_that_of_most_and_not_large(sizes, size):
    assert choose_size(sizes) == size


def test_no_size_is_called_that_of_most_images_unless_it_is(tmp_path):
    images, labels = make_stripes(80)
    save_all(tmp_path, images, labels, grey=True)
    for number, path in enumerate(sorted(tmp_path.glob("*/*.png"))):
        Image.open(path).resize((20 + number % 8, 30)).save(path)
    (note,) = load_dataset(config(tmp_path, color="grey", image_size=8)).notes
    assert note.startswith("80 of 80 images are not 8x8 (8 sizes, most often 30x2")


def test_one_of_another_size_is_said_and_asks_for_no_random_crops(tmp_path, plain_config):
    save_all(tmp_path, *make_stripes(80), grey=True)
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "rows" / "odd.png")
    dataset = load_dataset(config(tmp_path, color="grey"))
    assert dataset.image_shape == (8, 8, 1)
    assert dataset.notes == [
        "1 of 81 images is not 8x8, but 9x8: squashed to that, the size of most (--data.image-size, --data.resize)"
    ]
    setup = make_setup(replace(plain_config, data=config(tmp_path)), dataset, None, None)
    assert isinstance(setup.dataset.train.images, np.ndarray)  # they are resized once
    batch = setup.loader.maker(0)
    np.testing.assert_array_equal(batch["image"], dataset.train.images[setup.loader.maker.chosen(0)["index"]])


def test_a_crop_says_how_much_it_cuts(folder):
    notes = load_dataset(config(folder, image_size=16, resize="crop")).notes
    assert any(
        "cropped to that" in note and "evaluation sees 64% of them on average, 50% at least" in note for note in notes
    )


def test_a_run_keeps_the_size_and_the_range_that_it_found(tmp_path, plain_config, quiet):
    images, labels = deep_stripes(60, 1000)
    save_deep(tmp_path / "data", images, labels)
    ours = replace(plain_config, data=config(tmp_path / "data", color="grey"))
    whole = fit(ours, workdir=tmp_path / "whole", console=quiet)
    with pytest.raises(Interrupted):
        fit(ours, workdir=tmp_path / "run", console=quiet, stop_after=1)
    resumed = fit(ours, workdir=tmp_path / "run", console=quiet, resume=True)
    assert resumed.fingerprint == whole.fingerprint
    classifier = load_run(tmp_path / "run")
    assert classifier.preparation == Preparation((8, 8), 1, "squash", (0, 1023))
    cv2.imwrite(tmp_path / "shallow.png", np.zeros((8, 8), np.uint8))
    ((_, reason),) = predict_files(classifier, [str(tmp_path / "shallow.png")]).unreadable
    assert "shallow.png: it has 8 bits, but the run was trained on files whose values 0..1023 become 0..1" in reason
    evaluation = evaluate_run(tmp_path / "run")
    paths = [str(tmp_path / "data" / name) for name in evaluation.ids]
    found = predict_files(with_temperature(tmp_path / "run", classifier, evaluation.temperature), paths)
    np.testing.assert_allclose(found.predictions.probabilities, evaluation.probabilities, rtol=1e-4, atol=1e-6)


def test_a_set_that_is_moved_and_renamed_is_still_the_runs(tmp_path, plain_config, quiet):
    save_all(tmp_path / "data", *make_stripes(60), grey=True)
    ours = replace(plain_config, data=config(tmp_path / "data", color="grey"))
    whole = fit(ours, workdir=tmp_path / "whole", console=quiet)
    with pytest.raises(Interrupted):
        fit(ours, workdir=tmp_path / "run", console=quiet, stop_after=1)
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = replace(ours, data=config(tmp_path / "moved", color="grey"))
    assert fit(moved, workdir=tmp_path / "run", console=quiet, resume=True).fingerprint == whole.fingerprint


def test_one_that_breaks_after_the_start_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "d")
    dataset = load_dataset(config(tmp_path / "d", image_size=16, memory=0.0))
    (tmp_path / "d" / dataset.train.ids[0]).write_bytes(b"")
    with pytest.raises(InputError, match=dataset.train.ids[0]):
        dataset.train.images[:4]


def test_uneven_classes_are_reported_and_what_helps(tmp_path, plain_config, capsys):
    images, labels = stripes_of_sizes(200)
    kept = [i for i, label in enumerate(labels) if label or i % 4 == 0]
    save_all(tmp_path / "d", [images[i] for i in kept], labels[kept])
    for option, advised in (("shuffled", True), ("balanced", False)):
        ours = replace(plain_config, data=config(tmp_path / "d", image_size=16, sampling=option))
        ours = replace(ours, loop=replace(ours.loop, epochs=1))
        fit(ours, workdir=tmp_path / option, console=Console(width=200))
        said = capsys.readouterr().out
        counts = np.bincount(load_dataset(ours.data).train.labels)
        assert f"classes are uneven: {counts.min()} of rows to {counts.max()} of " in said
        assert ("--data.sampling balanced" in said) == advised
