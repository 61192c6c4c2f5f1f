"""tensorflow-datasets on a small set that is prepared here, without TensorFlow."""

import io
import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import requires
from typing import ClassVar

import cv2
import numpy as np
import PIL.Image
import psutil
import pytest
import tensorflow_datasets as tfds

from flaxcls.config import DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.images import Images
from flaxcls.data.inspection import inspect_dataset
from flaxcls.data.tfds import PREPARE
from flaxcls.errors import InputError
from flaxcls.train import main

pytestmark = pytest.mark.usefixtures("shared_programs")


def picture(number, size=8):
    """A picture whose red is its number, so that channel order and identity can be told."""
    image = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    image[0, 0] = (number, 0, 255)
    return image


class Toy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None
    SIZES: ClassVar = {"train": 40, "test": 12}
    SHAPE = (8, 8, 3)

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.SHAPE, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in self.SIZES.items()}

    def _size(self, number):
        return 8

    def _generate_examples(self, count):
        for number in range(count):
            image = picture(number, self._size(number))
            png = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
            yield number, {"image": io.BytesIO(png), "label": number % 2}


class Uneven(Toy):
    SHAPE = (None, None, 3)

    def _size(self, number):
        return 8 + number % 2


class OnlyValidation(Toy):
    SIZES: ClassVar = {"train": 40, "validation": 10}


class NoTrain(Toy):
    SIZES: ClassVar = {"test": 12}


class Unlabelled(Toy):
    def _generate_examples(self, count):
        for number, example in super()._generate_examples(count):
            yield number, {**example, "label": -1}


class UnlabelledTest(Toy):
    SIZES: ClassVar = {"train": 40, "validation": 10, "test": 12}

    def _generate_examples(self, count):
        for number, example in super()._generate_examples(count):
            yield number, {**example, "label": -1 if count == self.SIZES["test"] else example["label"]}


class Deep(Toy):
    """Grey of 16 bits, 12 of which are used."""

    SHAPE = (8, 8, 1)

    def _generate_examples(self, count):
        for number in range(count):
            pixels = np.full((8, 8), 3000 + number, np.uint16)
            yield number, {"image": io.BytesIO(cv2.imencode(".png", pixels)[1].tobytes()), "label": number % 2}


class Turned(Toy):
    """JPEG that metadata turns."""

    def _generate_examples(self, count):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        for number in range(count):
            file = io.BytesIO()
            pixels = np.zeros((8, 8, 3), np.uint8)
            pixels[:4] = 200
            PIL.Image.fromarray(pixels).save(file, "JPEG", quality=100, exif=exif)
            yield number, {"image": io.BytesIO(file.getvalue()), "label": number % 2}


class Transparent(Toy):
    """Four channels, where the feature has three."""

    def _generate_examples(self, count):
        for number in range(count):
            pixels = np.dstack([picture(number, 8), np.full((8, 8), 100, np.uint8)])
            yield number, {"image": io.BytesIO(cv2.imencode(".png", pixels)[1].tobytes()), "label": number % 2}


class FourChannels(Transparent):
    SHAPE = (8, 8, 4)


ODD = (Deep, Turned, Transparent, FourChannels)


