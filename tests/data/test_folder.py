import csv
import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from rich.console import Console

from flaxcls.config import AugmentConfig, Config, DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.folder import hash_split
from flaxcls.data.images import Images
from flaxcls.errors import InputError, Interrupted
from flaxcls.run import fit
from tests.conftest import make_stripes

pytestmark = pytest.mark.usefixtures("shared_programs")

NAMES = ("rows", "columns", "none")


def save_all(place, images, labels, *, prefix=""):
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = place / NAMES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{prefix}{number:03d}.png")


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
        ("empty", "holds no folder: it needs one for each class"),
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
    assert "12 of 72 files are no images" in text
    assert text.count("is no image that can be read") == 10
    assert "--data.unreadable skip" in text
    dataset = load_dataset(config(tmp_path / "d", image_size=16, unreadable="skip"))
    assert sum(len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)) == 60
    (note,) = dataset.notes
    assert "12 of 72 files are no images" in note
    assert note.count("is no image that can be read") == 10
    assert "left out" in note


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
