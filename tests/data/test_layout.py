"""Folders as people have them: what becomes a class, what a split, and what is said or asked."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from flaxcls import evaluate, explain, predict, report
from flaxcls.config import DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.folder import load_examples
from flaxcls.data.layout import part_of
from flaxcls.data.preparation import Preparation
from flaxcls.errors import InputError
from flaxcls.run import fit


def make(place, folders):
    """Writes so many images, all different, into each folder, or a text into a file."""
    rng = np.random.default_rng(0)
    for name, content in folders.items():
        if isinstance(content, str):
            (place / name).write_text(content)
            continue
        (place / name).mkdir(parents=True, exist_ok=True)
        for number in range(content):
            image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(place / name / f"{number}.png")
    return place


def classes(*folders, cat=10, dog=10):
    return {f"{folder}/{name}": count for folder in folders for name, count in (("cat", cat), ("dog", dog))}


def load(place, **options):
    return load_dataset(DataConfig(source="folder", dir=str(place), **options))


def totals(dataset):
    """The number of images in train and validation together, and in test."""
    counts = {part: sum(numbers.values()) for part, numbers in dataset.class_counts.items()}
    return counts["train"] + counts["validation"], counts["test"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(
            (name, "train")
            for name in ("train", "Training", "TRAIN", "trainset", "train_set", "train_images", "seg_train")
        ),
        *((name, "train") for name in ("train2017", "Train Data", "images-train")),
        *((name, "validation") for name in ("val", "valid", "Validation", "dev", "valset", "val_images", "val2017")),
        *((name, "test") for name in ("test", "Testing", "TEST_SIMPLE", "testset", "test_set", "seg_test")),
        *((name, None) for name in ("cat", "test_tube", "training_shoes", "evaluation", "part1", "images", "1", "é")),
    ],
)
def test_usual_names_of_splits_are_known(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("TRAIN", "TEST_SIMPLE"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("d/train/images", "d/test/images"),
    ],
)
def test_splits_under_usual_names_are_splits(tmp_path, train, test):
    make(tmp_path, classes(train) | classes(test, cat=3, dog=4))
    dataset = load(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.class_counts["test"] == {"cat": 3, "dog": 4}
    assert totals(dataset) == (20, 7)
    assert dataset.test.ids[0] == f"{test}/cat/0.png"


def test_names_of_splits_that_are_not_literal_are_said(tmp_path):
    dataset = load(make(tmp_path, classes("Training", "Testing")))
    assert dataset.notes == ["splits by the names of folders: Testing is test, Training is train"]


@pytest.mark.parametrize("folders", [classes("a", "b"), classes("a", "b") | {"c": 5}, classes("2019", "2020", "2021")])
def test_folders_with_folders_of_the_same_names_are_asked_about(tmp_path, folders):
    with pytest.raises(InputError, match=r"folders have the same names, such as cat, dog: .* to train, val and test"):
        load(make(tmp_path, folders))


def test_class_folders_with_folders_of_other_names_are_classes_and_that_is_said(tmp_path):
    dataset = load(make(tmp_path, {"cat/siamese": 6, "cat/persian": 6, "cat": 2, "dog": 9}))
    assert dataset.class_names == ("cat", "dog")
    assert sum(totals(dataset)) == 23
    (note,) = dataset.notes
    assert note.endswith("cat (14 in persian, siamese)")


def test_splits_inside_of_class_folders_are_splits(tmp_path):
    folders = {"cat/train": 10, "cat/test": 3, "dog/train": 10, "dog/test": 4}
    dataset = load(make(tmp_path, folders))
    assert dataset.class_counts["test"] == {"cat": 3, "dog": 4}
    assert dataset.notes == ["the splits test, train are folders inside the class folders"]
    make(tmp_path, {"cow": 0})
    with pytest.raises(InputError, match="cow holds no image"):
        load(tmp_path)


@pytest.mark.parametrize("inside", [classes("archive/d"), classes("archive/d/train", "archive/d/test")])
def test_one_folder_too_high_is_descended_from(tmp_path, inside):
    dataset = load(make(tmp_path, inside | {"__MACOSX/archive/d/cat": 4, "": 2}))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.notes == [
        f"{tmp_path} holds the folder archive/d alone: its folders are read",
        "left out, as they are hidden or left behind by tools (4): __MACOSX (4)",
        "left out, as they lie in no class folder (2): 0.png, 1.png",
    ]


def test_a_test_folder_without_classes_is_left_out_and_counted(tmp_path):
    dataset = load(make(tmp_path, classes("train", "val") | {"test": 5}))
    assert totals(dataset) == (20, 20)
    assert dataset.notes[0] == "left out, as it has no class folders and so no labels: test with its 5 images"


def test_images_beside_the_class_folders_are_counted(tmp_path):
    dataset = load(make(tmp_path, classes("train", "test") | {"train": 2, "": 1}))
    assert dataset.notes == ["left out, as they lie in no class folder (3): 0.png, train/0.png, train/1.png"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (classes("train") | {"val": 5}, "val has 5 images and no class folders.*--data.exclude 'val'"),
        (classes("test") | {"train": 5}, "train has 5 images and no class folders"),
        (classes("train") | {"evaluation/cat": 2}, "beside it evaluation, which is no split"),
        (classes("train") | {"more": 2}, "beside it more, which is no split.*--data.exclude 'more'"),
        (
            {"cat": 5, "dog": 5, "test": 5},
            "has the folder test beside the class folders. If its 5 images have no labels",
        ),
        ({"cat": 5, "dog": 5} | classes("test"), "has the split test and beside it cat, dog"),
        (
            {"train": 5, "test": 5, "train.csv": "id,label"},
            r"10 images lie directly in test \(5\), train \(5\)\. .*name it .*: train.csv",
        ),
        (
            {"train": 5, "test": 5, "original": 5},
            r"15 images lie directly in original \(5\), test \(5\), train",
        ),
        (classes("train/train", "train/test"), "has the classes test, train, which are names of splits"),
        ({"": 1}, r"no folders of classes: it needs one for each class.* 1 image lies directly in it \(1\)\.$"),
        ({"cat": 5, "dog": 0, "dog/a.txt": "x"}, r"dog holds no image \(but dog/a.txt\)"),
    ],
)
def test_what_is_not_certain_is_asked(tmp_path, folders, message):
    with pytest.raises(InputError, match=message):
        load(make(tmp_path, folders))


def test_a_class_may_be_called_train(tmp_path):
    dataset = load(make(tmp_path, {"bus": 8, "car": 8, "train": 8}))
    assert dataset.class_names == ("bus", "car", "train")
    assert dataset.notes == ["train is a class, not a split, since it has no class folders"]


def test_validation_stands_for_test_unless_train_is_asked_for(tmp_path):
    make(tmp_path, classes("train") | classes("val", cat=4, dog=4))
    stands = load(tmp_path)
    assert totals(stands) == (20, 8)
    assert all(name.startswith("val/") for name in stands.test.ids)
    assert "has no test split: its validation split stands for it" in stands.notes[0]
    carved = load(tmp_path, test_from="train")
    assert all(name.startswith("val/") for name in carved.validation.ids)
    assert all(name.startswith("train/") for name in carved.test.ids)
    assert carved.notes == []


def test_the_same_in_a_table(tmp_path):
    place = make(tmp_path, classes("train", "val"))
    rows = [f"{path.relative_to(place)},{path.parent.name},{path.parts[-3]}" for path in sorted(place.rglob("*.png"))]
    (place / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    assert all(name.startswith("val/") for name in load(place / "t.csv").test.ids)
    assert all(name.startswith("train/") for name in load(place / "t.csv", test_from="train").test.ids)
    left = load(place / "t.csv", exclude=("*/0.png",))
    assert totals(left) == (18, 18)
    assert left.notes[0] == "data.include and data.exclude leave out 4 of 40 files"


def test_patterns_leave_files_and_whole_folders_out(tmp_path):
    folders = {"cat/images": 8, "cat/masks": 8, "dog/images": 8, "dog/masks": 8, "docs": 3}
    dataset = load(make(tmp_path, folders), exclude=("masks", "docs"))
    assert dataset.class_names == ("cat", "dog")
    assert sum(totals(dataset)) == 16
    assert "data.include and data.exclude leave out 19 of 35 files" in dataset.notes
    for options, message in (
        ({"exclude": ("mask",)}, "has 'mask', which matches nothing in"),
        ({"exclude": ("*.png",)}, "leave none of the 35 files"),
        ({"include": ("*.gif",)}, r"has '\*.gif', which matches nothing in"),
    ):
        with pytest.raises(InputError, match=message):
            load(tmp_path, **options)


def test_masks_beside_the_images_are_pointed_at(tmp_path):
    make(tmp_path, {"cat": 8, "dog": 8})
    for number in range(8):
        (tmp_path / f"cat/{number}_mask.png").write_bytes((tmp_path / f"cat/{number}.png").read_bytes())
    (note,) = load(tmp_path).notes
    assert "8 of 24 images" in note
    assert "--data.exclude '*_mask*'" in note


def test_masks_with_the_names_of_the_images_are_pointed_at(tmp_path):
    make(tmp_path, {"cat": 8, "dog": 8})
    for number in range(8):
        Image.new("RGB", (8, 8), (number, 9, 9)).save(tmp_path / f"cat/{number}.jpg")
    (note,) = load(tmp_path).notes
    assert "8 of 24 images have the name of another one with another ending, such as cat/0.png" in note
    assert sum(totals(load(tmp_path, exclude=("cat/*.png",)))) == 16


def test_one_rule_by_content(tmp_path):
    make(tmp_path, {"cat": 8, "dog": 8, "cat/notes.txt": "no image", "labels.csv": "a,b"})
    (tmp_path / "cat/0.png").rename(tmp_path / "cat/0")
    dataset = load(tmp_path)
    assert sum(totals(dataset)) == 16
    assert dataset.notes == ["passed over, as they are no images (2): cat/notes.txt, labels.csv"]
    (tmp_path / "dog/empty.jpg").touch()
    with pytest.raises(InputError, match="1 of 17 files cannot be used"):
        load(tmp_path)


def test_class_names_that_look_alike_are_said(tmp_path):
    dataset = load(make(tmp_path, {"cat": 8, "cat ": 4, "Cat": 3, "dog": 8}))
    assert dataset.notes == [
        "classes whose names differ only by blanks, case or accents: 'Cat' (3), 'cat' (8), 'cat ' (4)"
    ]


def test_files_whose_names_are_no_utf8_are_usable_and_classes_are_refused(tmp_path):
    make(tmp_path / "d", {"cat": 8, "dog": 8})
    (tmp_path / "d/cat/0.png").rename(tmp_path / "d/cat" / os.fsdecode(b"\xe9.png"))
    dataset = load(tmp_path / "d", memory=0.0)
    names = [name for split in dataset.splits.values() for name in split.ids]
    assert "cat/\\xe9.png" in names
    assert all(len(split.images[:]) == len(split.labels) for split in dataset.splits.values())
    (tmp_path / "d/cat").rename(tmp_path / "d" / os.fsdecode(b"c\xe9"))
    with pytest.raises(InputError, match=r"the name of the class folder .*d/c\\xe9 is no UTF-8"):
        load(tmp_path / "d")


def test_another_folder_that_a_run_is_evaluated_on_may_lack_what_its_patterns_name(tmp_path):
    place = make(tmp_path, {"cat/left": 2, "cat/right": 2, "dog/left": 3, "dog/right": 3})
    config = DataConfig(source="folder", dir=str(place), exclude=("*_mask.*",))
    _, split, _ = load_examples(config, "test", class_names=("cat", "dog"), preparation=Preparation((8, 8), 3))
    assert np.bincount(split.labels).tolist() == [4, 6]
    only = make(tmp_path / "only", {"cat/left": 2, "cat/right": 2})
    config = DataConfig(source="folder", dir=str(only))
    _, split, _ = load_examples(config, "test", class_names=("cat", "dog"), preparation=Preparation((8, 8), 3))
    assert np.bincount(split.labels).tolist() == [4]


@pytest.mark.slow
def test_every_command_writes_names_that_are_no_utf8(tmp_path, plain_config, quiet, capfd):
    place = make(tmp_path / os.fsdecode(b"d\xe9"), {"cat": 40, "dog": 40, "cow": 40})
    for path in [*place.rglob("*.png")]:
        path.rename(path.parent / os.fsdecode(b"n\xe9" + os.fsencode(path.name)))
    (place / "cat" / os.fsdecode(b"\xe9.jpg")).touch()
    data = DataConfig(source="folder", dir=str(place), unreadable="skip")
    run = fit(replace(plain_config, data=data), workdir=tmp_path / "run", console=quiet).workdir
    assert evaluate.main([str(run)]) == 0
    ids = parquet.read_table(run / "evaluation/test/predictions.parquet")["id"].to_pylist()
    assert all(name.split("/")[1].startswith(r"n\xe9") for name in ids)
    assert report.main([str(run)]) == 0
    image = place / "cat" / os.fsdecode(b"n\xe90.png")
    assert explain.main([str(run), str(image), "--methods", "occlusion"]) == 0
    for end in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"out.{end}"
        assert predict.main([str(run), str(place), "--out", str(out)]) == 1  # one cannot be read
        assert b"xe90.png" in out.read_bytes()
    assert r"d\xe9/cat/\xe9.jpg is no image" in capfd.readouterr().err