class NoLabel(Toy):
    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.SHAPE, encoding_format="png"),
            "label": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, count):
        for number, example in super()._generate_examples(count):
            yield number, {**example, "label": "cat"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    for builder in (Toy, Uneven, OnlyValidation, NoTrain, NoLabel, Unlabelled, UnlabelledTest, *ODD):
        builder(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


def load(data_dir, name):
    return load_dataset(DataConfig(source="tfds", name=name, dir=str(data_dir)))


@pytest.mark.parametrize("memory", [2.0, 0.0])
def test_images_of_several_sizes_are_read_from_memory_and_from_the_records(data_dir, memory):
    config = DataConfig(source="tfds", name="uneven", dir=str(data_dir), image_size=8, memory=memory)
    dataset = load_dataset(config)
    assert isinstance(dataset.test.images, Images)
    assert dataset.test.images.in_memory == bool(memory)
    assert {0, 2, 4, 6, 8, 10} <= set(dataset.test.images[:][:, 0, 0, 0].tolist())  # these are 8x8 already
    assert [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] == [36, 4, 12]
    moved = [pickle.loads(pickle.dumps(dataset.train.images.take(np.array([n, 3])))) for n in range(2)]  # to a worker
    for number, images in enumerate(moved):
        np.testing.assert_array_equal(images[:], dataset.train.images[np.array([number, 3])])
    np.testing.assert_array_equal(
        dataset.train.images.random_crops(np.arange(3), np.arange(3), seed=0, least_area=0.5),
        load_dataset(replace(config, memory=2.0)).train.images.random_crops(
            np.arange(3), np.arange(3), seed=0, least_area=0.5
        ),
    )


def test_a_worker_opens_the_records_once(data_dir):
    """Batches refer to the same open files; ImageNet has a thousand."""
    dataset = load_dataset(DataConfig(source="tfds", name="toy", dir=str(data_dir), memory=0.0))
    batches = [pickle.loads(pickle.dumps(dataset.train.images.take(np.array([number])))) for number in range(2)]
    descriptors = psutil.Process().num_fds()
    for batch in batches:
        batch[:]
    batches.append(pickle.loads(pickle.dumps(dataset.train.images.take(np.array([2])))))
    opened = psutil.Process().num_fds()
    batches[-1][:]
    assert psutil.Process().num_fds() == opened
    assert opened - descriptors <= 1  # of one shard


def test_images_of_one_size_that_do_not_fit_into_the_memory_are_read_from_the_records(data_dir):
    held = load(data_dir, "toy")
    read = load_dataset(DataConfig(source="tfds", name="toy", dir=str(data_dir), memory=0.0))
    for part in ("train", "validation", "test"):
        ours, theirs = getattr(held, part), getattr(read, part)
        assert isinstance(ours.images, np.ndarray)
        assert not theirs.images.in_memory
        assert theirs.images.whole
        np.testing.assert_array_equal(theirs.images[:], ours.images)
        np.testing.assert_array_equal(theirs.labels, ours.labels)


@pytest.mark.parametrize("kind", ODD)
def test_the_memory_changes_no_picture(data_dir, kind):
    held, read = (
        load_dataset(DataConfig(source="tfds", name=kind.name, dir=str(data_dir), memory=memory)) for memory in (2, 0)
    )
    assert isinstance(held.train.images, np.ndarray)
    np.testing.assert_array_equal(held.train.images, read.train.images[:])
    assert held.image_shape == (8, 8, {Deep: 1, FourChannels: 4}.get(kind, 3))
    assert held.preparation == read.preparation
    if kind is Deep:
        values = np.unique(np.rint(np.concatenate([s.images[:, 0, 0, 0] for s in held.splits.values()]) * 4095))
        np.testing.assert_array_equal(values, np.arange(3000, 3040))
        assert "3000..3039" in held.notes[0]
        assert "0 becomes black and 4095 white" in held.notes[0]
    elif kind is Turned:
        assert (held.test.images[:, :, 5:] > 150).all()
        assert (held.test.images[:, :, :3] < 50).all()


@pytest.mark.parametrize("memory", [2, 0])
def test_a_size_that_is_asked_for_is_obeyed(data_dir, memory):
    dataset = load_dataset(DataConfig(source="tfds", name="toy", dir=str(data_dir), image_size=(4, 6), memory=memory))
    assert dataset.image_shape == (4, 6, 3)
    assert dataset.train.images[:].shape == (36, 4, 6, 3)
    assert any("52 of 52 images are not 4x6, but 8x8: squashed to that (--" in note for note in dataset.notes)


def test_every_picture_is_read_once_in_its_colours(data_dir):
    dataset = load(data_dir, "toy")
    assert dataset.class_names == ("cat", "dog")
    assert [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] == [36, 4, 12]
    assert sorted(dataset.test.images[:, 0, 0, 0].tolist()) == list(range(12))
    for split in (dataset.train, dataset.validation, dataset.test):
        for image, label in zip(split.images, split.labels, strict=True):
            np.testing.assert_array_equal(image, picture(image[0, 0, 0]))
            assert label == image[0, 0, 0] % 2


@pytest.mark.parametrize("name", ["toy", "toy:1.0.0"])
def test_the_version_may_be_named(data_dir, name):
    assert load(data_dir, name).name.startswith("toy")


def test_a_validation_split_stands_for_a_test_split_that_is_not_there(data_dir):
    dataset = load(data_dir, "only_validation")
    assert sorted(dataset.test.images[:, 0, 0, 0].tolist()) == list(range(10))
    assert len(dataset.train.labels) + len(dataset.validation.labels) == 40
    (note,) = dataset.notes
    assert note.startswith("only_validation/1.0.0 has no test split: its validation split stands for it")


@pytest.mark.parametrize("name", ["only_validation", "unlabelled_test"])
def test_a_test_split_can_be_held_out_of_train_instead(data_dir, name):
    dataset = load_dataset(DataConfig(source="tfds", name=name, dir=str(data_dir), test_from="train"))
    assert sorted(dataset.validation.images[:, 0, 0, 0].tolist()) == list(range(10))
    assert [len(dataset.train.labels), len(dataset.test.labels)] == [32, 8]


def test_a_validation_split_stands_for_a_test_split_without_labels_and_that_is_said(data_dir):
    dataset = load(data_dir, "unlabelled_test")
    assert sorted(dataset.test.images[:, 0, 0, 0].tolist()) == list(range(10))
    assert len(dataset.train.labels) + len(dataset.validation.labels) == 40
    assert [*dataset.notes] == [
        "the test split of unlabelled_test/1.0.0 has no labels: its validation split replaces it"
    ]
    assert not load(data_dir, "toy").notes


def test_tensorflow_is_not_imported(data_dir):
    code = (
        "import sys; from flaxcls.config import DataConfig; from flaxcls.data import load_dataset\n"
        f"load_dataset(DataConfig(source='tfds', name='toy', dir={str(data_dir)!r}))\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_set_says_what_was_looked_for_where_and_how_to_prepare_it(data_dir):
    with pytest.raises(InputError) as error:
        load(data_dir, "cifar10")
    message = str(error.value)
    assert "'cifar10' was looked for in " + str(data_dir) in message
    assert "toy" in message
    assert f"tfds build cifar10 --data_dir {data_dir} --file_format array_record" in message
    with pytest.raises(InputError, match="Did you mean 'toy'"):
        load(data_dir, "tyo")
    with pytest.raises(InputError, match=r"looked for in .*/nowhere"):
        load(data_dir / "nowhere", "toy")


def as_tfrecord(data_dir, tmp_path, **more):
    folder = tmp_path / "toy" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (data_dir / "toy" / "1.0.0").iterdir():
        (folder / path.name.replace("array_record", "tfrecord")).write_bytes(path.read_bytes())
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord", **more}))
    return folder


def test_one_prepared_as_tfrecord_gets_the_command_that_converts_it(data_dir, tmp_path, monkeypatch, capfd):
    folder = as_tfrecord(data_dir, tmp_path)
    message = (
        rf"prepared as tfrecord.*\n.*convert_format --dataset_version_dir {folder} .* --out_dir {tmp_path}-array_rec"
    )
    with pytest.raises(InputError, match=message):
        load(tmp_path, "toy")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load(".", "toy")
    assert main(["--data.source", "tfds", "--data.name", "toy", "--data.dir", ".", "--workdir", "run"]) == 2
    assert "prepared as tfrecord" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_one_that_has_both_forms_is_read(data_dir, tmp_path):
    folder = as_tfrecord(data_dir, tmp_path, alternativeFileFormats=["array_record"])
    for path in (data_dir / "toy" / "1.0.0").glob("*array_record*"):
        (folder / path.name).write_bytes(path.read_bytes())
    assert len(load(tmp_path, "toy").test.labels) == 12


def test_labels_out_of_range_are_an_error_of_the_command(data_dir, tmp_path, capfd):
    code = main(
        [
            "--data.source",
            "tfds",
            "--data.name",
            "unlabelled",
            "--data.dir",
            str(data_dir),
            "--workdir",
            str(tmp_path / "run"),
        ]
    )
    assert code == 2
    assert "the label -1, but its 2 classes are numbered 0..1" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_damaged_are_an_error_with_their_name(data_dir, tmp_path):
    folder = tmp_path / "toy" / "1.0.0"
    shutil.copytree(data_dir / "toy", folder.parent)
    shard = next(folder.glob("toy-train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match=r"'toy' in .* cannot be read"):
        load(tmp_path, "toy")
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"'toy' in .* cannot be read"):
        load(tmp_path, "toy")
    with pytest.raises(InputError, match=r"'to-y' in .* cannot be read"):
        load(tmp_path, "to-y")


def test_the_command_that_prepares_installs_the_packages_of_the_extra():
    extra = [line.split(";")[0].strip() for line in requires("flaxcls") if "extra == 'prepare'" in line]
    assert extra
    for package in extra:
        assert package.split(">")[0].replace("-", "_") in PREPARE.replace("-", "_")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_train", "none named train"),
        ("no_label", "not a data set for image classification"),
    ],
)
def test_a_set_that_does_not_fit(data_dir, name, message):
    with pytest.raises(InputError, match=message):
        load(data_dir, name)


@pytest.mark.parametrize("memory", [2.0, 0.0])
def test_it_is_said_where_the_splits_come_from_and_copies_are_found_by_the_bytes_of_the_records(data_dir, memory):
    dataset = load_dataset(DataConfig(source="tfds", name="toy", dir=str(data_dir), memory=memory))
    found = inspect_dataset(dataset, memory_limit=2, available=None)
    assert found.source == f"tfds toy/1.0.0 in {data_dir}/toy/1.0.0"
    assert dict(found.origins) == {
        "train": (36, "the rest"),
        "validation": (4, "10 % of train, held out by split seed 0"),
        "test": (12, "its split test"),
    }
    pixels = np.concatenate([split.images[:] for split in dataset.splits.values()]).reshape(52, -1)
    _, counts = np.unique(pixels, axis=0, return_counts=True)
    assert found.copies.groups == (counts > 1).sum()
    assert found.memory.images == 52 * 8 * 8 * 3
