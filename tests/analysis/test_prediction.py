import csv
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from flaxcls.analysis.classifier import Predictions
from flaxcls.analysis.prediction import (
    FilePredictions,
    ImageSource,
    find_images,
    predict_files,
    top_rows,
    write,
)
from flaxcls.data.preparation import Preparation
from flaxcls.errors import InputError


def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def image(path):
    return ImageSource(path, (Path(path),))


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)


def names_found(names, **options):
    """Returns the names that `find_images` finds, each of one file, and the notes."""
    images, notes = find_images(names, **options)
    assert all(len(image.paths) == 1 and image.paths[0].samefile(image.name) for image in images)
    return [image.name for image in images], notes


def test_files_folders_and_globs(tmp_path, grey):
    for name in ("b.png", "a.PNG", "sub/deep/c.webp", ".hidden/d.png", "sub/.e.png"):
        save(grey, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    names = ["a.PNG", "b.png", "sub/deep/c.webp"]
    paths, notes = names_found([str(tmp_path)])
    assert paths == [str(tmp_path / name) for name in names]
    assert notes == [
        f"passed over, as they are no images (1): {tmp_path / 'notes.txt'}",
        "left out, as they are hidden or left behind by tools (2): .hidden (1), .e.png (1)",
    ]
    assert names_found([str(tmp_path / "b.png"), str(tmp_path / "*.png")]) == ([str(tmp_path / "b.png")], [])
    assert names_found([str(tmp_path / "**/*.webp")]) == ([str(tmp_path / "sub/deep/c.webp")], [])
    assert names_found([str(tmp_path / "s*")])[0] == [str(tmp_path / "sub/deep/c.webp")]
    assert names_found([str(tmp_path / "notes.txt")]) == ([str(tmp_path / "notes.txt")], [])


def test_a_file_counts_once_however_it_is_named(tmp_path, grey, monkeypatch):
    save(grey, tmp_path / "sub/a.png")
    monkeypatch.chdir(tmp_path)
    assert names_found(["sub/a.png", "./sub", str(tmp_path), "*/*.png"]) == (["sub/a.png"], [])


def test_a_file_whose_name_reads_as_a_glob(tmp_path, grey):
    path = save(grey, tmp_path / "a[1].png")
    assert names_found([str(path)]) == ([str(path)], [])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no image was named"),
        (["missing.png"], "missing.png is no file, no folder, and no glob"),
        (["*.jpg"], "is no file, no folder, and no glob"),
        (["empty"], r"empty has no image \(it has empty/notes\.txt\)"),
    ],
)
def test_nothing_found(tmp_path, monkeypatch, names, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("no image")
    with pytest.raises(InputError, match=words):
        find_images(names)


class Brightness:
    """A classifier of two classes, the first of which is as probable as the image is bright."""

    class_names = ("bright", "dark")
    preparation = Preparation((2, 2), 1, "squash")

    def __init__(self):
        self.shapes = []

    def prepared(self, picture, name):
        return picture.pixels[:2, :2]

    def logits_of_prepared(self, images, *, size):
        self.shapes.append((size, *images.shape[1:]))
        bright = (images.mean(axis=(1, 2, 3)) / 255).astype(np.float32)
        return np.stack([bright, 1 - bright], axis=1)

    def predictions(self, logits):
        return Predictions(logits, self.class_names)


def test_the_rest_goes_on_where_a_file_cannot_be_read(tmp_path):
    paths = [str(save(np.full((4, 5), 10 * n, np.uint8), tmp_path / f"{n}.png")) for n in range(11)]
    for broken in (0, 4, 10):
        (tmp_path / f"{broken}.png").write_bytes(b"")
    model, done = Brightness(), []
    found = predict_files(model, paths, batch_size=3, advance=done.append)
    assert found.paths == [path for n, path in enumerate(paths) if n not in (0, 4, 10)]
    assert [path for path, _ in found.unreadable] == [paths[0], paths[4], paths[10]]
    expected = [10 * n / 255 for n in range(11) if n not in (0, 4, 10)]
    np.testing.assert_allclose(found.predictions.probabilities[:, 0], expected, rtol=1e-6)
    assert set(model.shapes) == {(3, 2, 2, 1)}  # one shape, so that it is compiled once
    assert sum(done) == 11
    assert found.notes == ["8 of 8 images are not 2x2, but 4x5: squashed to that"]


def test_what_of_the_files_is_not_read_is_said(tmp_path):
    frames = [Image.fromarray(np.full((2, 2), 100, np.uint8)) for _ in range(3)]
    paths = [str(tmp_path / f"{n}.tif") for n in range(3)]
    for path, count in zip(paths, (1, 2, 3), strict=True):
        frames[0].save(path, save_all=True, append_images=frames[1:count])
    notes = predict_files(Brightness(), paths).notes
    assert notes == ["2 of 3 files have several pictures, of which the first is read"]


def test_an_interrupt_reads_no_more_files(tmp_path, grey):
    class Interrupted(Brightness):
        read = 0

        def prepared(self, picture, name):
            self.read += 1
            time.sleep(0.02)
            return super().prepared(picture, name)

        def logits_of_prepared(self, images, *, size):
            raise KeyboardInterrupt

    paths = [str(save(grey, tmp_path / f"{n}.png")) for n in range(40)]
    model = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        predict_files(model, paths, batch_size=20, threads=1)
    assert 20 <= model.read < 30  # 39 were under way


def test_no_file_can_be_read(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    found = predict_files(Brightness(), [str(tmp_path / "0.png")])
    assert found.paths == []
    assert found.predictions.probabilities.shape == (0, 2)
    assert len(found.unreadable) == 1


@pytest.fixture
def found():
    probabilities = np.array([[0.25, 0.125, 0.625], [0.5, 0.5, 0.0]], np.float32)
    return FilePredictions([image("a.png"), image("b, c.png")], Predictions(probabilities, ("cat", "dog", "[red]")), [])


def test_rows_hold_the_most_probable_first(found):
    assert top_rows(found, 2) == [
        {"path": "a.png", "class": "[red]", "probability": 0.625, "class_2": "cat", "probability_2": 0.25},
        {"path": "b, c.png", "class": "cat", "probability": 0.5, "class_2": "dog", "probability_2": 0.5},
    ]


@pytest.mark.parametrize("form", ["table", "csv", "jsonl", "parquet"])
def test_a_path_that_is_no_utf8_is_written_with_escapes(tmp_path, form):
    predictions = Predictions(np.array([[0.25, 0.75]], np.float32), ("cat", "dog"))
    found = FilePredictions([image(os.fsdecode(b"h\xe9.png"))], predictions, [])
    assert top_rows(found, 1)[0]["path"] == r"h\xe9.png"
    write(found, 1, form, tmp_path / "found")
    assert rb"h\xe9.png" in (tmp_path / "found").read_bytes().replace(b"\\\\", b"\\")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_full_disk_leaves_no_file(found, tmp_path, form):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written: File too large"):
            write(found, 2, form, tmp_path / "found")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_has_come_meanwhile_stays(found, tmp_path):
    (tmp_path / "found").write_text("mine")
    with pytest.raises(InputError, match="is there already: name a new file"):
        write(found, 2, "csv", tmp_path / "found")
    assert (tmp_path / "found").read_text() == "mine"


def test_each_format_reads_back_the_same(found, tmp_path, capsys):
    rows = top_rows(found, 2)
    write(found, 2, "csv", None)
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [{k: float(v) if "prob" in k else v for k, v in line.items()} for line in lines] == rows
    write(found, 2, "jsonl", None)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    write(found, 2, "parquet", tmp_path / "p.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist() == rows
    write(found, 2, "table", tmp_path / "table.txt")
    text = (tmp_path / "table.txt").read_text()
    assert "b, c.png" in text
    assert "[red]" in text
    assert "0.625" in text


def test_a_table_without_labels_names_images_by_its_cells(tmp_path, grey):
    for name in ("a", "b", "c"):
        save(grey, tmp_path / f"scans/{name}.png")
    (tmp_path / "scans/b.png").unlink()
    save(grey, tmp_path / "scans/b.png")
    table = tmp_path / "test.csv"
    table.write_text("id\nb\na\nb\n")
    images, notes = find_images([str(table)])
    assert [(image.name, image.paths) for image in images] == [
        ("b", (tmp_path / "scans/b.png",)),
        ("a", (tmp_path / "scans/a.png",)),
    ]
    assert notes == [f"the files of test.csv are in the folder {tmp_path / 'scans'}, with .png after each name"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "has the columns one, two in its first line, but none with a usual name for the paths"),
        ({"path_columns": ("one", "thre")}, "no such column: .*thre"),
        ({"path_columns": ("one",), "image_dir": "nowhere"}, "data.image_dir 'nowhere' is no folder"),
        ({"path_columns": ("one", "two")}, "2 of 2 files of the table"),
    ],
)
def test_tables_that_will_not_do(tmp_path, options, words):
    (tmp_path / "test.csv").write_text("one,two\na.png,b.png\n")
    with pytest.raises(InputError, match=words):
        find_images([str(tmp_path / "test.csv")], **options)
