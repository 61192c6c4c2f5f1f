"""The facts about a data set agree with what is in its files."""

import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from flaxcls.config import DataConfig
from flaxcls.data import from_arrays, load_dataset
from flaxcls.data.contents import READ
from flaxcls.data.copies import Copies, Place, describe_copies, find_copies, list_copies
from flaxcls.data.images import Images
from flaxcls.data.inspection import (
    describe_kinds,
    describe_memory,
    describe_preparation,
    describe_sizes,
    describe_splits,
    inspect_dataset,
    warn_of_memory,
)
from flaxcls.data.preparation import Preparation
from flaxcls.errors import InputError

NOISE = np.random.default_rng(0)


def save(place, shape=(8, 8, 3)):
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(NOISE.integers(0, 256, shape, np.uint8)).save(place)


def config_of(place, **options):
    return DataConfig(source="folder", dir=str(place), **options)


def load(place, problems=None, **options):
    return load_dataset(config_of(place, **options), problems=problems)


def look(place, **options):
    problems = []
    return inspect_dataset(load(place, problems, **options), memory_limit=2, available=None, problems=problems)


@pytest.fixture
def given(tmp_path):
    """Returns a folder of given splits with 6 images of each class in train and 2 in the others."""
    for part, count in (("train", 6), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                save(tmp_path / "pets" / part / name / f"{part}{number}.png")
    return tmp_path / "pets"


def test_source_and_the_origin_of_each_split_are_said(given, tmp_path):
    assert look(given).source == f"folder of classes {given}"
    assert describe_splits(look(given)) == [
        "train: 12, given by folders",
        "validation: 4, given by folders",
        "test: 4, given by folders",
    ]
    shutil.rmtree(given / "test")
    assert describe_splits(look(given, split_seed=3, validation_fraction=0.2)) == [
        "train: 10, the rest",
        "validation: 2, 20 % of train, held out by split seed 3",
        "test: 4, the validation split, given by folders",
    ]
    table = tmp_path / "pets.csv"
    rows = (f"{path},{path.parent.name}" for path in sorted((given / "train").rglob("*.png")))
    table.write_text("\n".join(["path,label", *rows]))
    found = look(table, validation_fraction=0, train_examples=4)
    assert found.source == f"table {table}"
    assert describe_splits(found) == [
        "train: 4, 4 of 10 (data.train_examples)",
        "test: 2, 20 % of all, held out by split seed 0",
    ]


def test_the_share_that_comes_is_said_where_it_is_not_the_one_that_was_asked_for(tmp_path):
    rows = []
    for name in ("cat", "dog"):
        for number in range(20):
            save(tmp_path / "pets" / name / f"{number}.png")
            rows.append([f"pets/{name}/{number}.png", name, str(number // 10)])
        for number in range(2, 10):
            shutil.copy(tmp_path / "pets" / name / "1.png", tmp_path / "pets" / name / f"copy{number}.png")
        save(tmp_path / "same" / name / "1.png")
        for number in range(2, 10):
            shutil.copy(tmp_path / "same" / name / "1.png", tmp_path / "same" / name / f"{number}.png")
        for number in range(2):
            save(tmp_path / "few" / name / f"{number}.png")
    (tmp_path / "t.csv").write_text("\n".join(map(",".join, [["path", "label", "group"], *rows])))

    def origin(place, part="test", **options):
        return look(tmp_path / place, **options).origins[part]

    plain = {"test_from": "train", "validation_fraction": 0}
    found = [origin("pets", split_seed=seed, **plain) for seed in range(10)]
    assert {said.split(", held")[0] for _, said in found} == {
        "20 % of all"
        if abs(count - 11.2) <= 1
        else f"{100 * count / 56:.3g} % of all (20 % were asked for, but copies stay together)"
        for count, _ in found
    }
    assert any("asked" in said for _, said in found)
    count, said = origin("t.csv", group_column="group", **plain)
    assert (count, said.split(", held")[0]) == (
        20,
        "50 % of all (20 % were asked for, but groups and copies stay together)",
    )
    assert origin("few", test_fraction=0.1, **plain) == (
        2,
        "50 % of all (10 % were asked for, but each class gives at least one), held out by split seed 0",
    )
    with pytest.raises(InputError) as refused:
        load(tmp_path / "same", **plain)
    assert str(refused.value) == (
        "the test split of 'same' has no example; it is 0 % of all (20 % were asked for, but 2 of 2 classes have no "
        "two different images to be parted), held out by split seed 0: give more different examples of each class, or "
        "another data.validation_fraction or data.test_fraction."
    )


def test_sizes_and_depths_are_counted(given):
    for number in range(3):
        save(given / "train" / "cat" / f"wide{number}.png", (8, 12, 3))
    save(given / "train" / "dog" / "large.png", (20, 10))
    found = look(given)
    assert describe_sizes(found) == "3 sizes, 8x8 (20), 8x12 (3), 20x10 (1); smallest 8x8, largest 20x10"
    assert describe_kinds(found) == "3 channels of 8 bits (23), 1 channel of 8 bits (1)"
    assert describe_preparation(found) == "the model sees 8x8, 3 channels"  # what is resized is a note
    assert sum("squashed" in note for note in found.notes) == 1


def test_it_is_said_where_nothing_is_resized():
    found = inspect_dataset(load_dataset(DataConfig()), memory_limit=2, available=None)
    assert describe_sizes(found) == "all 8x8"
    assert describe_preparation(found) == "the model sees 8x8, 1 channel; none is resized"
    assert found.source == "the digits of scikit-learn"


def test_deep_images_have_their_depth_and_range(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            pixels = NOISE.integers(0, 4096, (8, 8), np.uint16)
            pixels[0, 0] = 4095
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    found = look(tmp_path, color="grey")
    assert describe_kinds(found) == "1 channel of 16 bits"
    assert describe_preparation(found) == "the model sees 8x8, 1 channel; none is resized"
    assert any("0 becomes black and 4095 white" in note for note in found.notes)


@pytest.mark.parametrize("length", [100, 2 * READ + 100])
def test_copies_are_counted_within_and_across_splits(given, length):
    """The long files agree at both ends and differ in the middle, or nowhere."""

    def lengthen(path, middle):
        path.write_bytes(path.read_bytes() + bytes(READ) + middle + bytes(length))

    cat, dog = given / "train" / "cat", given / "train" / "dog"
    lengthen(cat / "train0.png", b"one")
    for copy in (given / "test" / "cat" / "copy.png", given / "val" / "cat" / "copy.png", cat / "copy.png"):
        shutil.copy(cat / "train0.png", copy)
    shutil.copy(cat / "train1.png", dog / "copy.png")
    shutil.copy(cat / "train2.png", cat / "other.png")
    (cat / "other.png").write_bytes((cat / "other.png").read_bytes() + bytes(READ) + b"two" + bytes(length))
    lengthen(cat / "train2.png", b"six")
    dataset = load(given)
    copies = find_copies(dataset)
    assert (copies.groups, copies.within, copies.contradictions) == (2, {"train": 2}, 1)
    assert copies.across == {("test", "train"): 1, ("validation", "train"): 1, ("test", "validation"): 1}
    assert list_copies(copies, dataset) == [
        "two labels: train/dog/copy.png (dog in train), train/cat/train1.png (cat in train)",
        "in two splits: val/cat/copy.png (cat in validation), train/cat/copy.png (cat in train)",
        "in two splits: test/cat/copy.png (cat in test), train/cat/copy.png (cat in train)",
        "in one split: train/cat/train0.png (cat in train), train/cat/copy.png (cat in train)",
    ]
    assert list_copies(copies, dataset, 1)[1:] == ["... and 3 more"]
    assert describe_copies(copies) == (
        "exact copies: 2 groups; 2 in train repeat another of it, 1 of test is also in train, 1 of validation is "
        "also in train, 1 of test is also in validation, groups with several labels: 1"
    )


def test_splits_that_are_held_out_share_no_copies(given):
    shutil.rmtree(given / "val")
    shutil.rmtree(given / "test")
    for number in range(6):
        shutil.copy(given / "train" / "cat" / f"train{number}.png", given / "train" / "cat" / f"copy{number}.png")
    copies = find_copies(load(given))
    assert (copies.groups, copies.across) == (6, {})


def test_copies_of_arrays_are_those_of_their_pixels():
    images = NOISE.integers(0, 256, (30, 4, 4, 1), np.uint8)
    labels = np.arange(30) % 3
    dataset = from_arrays(images, labels, validation=(images[:3], labels[:3]), test=(images[20:21] // 2, labels[20:21]))
    copies = find_copies(dataset)
    assert copies.across == {("validation", "train"): 3}
    assert copies.pairs[1] == (Place("validation", 1), Place("train", 1))
    assert describe_copies(Copies()) == "exact copies: none"


def test_every_byte_of_a_picture_of_several_files_counts(tmp_path):
    rows = ["red,nir,label,split"]
    for number in range(8):
        for band in ("red", "nir"):
            save(tmp_path / f"{band}{number}.png", (6, 6))
        part = "test" if number > 5 else "val" if number > 3 else "train"
        rows.append(f"red{number}.png,nir{number}.png,{'ab'[number % 2]},{part}")
    shutil.copy(tmp_path / "red0.png", tmp_path / "red6.png")  # one band alone is no copy
    for band in ("red", "nir"):
        shutil.copy(tmp_path / f"{band}1.png", tmp_path / f"{band}7.png")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    options = {"path_column": ("red", "nir")}
    dataset = load(tmp_path / "t.csv", **options)
    assert find_copies(dataset).across == {("test", "train"): 1}
    save(tmp_path / "nir2.png", (6, 6))
    assert load(tmp_path / "t.csv", **options).fingerprint != dataset.fingerprint


def test_memory_is_that_of_the_decoded_images_and_too_much_is_warned_of(given):
    dataset = load(given)
    found = inspect_dataset(dataset, memory_limit=2, available=20 * 2**20, others={"a batch": 3 * 2**20})
    assert found.memory.images == 20 * 8 * 8 * 3
    assert describe_memory(found.memory) == (
        "memory: the decoded images take 3.8 KiB and are kept in memory (data.memory: 2 GiB), a batch 3.0 MiB; "
        "20.0 MiB are there"
    )
    assert warn_of_memory(found.memory) is None
    streamed = inspect_dataset(load(given, memory=0.0), memory_limit=0, available=2**20, others={"a batch": 3 * 2**20})
    assert "read from their files in each epoch" in describe_memory(streamed.memory)
    warning = warn_of_memory(streamed.memory)
    assert warning.startswith("warning: about 3.0 MiB of memory are needed, but 1.0 MiB are there: ")


REFUSED = {
    "a class without images": (lambda pets: (pets / "train" / "cow").mkdir(), {}, "holds no image"),
    "a class that train lacks": (lambda pets: save(pets / "test" / "fox" / "1.png"), {}, "train has none of it"),
    "channels that differ": (
        lambda pets: save(pets / "train" / "cat" / "grey.png", (8, 8)),
        {"color": "stored"},
        "data.color is stored, but the images of",
    ),
    "a class of text files": (
        lambda pets: [(pets / "train" / "cow").mkdir(), (pets / "train" / "cow" / "1.png").write_text("no")],
        {},
        "no image that can be read",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_training_refuses_is_listed_and_the_rest_is_seen(given, case):
    spoil, options, words = REFUSED[case]
    spoil(given)
    with pytest.raises(InputError):
        load(given, **options)
    found = look(given, **options)
    assert len(found.problems) == 1
    assert words in found.problems[0]
    assert found.origins["validation"] == (4, "given by folders")


def test_files_that_are_not_readable_and_rows_that_contradict_are_listed(given):
    (given / "train" / "cat" / "train0.png").write_text("no image")
    found = look(given)
    assert found.problems == []
    assert [line.split(" is ")[0] for line in found.unreadable] == [str(given / "train" / "cat" / "train0.png")]
    table = given / "t.csv"
    rows = [f"{path.relative_to(given)},{path.parent.name}" for path in sorted(given.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *rows, rows[1].replace(",cat", ",dog"), "gone.png,cat"]))
    found = look(table)
    assert [line.split(":")[0] for line in found.problems] == [
        f"1 rows of the table {table} contradict an earlier row of the same file"
    ]
    assert any("gone.png is not there" in line for line in found.unreadable)


def test_what_training_refuses_is_not_said_as_if_it_were_done(tmp_path):
    for name in ("cat", "dog"):
        for number in range(5):
            (tmp_path / "floats" / name).mkdir(parents=True, exist_ok=True)
            pixels = NOISE.normal(0, 1000, (8, 8)).astype(np.float32)
            tifffile.imwrite(tmp_path / "floats" / name / f"{number}.tif", pixels)
            save(tmp_path / "mixed" / name / f"{number}.png", (8, 8, 3) if number else (8, 8))
    found = look(tmp_path / "floats")
    assert "whose range is not known" in found.problems[0]
    assert any(note.endswith(" in the files; which of them are black and white is not known") for note in found.notes)
    assert not any("becomes black" in note for note in found.notes)
    assert describe_preparation(found).startswith("the model would see ")
    found = look(tmp_path / "mixed", color="stored")
    assert "data.color is stored" in found.problems[0]
    assert found.notes == []


def test_why_a_size_and_a_range_were_chosen_is_said(tmp_path):
    def notes_of(kind, shapes, **options):
        for name in ("cat", "dog"):
            for number, shape in enumerate(shapes):
                save(tmp_path / kind / name / f"{number}.png", shape)
        return look(tmp_path / kind, **options).notes

    (note,) = notes_of("mixed", [(20, 20 + number, 3) for number in range(5)])
    assert note.startswith("10 of 10 images are not 224x224 (5 sizes, most often 20x2")
    assert note.endswith("): squashed to that, as no size has more than half (--data.image-size, --data.resize)")
    (note,) = notes_of("large", [(300, 400, 3)] * 5)
    assert note.startswith("10 of 10 images are not 192x256, but 300x400: squashed to that, as they are large: about ")
    (note,) = notes_of("odd", [(8, 8, 3)] * 4 + [(8, 9, 3)])
    assert note.startswith("2 of 10 images are not 8x8, but 8x9: squashed to that, the size of most (")
    assert " to that (--data.image-size" in notes_of("asked", [(8, 8, 3)] * 5, image_size=6)[0]


def test_one_image_is_spoken_of_as_one(given):
    save(given / "train" / "cat" / "grey.png", (8, 9))
    (given / "train" / "dog" / "bad.png").write_text("no image")
    notes = load(given, unreadable="skip").notes
    assert [note.split(":")[0] for note in notes] == [
        "1 of 22 files cannot be used and is left out",
        "1 of 21 images is not 8x8, but 8x9",
        "1 of 21 images is grey and gets three equal channels (--data.color grey)",
    ]


def test_files_that_are_missing_are_not_called_unreadable(given):
    table = given / "t.csv"
    rows = [f"{path.relative_to(given)},{path.parent.name}" for path in sorted(given.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *rows, "gone.png,cat", "lost.png,dog"]))
    (given / "train" / "cat" / "train0.png").write_text("no image")
    save(given / "train" / "cat" / "train1.png", (50, 50))
    (note,) = [note for note in load(table, unreadable="skip", max_pixels=100).notes if "left out" in note]
    missing, others = note.split("\n2 of 22")
    assert missing.splitlines() == [
        "2 of 22 files are not there and are left out:",
        f"  {given / 'gone.png'}",
        f"  {given / 'lost.png'}",
    ]
    assert others.startswith(" files cannot be used and are left out:\n")
    assert "has 2,500 pixels, and at most 100 are read" in others


def test_files_that_have_gone_are_no_copies_of_each_other(given):
    listing = load(given).listing
    for part in ("train", "test"):
        (given / part / "cat" / f"{part}0.png").unlink()
        (given / part / "cat" / f"{part}1.png").unlink()
    dataset = load_dataset(DataConfig(source="folder", dir=str(given), unreadable="replace"), listing)
    assert find_copies(dataset).groups == 0


def test_an_example_that_is_resized_without_a_file_is_counted():
    images = [NOISE.integers(0, 256, (8, 8 + index % 2, 1), np.uint8) for index in range(20)]
    prepared = Images(images, Preparation((8, 8), 1, "squash"))
    found = inspect_dataset(from_arrays(prepared, np.arange(20) % 2), memory_limit=2, available=None)
    assert describe_preparation(found) == "the model sees 8x8, 1 channel; 10 are squashed to that"


@pytest.mark.parametrize("unreadable", ["skip", "replace"])
def test_the_splits_are_counted_as_training_counts_them(given, unreadable):
    """One file is damaged in its header, one later, where only the whole file shows it."""
    (given / "train" / "cat" / "train0.png").write_text("no image")
    cut = given / "train" / "dog" / "train1.png"
    cut.write_bytes(cut.read_bytes()[:-60])
    trained = load(given, unreadable=unreadable)
    found = look(given, unreadable=unreadable)
    assert tuple(count for count, _ in found.origins.values()) == trained.sizes
    assert trained.sizes[0] == {"skip": 10, "replace": 11}[unreadable]
    assert len(found.unreadable) == {"skip": 2, "replace": 1}[unreadable]
    assert not any("left out" in note for note in found.notes)  # what is not readable has a list of its own


def test_deep_images_that_are_replaced_are_counted(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(NOISE.integers(0, 4096, (32, 32), np.uint16)).save(tmp_path / name / f"{number}.png")
    cut = tmp_path / "a" / "2.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    for unreadable in ("skip", "replace"):
        options = {"unreadable": unreadable, "memory": 0.0}
        counts = tuple(count for count, _ in look(tmp_path, **options).origins.values())
        assert counts == load(tmp_path, **options).sizes


def test_transparency_is_named_where_the_files_say_so(tmp_path):
    for name in ("a", "b"):
        for number in range(5):
            save(tmp_path / "rgba" / name / f"{number}.png", (8, 8, 4))
            save(tmp_path / "grey" / name / f"{number}.png", (8, 8, 2))
            bands = NOISE.integers(0, 256, (8, 8, 4), np.uint8)
            for kind, sample in (("tiff", "unassalpha"), ("bands", "unspecified")):
                (tmp_path / kind / name).mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(
                    tmp_path / kind / name / f"{number}.tif", bands, photometric="rgb", extrasamples=[sample]
                )
    said = {
        kind: describe_preparation(look(tmp_path / kind, color="stored")) for kind in ("rgba", "grey", "tiff", "bands")
    }
    assert said["rgba"] == said["tiff"] == "the model sees 8x8, 4 channels (red, green, blue, alpha); none is resized"
    assert said["grey"] == "the model sees 8x8, 2 channels (grey, alpha); none is resized"
    assert said["bands"] == "the model sees 8x8, 4 channels; none is resized"
    shown = load(tmp_path / "rgba", color="rgb").preparation
    assert shown.name_channels() == ["red", "green", "blue"]
    in_memory, streamed = (load(tmp_path / "rgba", color="stored", memory=memory) for memory in (2.0, 0.0))
    assert in_memory.preparation == streamed.preparation
    assert load_dataset(
        DataConfig(source="folder", dir=str(tmp_path / "rgba"), color="stored"), in_memory.listing
    ).preparation.name_channels() == ["red", "green", "blue", "alpha"]


def test_bands_that_are_no_colours_are_not_called_transparent(tmp_path):
    for name in ("a", "b"):
        for number in range(5):
            save(tmp_path / name / f"{number}.png", (8, 8, 4) if number else (8, 8, 2))
        for number, channels in enumerate((2, 4, 4)):
            bands = NOISE.integers(0, 256, (8, 8, channels), np.uint8)
            path = tmp_path / name / f"{number}.tif"
            tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
    listing = load(tmp_path, [], memory=0).listing
    for dataset in (load(tmp_path, [], memory=0), load_dataset(config_of(tmp_path, memory=0.0), listing)):
        assert [note for note in dataset.notes if "transparent" in note or "grey" in note] == [
            "2 of 16 images are grey and get three equal channels (--data.color grey)",
            "10 of 16 images are transparent and are laid on white",
        ]


def test_images_that_use_little_of_the_range_are_counted(tmp_path):
    """Two images of 12 bits are among those of 16, and one of them is at 32768; types that differ have no range."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number, (low, high) in enumerate([(0, 65000), (0, 4095), (32768, 36863), (300, 310), (0, 30000)]):
            pixels = np.linspace(low, high, 64).reshape(8, 8).astype(np.uint16)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    little = [
        "2 of 10 images use less than 1% of that, so that a model sees hardly any differences",
        "4 of 10 images use 1% to 12.5% of that, which is little contrast to a model (--data.value-range)",
    ]
    assert look(tmp_path, color="grey").notes[1:] == little
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / name / "float.tif", np.linspace(-20, 5, 64, dtype=np.float32).reshape(8, 8))
    assert look(tmp_path, color="grey").notes == [
        "values of -20..65000 in the files; which of them are black and white is not known",
        little[0].replace("2 of 10", "4 of 12"),
        little[1].replace("of 10", "of 12"),
    ]


UNCERTAIN = {
    "no folder": (("1.png", "2.png"), "has no folders of classes: it needs one for each class"),
    "flat splits": (("train/1.png", "test/2.png"), "has no folders of classes: it needs one for each class"),
    "split or class": (("train/a/1.png", "b/2.png"), "has the split train and beside it b, which is no split"),
}


@pytest.mark.parametrize("case", UNCERTAIN)
def test_images_whose_labels_are_not_known_are_one_group(tmp_path, case):
    paths, words = UNCERTAIN[case]
    for path in paths:
        save(tmp_path / path)
    with pytest.raises(InputError, match=words):
        load(tmp_path)
    dataset, found = load(tmp_path, []), look(tmp_path)
    assert dataset.described == f"data set {tmp_path.name}: 2 images without a label"
    assert found.source == f"folder of images {tmp_path}"
    assert sorted(dataset.train.ids) == sorted(paths)
    assert describe_splits(found) == ["train: 2, all", "test: 0, none is held out"]
    (problem,) = found.problems
    assert words in problem
    assert found.notes == ["no image has a label that is certain: all are one group, from which nothing is held out"]


def test_a_folder_without_an_image_is_refused_even_if_it_is_only_looked_at(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        look(tmp_path)
