import csv
import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from flaxcls.config import Config, DataConfig
from flaxcls.config_json import from_json
from flaxcls.data import load_dataset
from flaxcls.data.again import is_listed
from flaxcls.data.folder import load_examples
from flaxcls.data.held_out import hash_split
from flaxcls.data.preparation import Preparation
from flaxcls.errors import InputError
from flaxcls.train import parse
from flaxcls.validation import validate


@pytest.fixture
def images(tmp_path):
    """Twelve grey images, 00.png to 11.png, in a folder `images`. The image of number n has the value 20 * n."""
    (tmp_path / "images").mkdir()
    for number in range(12):
        Image.fromarray(np.full((4, 4), 20 * number, np.uint8)).save(tmp_path / "images" / f"{number:02d}.png")
    return tmp_path


def write(place, rows, *, delimiter=","):
    """Writes a table. rows: dictionaries from column to value."""
    with place.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return place


def rows_of(count=12, **columns):
    """Returns rows with paths, labels and splits, and further columns: functions of the number of the row."""
    usual = {
        "path": lambda n: f"images/{n:02d}.png",
        "label": lambda n: "ab"[n % 2],
        "split": lambda n: ("train", "train", "val", "test")[n // 2 % 4],
    }
    columns = {name: value for name, value in {**usual, **columns}.items() if value is not None}
    return [{name: value(number) for name, value in columns.items()} for number in range(count)]


def load(place, **options):
    return load_dataset(DataConfig(source="folder", dir=str(place), color=options.pop("color", "grey"), **options))


def numbers(split):
    """Returns the numbers of the images of a split, by their pixels."""
    return (split.images[:, 0, 0, 0] // 20).tolist()


def said(dataset):
    return "\n".join(dataset.notes)


@pytest.fixture(scope="module")
def expected():
    splits = [row["split"] for row in rows_of()]
    return [[n for n, split in enumerate(splits) if split == name] for name in ("train", "val", "test")]


def contents(dataset):
    return [numbers(split) for split in (dataset.train, dataset.validation, dataset.test)]


def test_a_table_with_the_plain_names_needs_no_word(images, expected):
    dataset = load(write(images / "t.csv", rows_of()))
    assert contents(dataset) == expected
    assert dataset.test.labels.tolist() == [n % 2 for n in expected[2]]
    assert not dataset.notes


@pytest.mark.parametrize(
    ("path", "label", "split"),
    [("file_name", "class", "split"), ("Image Path", "Category", "Subset"), ("image_id", "target", "set")],
)
def test_usual_names_are_found_and_said(images, expected, path, label, split):
    rows = [{path: row["path"], label: row["label"], split: row["split"], "weight": 1} for row in rows_of()]
    dataset = load(write(images / "t.csv", rows))
    assert contents(dataset) == expected
    assert f"paths are in the column {path}, labels are in the column {label}" in said(dataset)
    assert (f"splits are in the column {split}" in said(dataset)) == (split != "split")
    assert "columns that are not used: weight" in said(dataset)


def test_columns_are_chosen_by_options(images, expected):
    rows = [{"Datei": r["path"], "Art": r["label"], "Teil": r["split"], "label": "x", "path": "y"} for r in rows_of()]
    table = write(images / "t.csv", rows)
    dataset = load(table, path_column=("Datei",), label_column=("Art",), split_column="Teil")
    assert contents(dataset) == expected
    assert dataset.class_names == ("a", "b")
    assert dataset.notes == ["columns that are not used: label, path"]
    with pytest.raises(InputError, match=r"unknown column 'Tiel'. Did you mean 'Teil'"):
        load(table, path_column=("Datei",), label_column=("Art",), split_column="Tiel")
    assert sum(map(len, contents(load(table, path_column=("Datei",), label_column=("Art",))))) == 12  # held out


def test_the_configuration_of_an_earlier_version_means_the_splits_that_it_meant(images, expected):
    data = {"source": "folder", "name": None, "color": "grey", "image_size": None, "unreadable": "stop", "memory": 2.0}
    data |= {"validation_fraction": 0.25, "test_fraction": 0.25, "train_examples": None, "split_seed": 0}
    rows = rows_of(set=lambda n: ("train", "val", "test")[n % 3])

    def load_earlier(rows):
        table = write(images / "t.csv", rows)
        return load_dataset(from_json(json.dumps({"data": {**data, "dir": str(table)}})).data)

    dataset = load_earlier(rows)
    assert contents(dataset) == expected
    assert dataset.notes == ["columns that are not used: set"]
    without = load_earlier([{name: row[name] for name in ("path", "label", "set")} for row in rows])
    assert without.sizes == (6, 2, 4)  # held out, a share of each class
    assert without.notes == ["there is no column split, so splits are held out at random", dataset.notes[0]]
    assert load(images / "t.csv").sizes == (4, 4, 4)  # today, the column set is one of splits


def test_a_column_set_that_names_no_splits_is_not_used(images):
    dataset = load(write(images / "t.csv", rows_of(split=None, set=lambda n: n % 3)))
    assert "columns that are not used: set" in said(dataset)
    assert dataset.sizes != (6, 2, 4)


def test_rows_without_a_split_are_counted(images):
    dataset = load(write(images / "t.csv", rows_of(split=lambda n: ("", "", "val", "test")[n // 2 % 4])))
    assert "8 rows have no split: they are in train" in said(dataset)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id,filename,label", "several columns that may hold the paths: id, filename. Choose one with --data.path-col"),
        ("path,class,target", "several columns that may hold the labels: class, target. Choose one with --data.label"),
        ("path,weight", "has the columns path, weight in its first line, but none .*--data.label-column"),
        ("url,label", "has the columns url, label in its first line, but none .*--data.path-column"),
        ("path,label,label", "more than one column label"),
        ("path,label,set,subset", "several columns that may hold the splits: set, subset"),
    ],
)
def test_a_choice_of_columns_is_never_guessed(images, header, message):
    cells = ",".join(["images/00.png", "a", "train", "train"][: header.count(",") + 1])
    (images / "t.csv").write_text(f"{header}\n{cells}\n")
    with pytest.raises(InputError, match=message):
        load(images / "t.csv")


def test_the_column_path_wins(images, expected):
    dataset = load(write(images / "t.csv", rows_of(id=lambda n: n, image=lambda n: "x")))
    assert contents(dataset) == expected
    assert "columns that are not used: id, image" in said(dataset)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters(images, expected, delimiter):
    rows = rows_of(note=lambda n: "1,5; or more" if delimiter == "|" else "")
    table = write(images / ("t.tsv" if delimiter == "\t" else "t.csv"), rows, delimiter=delimiter)
    table.write_text("\n" + table.read_text().replace("\n", "\n\n") + "  \n")  # blank lines
    assert contents(load(table)) == expected


def test_blanks_after_the_delimiter_are_no_part_of_the_label(images):
    table = write(images / "t.csv", rows_of())
    table.write_text(table.read_text().replace(",", ", "))
    assert load(table).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        ("path,label\nx.png,a\ny.png,b\n", "2 of 2 files of the table .* are not there"),
        ("path,label\nx.png,a\ny.png,\n", "row 2 of the table .* has no label"),
        ("path,label\nx.png,a\n\ny.png\n", "row 2 of the table .* has 1 cells, but the header has 2"),
        ("path,label\nx.png,a,b\n", "row 1 of the table .* has 3 cells, but the header has 2 .*','"),
        ('path,label\nx.png,"a\ny.png,b\n', "is no CSV file in UTF-8: unexpected end of data"),
        ("path,label\nx.png,h\udce9\n", "is no CSV file in UTF-8"),
        ("path,label,split\nx.png,a,oops\n", "has the split 'oops' in the column split, .*--data.split-column"),
    ],
)
def test_tables_that_will_not_do(tmp_path, text, message):
    (tmp_path / "t.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        load(tmp_path / "t.csv")


def test_a_missing_folder_and_suffix_are_found_if_they_hold_for_every_row(images, expected):
    dataset = load(write(images / "t.csv", rows_of(path=None, id=lambda n: f"{n:02d}")))
    assert contents(dataset) == expected
    assert re.search("files of t.csv are in the folder .*images, with .png after each name", said(dataset))
    assert dataset.test.ids == [f"{n:02d}" for n in expected[2]]


def test_a_missing_folder_and_suffix_are_given_by_options(images, expected):
    (images / "images").rename(images / "pictures.d")
    (images / "other").mkdir()
    table = write(images / "other" / "t.csv", rows_of(path=lambda n: f"{n:02d}"))
    with pytest.raises(InputError, match="12 of 12 files of the table"):
        load(table)
    assert contents(load(table, image_dir="../pictures.d", suffix=".png")) == expected
    with pytest.raises(InputError, match=r"data.image_dir 'pictures.d' is no folder, as there is no .*other"):
        load(table, image_dir="pictures.d", suffix=".png")


def test_two_places_that_hold_every_file_are_an_error_with_both(images):
    (images / "more").mkdir()
    for path in (images / "images").iterdir():
        Image.open(path).save(images / "more" / f"{path.stem}.JPG", format="JPEG")
    table = write(images / "t.csv", rows_of(path=lambda n: f"{n:02d}"))
    with pytest.raises(InputError) as caught:
        load(table)
    assert "12 with --data.image-dir images --data.suffix .png" in str(caught.value)
    assert "12 with --data.image-dir more --data.suffix .JPG" in str(caught.value)
    assert load(table, image_dir="more").image_shape == (4, 4, 1)
    assert load(table, suffix=".png").image_shape == (4, 4, 1)


def test_a_place_with_some_of_the_files_is_counted_and_not_used(images):
    (images / "images" / "05.png").unlink()
    table = write(images / "t.csv", rows_of(path=lambda n: f"{n:02d}"))
    with pytest.raises(InputError, match=r"11 with --data.image-dir images --data.suffix .png"):
        load(table)
    with pytest.raises(InputError, match="12 of 12 files"):  # it is not the rest that is skipped
        load(table, unreadable="skip")
    dataset = load(table, unreadable="skip", image_dir="images", suffix=".png")
    assert sum(dataset.sizes) == 11


def test_files_that_are_not_there_are_skipped_and_listed(images):
    (images / "images" / "05.png").unlink()
    table = write(images / "t.csv", rows_of())
    with pytest.raises(InputError, match=r"1 of 12 files .* is not there:\n.*05.png(.|\n)*--data.unreadable skip"):
        load(table)
    dataset = load(table, unreadable="skip")
    assert sum(dataset.sizes) == 11
    (note,) = dataset.notes
    assert note == f"1 of 12 files is not there and is left out:\n  {images / 'images' / '05.png'}"


@pytest.mark.parametrize(
    ("spell", "words"),
    [
        (lambda path: path.upper(), "case is ignored (12)"),
        (lambda path: path.replace("/", "\\"), r"\ is read as / (12)"),
        (lambda path: f" {path}\t", "blanks around them are ignored (12)"),
        (lambda path: path.replace("é", "e\u0301"), "accents are encoded in another way (12)"),
        (lambda path: " " + path.upper().replace("/", "\\"), "blanks around them are ignored (12), "),
    ],
    ids=["case", "backslash", "blanks", "accents", "all"],
)
def test_paths_that_are_spelled_in_another_way_are_found_and_said(images, expected, spell, words):
    (images / "images").rename(images / "café")
    rows = rows_of(path=lambda n: spell(f"café/{n:02d}.png"))
    dataset = load(write(images / "t.csv", rows))
    assert contents(dataset) == expected
    assert dataset.test.ids == [rows[n]["path"] for n in expected[2]]  # as in the table
    (note,) = dataset.notes
    assert note.startswith("12 paths of t.csv are spelled in another way than their files: ")
    assert words in note
    assert note.endswith(f'such as "{rows[0]["path"]}" for {images}/café/00.png')


def test_a_file_that_is_called_as_the_table_says_wins(images):
    names = ["a\\b.png", "a/b.png", " c.png", "c.png", "D.png", "d.png", "d.PNG", "e .png"]
    (images / "a").mkdir()
    for number, name in enumerate(names):
        Image.fromarray(np.full((4, 4), 20 * number, np.uint8)).save(images / name)
    table = write(images / "t.csv", [{"path": name, "label": "ab"[n % 2]} for n, name in enumerate(names)])
    dataset = load(table, test_fraction=0.5, validation_fraction=0.0)
    assert not dataset.notes
    for split in (dataset.train, dataset.test):
        assert [names[number] for number in numbers(split)] == split.ids


def test_a_path_that_may_mean_two_files_is_refused_with_both(images):
    for name in ("A.png", "a.png"):
        shutil.copy(images / "images" / "00.png", images / "images" / name)
    rows = rows_of()
    table = write(images / "t.csv", [*rows, {**rows[0], "path": "images/A.PNG"}])
    with pytest.raises(InputError, match=r"1 of 13 files .*\n.*\n.*The first may be .*/A.png or .*/a.png: write which"):
        load(table)
    table = write(images / "t.csv", [*rows, {**rows[0], "path": " images\\A.png"}])
    assert "1 paths of t.csv" in said(load(table))  # but for blanks and \, it is the one


@pytest.mark.parametrize(
    "start", ["/", "set/", "/kaggle/input/set/", "C:\\Users\\me\\set\\", "https://example.org/set/"]
)
def test_folders_of_another_place_before_all_paths_are_left_out_and_said(images, expected, start):
    shutil.copytree(images / "images", images / "set" / "images")
    table = write(images / "set" / "t.csv", rows_of(path=lambda n: f"{start}images/{n:02d}.png"))
    dataset = load(table)
    assert contents(dataset) == expected
    assert dataset.notes == [f"the files of t.csv are in the folder {images}/set, without {start} before each name"]


def test_the_name_of_a_split_is_not_left_out(images):
    table = write(images / "t.csv", rows_of(path=lambda n: f"test/{n:02d}.png"))
    with pytest.raises(InputError, match="12 of 12 files"):
        load(table)
    with pytest.raises(InputError, match="12 of 12 files"):
        load(table, image_dir="images")


def test_suffixes_in_several_cases_are_one(images, expected):
    for number in range(3):
        (images / "images" / f"{number:02d}.png").rename(images / "images" / f"{number:02d}.PNG")
    dataset = load(write(images / "t.csv", rows_of(path=lambda n: f"{n:02d}")))
    assert contents(dataset) == expected
    assert "images, with .png after each name" in said(dataset)
    assert "case is ignored (3)" in said(dataset)
    assert contents(load(images / "t.csv", image_dir="images", suffix=".png")) == expected


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("images/000.png", "Near to the first is .*/images/00.png"),
        ("images/00.jpg", "Near to the first is .*/images/00.png"),
        ("image/00.png", "Near to the first is .*/images[.]"),
        ("https://example.org/00.png", "The first is a URL.*download"),
        ("a/" * 2000, "Paths are relative"),
    ],
)
def test_what_is_near_to_a_missing_file_is_named(images, path, hint):
    with pytest.raises(InputError, match=f"1 of 13 files .*\n.*\n.*{hint}"):
        load(write(images / "t.csv", [*rows_of(), {"path": path, "label": "a", "split": "train"}]))


def test_splits_may_have_blanks_and_capitals(images, expected):
    rows = rows_of(split=lambda n: ("Train ", "TRAIN", " Validation", "Test")[n // 2 % 4])
    assert contents(load(write(images / "t.csv", rows))) == expected


def test_a_column_of_flags_for_each_class(images, expected):
    flags = {"label": None, "b": lambda n: n % 2, "a": lambda n: 1 - n % 2, "weight": lambda n: n}
    dataset = load(write(images / "t.csv", rows_of(**flags)), label_column=("b", "a"))
    assert dataset.class_names == ("a", "b")
    assert dataset.test.labels.tolist() == [n % 2 for n in expected[2]]
    table = write(images / "u.csv", rows_of(**{**flags, "weight": None}))
    with pytest.raises(InputError, match=r"write: --data.label-column b a$"):
        load(table)
    words = {"b": lambda n: n % 2 == 1, "a": lambda n: n % 2 == 0, "c": lambda n: False}
    dataset = load(write(images / "v.csv", rows_of(label=None, **words)), label_column=("a", "b", "c"))
    assert dataset.class_names == ("a", "b")
    assert "no row has the label c" in said(dataset)


@pytest.mark.parametrize(
    ("a", "message"),
    [
        ("1", r"row 2 of the table .* \(images/01.png\) has 2 labels: a, b .*not supported yet"),
        ("0", r"row 1 of the table .* \(images/00.png\) has 0 labels .*not supported yet"),
        ("2", r"row 1 of the table .* has '2' in a, .*each must hold 0 or 1"),
    ],
)
def test_rows_with_several_labels_or_none_are_shown(images, a, message):
    rows = rows_of(label=None, a=lambda n: a, b=lambda n: n % 2)
    with pytest.raises(InputError, match=message):
        load(write(images / "t.csv", rows), label_column=("a", "b"))


def test_a_file_under_two_labels_or_in_two_splits_is_refused(images):
    rows = rows_of()
    (images / "link.png").symlink_to(images / "images" / "03.png")
    for changed in ({"label": "a"}, {"split": "val"}, {"path": "link.png", "label": "a"}):
        with pytest.raises(InputError, match=r"contradict.*\n.*: b in train in row 4, . in \w+ in row 13"):
            load(write(images / "t.csv", [*rows, {**rows[3], **changed}]))
    dataset = load(write(images / "t.csv", [*rows, rows[3], {**rows[4], "path": "./images/04.png"}]))
    assert sum(dataset.sizes) == 14
    assert "2 rows of t.csv repeat the file, label and split of an earlier row" in said(dataset)


def test_hard_links_are_files_of_their_own(images):
    os.link(images / "images" / "03.png", images / "images" / "13.png")
    load(write(images / "t.csv", [*rows_of(), {"path": "images/13.png", "label": "a", "split": "test"}]))


SINCE = "labels or splits that have changed since the run began are used by a new run, not here"


def test_a_run_that_goes_on_keeps_its_labels_and_splits_and_says_which_have_changed(images, expected):
    rows = rows_of()
    table = write(images / "t.csv", rows)
    listing = load(table).listing
    rows[3] |= {"label": "a"}
    rows[4] |= {"label": "b", "split": "train"}
    write(table, rows)
    config = DataConfig(source="folder", dir=str(table), color="grey")
    dataset = load_dataset(config, listing)
    assert contents(dataset) == expected
    assert dataset.train.labels.tolist() == [n % 2 for n in expected[0]]
    assert dataset.notes == [f"{SINCE} (2): images/03.png (b -> a), images/04.png (a -> b, validation -> train)"]
    assert not is_listed(config, listing)  # who names this table for an evaluation gets what it says


@pytest.mark.parametrize("splits", [("train", "val"), ("train",)])
def test_a_split_that_was_held_out_is_no_change_of_the_table(images, splits):
    table = write(images / "t.csv", rows_of(split=lambda n: splits[n // 2 % len(splits)]))
    dataset = load(table, test_fraction=0.25, validation_fraction=0.25)
    options = {"test_fraction": 0.25, "validation_fraction": 0.25}
    config = DataConfig(source="folder", dir=str(table), color="grey", **options)
    assert contents(load_dataset(config, dataset.listing)) == contents(dataset)
    assert not load_dataset(config, dataset.listing).notes
    assert is_listed(config, dataset.listing)


@pytest.fixture
def grouped(tmp_path):
    """60 different images of two classes, and their rows; 10 groups of 6."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(tmp_path / f"{number}.png")
        rows.append({"path": f"{number}.png", "label": "ab"[number % 2], "group": f"g{number // 6}"})
    return tmp_path, rows


def groups_of(dataset, rows, column="group"):
    group = {row["path"]: row[column] for row in rows}
    return [{group[name] for name in split.ids} for split in (dataset.train, dataset.validation, dataset.test)]


def test_groups_are_never_separated(grouped):
    place, rows = grouped
    dataset = load(write(place / "t.csv", rows))
    assert sum(map(len, groups_of(dataset, rows))) == 10  # each group is in one split
    assert all(10 > len(found) > 0 for found in groups_of(dataset, rows))
    assert "same value in the column group stay together" in said(dataset)
    separated = groups_of(load(place / "t.csv", group_column=""), rows)
    assert separated[0] & separated[2]  # so it is the column that keeps them together


def test_the_column_of_groups_is_an_option_and_a_row_may_have_none(grouped):
    place, rows = grouped
    rows = [{**row, "patient": "" if row["group"] == "g3" else row["group"], "group": "x"} for row in rows]
    dataset = load(write(place / "t.csv", rows), group_column="patient")
    whole = [found - {""} for found in groups_of(dataset, rows, "patient")]
    assert sum(map(len, whole)) == 9
    assert "6 rows have no patient: each is a group of its own" in said(dataset)


def test_groups_that_share_a_copy_stay_together(grouped):
    place, rows = grouped
    for group in range(9):  # the last of each group is a copy of the first of the next
        (place / f"{6 * group + 5}.png").write_bytes((place / f"{6 * group + 6}.png").read_bytes())
    rows[53]["group"] = "g7"  # but of two rows of copies, one is of the group before
    dataset = load(write(place / "t.csv", [row for row in rows if row["group"] in ("g0", "g1", "g4", "g8", "g9")]))
    found = groups_of(dataset, rows)
    assert sum({"g0", "g1"} <= groups for groups in found) == 1
    assert sum(map(len, found)) == 5


def test_a_group_with_more_than_half_of_a_class_is_not_held_out(grouped):
    place, rows = grouped
    rows = [{**row, "group": "large" if number < 40 else f"g{number}"} for number, row in enumerate(rows)]
    for seed in range(5):
        assert "large" in groups_of(load(write(place / "t.csv", rows), split_seed=seed), rows)[0]
    hashes = [b"x"] * 3 + [b"y"]
    assert all(hash_split(np.zeros(4, int), hashes, 0.2, seed)[1].tolist() == [3] for seed in range(5))


def test_a_rare_class_in_mixed_groups_is_on_both_sides(grouped):
    place, rows = grouped
    rows = [{**row, "label": "rare" if number in (5, 59) else "ab"[number % 2]} for number, row in enumerate(rows)]
    for seed in range(5):
        dataset = load(write(place / "t.csv", rows), split_seed=seed, validation_fraction=0.0)
        assert {dataset.class_names[label] for label in dataset.test.labels} == {"a", "b", "rare"}
    one = [{**row, "label": "rare" if number == 5 else "ab"[number % 2]} for number, row in enumerate(rows)]
    dataset = load(write(place / "t.csv", one))
    assert "test has no example of rare, as groups stay together" in said(dataset)


def test_groups_in_several_given_splits_are_said(images):
    table = write(images / "t.csv", rows_of(group=lambda n: f"g{n // 3}"))
    assert "2 groups of the column group lie in several splits, as the table says: g1, g2" in said(load(table))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pyarrow.array([1, 10, 2] * 4, pyarrow.uint8()), ("1", "2", "10")),
        (pyarrow.array([1.0, 10.0, 2.0] * 4), ("1", "2", "10")),
        (pyarrow.array([0.5, 1.0, 1.0] * 4), ("0.5", "1")),
        (pyarrow.array([True, False, False] * 4), ("false", "true")),
        (pyarrow.array(["x", "y", "z"] * 4).dictionary_encode(), ("x", "y", "z")),
        (pyarrow.array([7, 8, 9] * 4).dictionary_encode(), ("7", "8", "9")),
        (pyarrow.array([b"x", b"y", b"z"] * 4), ("x", "y", "z")),
    ],
)
def test_types_of_labels_in_parquet(images, values, names):
    paths = [row["path"] for row in rows_of()]
    parquet.write_table(pyarrow.table({"path": paths, "label": values}), images / "t.parquet")
    dataset = load(images / "t.parquet", validation_fraction=0.0)
    assert dataset.class_names == names


def test_missing_values_and_bytes_of_images_in_parquet(images):
    paths = [row["path"] for row in rows_of()]
    for missing in (float("nan"), None):
        labels = [1.0] * 6 + [2.0] * 5 + [missing]
        parquet.write_table(pyarrow.table({"path": paths, "label": pyarrow.array(labels)}), images / "t.parquet")
        with pytest.raises(InputError, match=r"row 12 of the table .* has no label"):
            load(images / "t.parquet")
    held = [{"bytes": b"\xff", "path": path} for path in paths]
    parquet.write_table(pyarrow.table({"image": held, "label": [0, 1] * 6}), images / "t.parquet")
    with pytest.raises(InputError, match=r"the column image of the table .* holds neither text"):
        load(images / "t.parquet")


def test_a_folder_called_like_a_split_is_no_column(images):
    place = images / "split=train"
    place.mkdir()
    table = pyarrow.table({"path": [f"../{row['path']}" for row in rows_of()], "label": ["a", "b"] * 6})
    parquet.write_table(table, place / "t.parquet")
    assert not load(place / "t.parquet").notes


@pytest.mark.parametrize("memory", [2.0, 0.0])
def test_each_channel_may_be_a_file_of_its_own(images, expected, memory):
    (images / "nir").mkdir()
    for number in range(12):
        side = 2 if number == 4 else 4
        Image.fromarray(np.full((side, side), 255 - number, np.uint8)).save(images / "nir" / f"{number:02d}.png")
    table = write(images / "t.csv", rows_of(nir=lambda n: f"nir/{n:02d}.png"))
    dataset = load(table, color="rgb", path_column=("path", "nir"), memory=memory, image_size=4)
    assert dataset.image_shape == (4, 4, 2)
    for split, found in zip((dataset.train, dataset.validation, dataset.test), expected, strict=True):
        assert split.images[:][:, 1, 1].tolist() == [[20 * n, 255 - n] for n in found]
    sizes = "channels of several sizes, read at that of the first, 4x4 (2x2: nir)"
    assert f"1 of 12 files has {sizes}" in said(dataset)
    frame = Image.new("L", (4, 4), 248)
    frame.save(images / "nir" / "07.png", save_all=True, append_images=[Image.new("L", (4, 4))])
    again = load(table, color="rgb", path_column=("path", "nir"), memory=memory, image_size=4)
    assert "1 of 12 files has several pictures, of which the first is read" in said(again)
    Image.new("RGB", (4, 4)).save(images / "nir" / "00.png")
    with pytest.raises(InputError, match=r"00.png has 3 channels, but with several columns"):
        load(table, color="rgb", path_column=("path", "nir"), memory=memory)
    assert sum(load(table, color="rgb", path_column=("path", "nir"), unreadable="skip").sizes) == 11
    with pytest.raises(InputError, match="gives images of 2 channels, but the model takes 3"):
        load_examples(
            DataConfig(source="folder", dir=str(table), path_column=("path", "nir"), unreadable="skip"),
            "test",
            class_names=("a", "b"),
            preparation=Preparation((4, 4), 3),
        )


def test_channels_of_several_depths_are_refused_unless_their_range_is_named(images):
    (images / "nir").mkdir()
    for number in range(12):
        Image.fromarray(np.full((4, 4), 300 * number, np.uint16)).save(images / "nir" / f"{number:02d}.png")
    table = write(images / "t.csv", rows_of(nir=lambda n: f"nir/{n:02d}.png"))
    for memory in (2.0, 0.0):
        options = {"color": "rgb", "path_column": ("path", "nir"), "memory": memory}
        with pytest.raises(InputError, match=r"path uint8, nir uint16 \(12 images\).* --data.value-range LOW HIGH"):
            load(table, **options)
        dataset = load(table, value_range=(0, 4095), **options)
        train = dataset.train.images[:]
        assert train.max(axis=(0, 1, 2)).tolist() == pytest.approx([220 / 4095, 3300 / 4095])


def test_options_of_tables_are_refused_for_folders_and_other_sources(images):
    (images / "images" / "a").mkdir()
    for options in ({"suffix": ".png"}, {"path_column": ("x",)}, {"group_column": "x"}):
        ours = DataConfig(source="folder", dir=str(images), **options)
        with pytest.raises(InputError, match=f"data.{next(iter(options))} is .* is a folder, and it is for tables"):
            load_dataset(ours)
        with pytest.raises(InputError, match=r"data.source 'digits' does not read it"):
            validate(Config(data=replace(ours, source="digits", dir=None)))


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"suffix": "png"}, "data.suffix is 'png', but must have a dot"),
        ({"path_column": ("a", "a")}, "must name each column once"),
        ({"path_column": ("a", "b"), "color": "grey"}, "each of the columns of data.path_column is a channel"),
    ],
)
def test_rules_of_the_options(options, rule):
    with pytest.raises(InputError, match=rule):
        validate(Config(data=DataConfig(source="folder", dir="t.csv", **options)))


def test_options_on_the_command_line(images, expected):
    rows = rows_of(path=None, label=None, Datei=lambda n: f"{n:02d}", a=lambda n: n % 2, b=lambda n: 1 - n % 2)
    table = write(images / "t.csv", rows)
    words = (
        f"--data.source folder --data.dir {table} --data.path-column Datei --data.label-column a b --data.suffix .png"
    )
    words += " --data.image-dir images --data.split-column split --data.color grey"
    assert contents(load_dataset(parse(words.split()).config.data)) == expected
    assert parse([*words.split(), "--data.group-column", ""]).config.data.group_column == ""
