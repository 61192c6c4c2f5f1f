"""Image-classification data sets that tensorflow-datasets has prepared as ArrayRecord, read without TensorFlow."""

import difflib
import math
import pickle
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.constants import DATA_DIR
from tensorflow_datasets.core.read_only_builder import builder_from_files

from flaxcls.config import ColorName, DataConfig
from flaxcls.data.arrange import Arranged, arrange
from flaxcls.data.contents import number_of
from flaxcls.data.dataset import Dataset, Split, from_splits, hold_out, validation_stands_for_test
from flaxcls.data.decode import decode, name_errors, read_head
from flaxcls.data.picture import Head, Picture, check_values, head_of
from flaxcls.data.stored import Stored
from flaxcls.errors import InputError
from flaxcls.storage import as_path, in_bucket, local_copy

# Most builders need TensorFlow to prepare their data; it stays out of the environment for training. The packages are
# those of the extra `prepare`.
PREPARE = (
    "python3 -m venv .prepare && .prepare/bin/pip install tensorflow apache-beam importlib_resources mlcroissant "
    "tensorflow-datasets && .prepare/bin/tfds"
)


def load(config: DataConfig) -> Dataset:
    """Returns the data set that was prepared as `config.name` below `config.dir`.

    It is decoded into memory if it needs at most `config.memory`. Otherwise each image is read when it is needed. A
    data set in a bucket is copied to this machine first.

    If there is no test split, or it has no labels, the validation split replaces it (as for ImageNet), unless
    `config.test_from` is train; if there is none either, it is taken out of train. A missing validation split is taken
    out of train.

    Raises:
      InputError: if the data set does not exist, is not in ArrayRecord format, or does not consist of labelled images.
    """
    name, directory = str(config.name), _directory(config)
    try:
        return _load(config, _open(name, directory))
    except InputError:
        raise
    except Exception as error:  # damaged files raise many types
        raise InputError(
            f"data.name {name!r} in {directory} cannot be read: {type(error).__name__}: {error}. Correct the name, "
            "or prepare the data set again."
        ) from error


def _directory(config: DataConfig) -> Path:
    place = as_path(config.dir or DATA_DIR)
    return place if in_bucket(place) else place.expanduser()


def _load(config: DataConfig, builder: Any) -> Dataset:
    image_key, label_key = _keys(builder)
    splits = builder.info.splits
    if "train" not in splits:
        raise InputError(f"{builder.info.full_name} has the splits {', '.join(splits)}, but none named train.")
    names, notes = {"test": "test", "validation": "validation"}, []
    if "validation" in splits and "test" in splits and not _labelled(builder, "test", image_key, label_key):
        names = {"test": "validation"} if config.test_from == "validation" else {"validation": "validation"}
        instead = "its validation split replaces it" if "test" in names else "one is held out of train"
        notes = [f"the test split of {builder.info.full_name} has no labels: {instead}"]
    elif "validation" in splits and "test" not in splits and config.test_from == "validation":
        names = {"test": "validation"}
        notes = [validation_stands_for_test(builder.info.full_name)]
    parts = {part: name for part, name in names.items() if name in splits} | {"train": "train"}
    for name in parts.values():
        if splits[name].num_examples == 0:
            raise InputError(f"the split {name} of {builder.info.full_name} is empty.")
    read, found = _read(builder, parts, image_key, label_key, config)
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    held, origins = hold_out(read, fractions, config.split_seed)
    origins |= {part: f"its split {split}" for part, split in parts.items() if origins[part] == "given"}
    return from_splits(
        held["train"],
        held.get("validation"),
        held["test"],
        class_names=builder.info.features[label_key].names,
        name=builder.info.full_name,
        notes=[*notes, *found.notes],
        preparation=found.preparation,
        source=f"tfds {builder.info.full_name} in {builder.data_path}",
        origins=origins,
    )


def _labelled(builder: Any, split: str, image_key: str, label_key: str) -> bool:
    """True if the first example of the split has a label; in tensorflow-datasets, -1 means no label."""
    source = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
    return len(source) == 0 or source[0][label_key] >= 0


def _open(name: str, directory: Path) -> Any:
    try:
        builder = builder_from_files(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(_not_found(name, directory)) from error
    if tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats():
        return _open(name, local_copy(as_path(builder.data_path), directory)) if in_bucket(directory) else builder
    copy_command, prepared = "gcloud storage cp", as_path(builder.data_path)
    if not in_bucket(directory):
        copy_command, prepared, directory = "cp", prepared.resolve(), directory.resolve()
    converted = directory.with_name(f"{directory.name}-array_record")
    out = converted / prepared.relative_to(directory)
    raise InputError(
        f"{name} in {prepared} is prepared as {builder.info.file_format.value}, but only array_record is read without "
        f"TensorFlow. Convert it, in an environment of its own, then name {converted} with --data.dir:\n"
        f"  {PREPARE} convert_format --dataset_version_dir {prepared} --out_file_format array_record --out_dir {out} "
        # without this option, tfds 4.9.10 counts the wrong shards and stops; it does not copy the names of the labels
        f"--only_log_errors && {copy_command} {prepared}/*.txt {out}"
    )


def _not_found(name: str, directory: Path) -> str:
    infos = (path for pattern in ("*/*", "*/*/*") for path in directory.glob(f"{pattern}/dataset_info.json"))
    prepared = sorted({path.relative_to(directory).parts[0] for path in infos})
    near = difflib.get_close_matches(name, prepared, n=1)
    return (
        f"data.name {name!r} was looked for in {directory}, but no prepared data set of that name is there"
        + (f" (there are: {', '.join(prepared)}). " if prepared else ". ")
        + (f"Did you mean {near[0]!r}? " if near else "")
        + "Name another directory with --data.dir, or prepare it, in an environment of its own:\n"
        f"  {PREPARE} build {name} --data_dir {directory} --file_format array_record"
    )


def _keys(builder: Any) -> tuple[str, str]:
    features = builder.info.features
    keys = {
        kind: [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    }
    supervised = builder.info.supervised_keys
    for found in keys.values():
        preferred = [key for key in found if supervised and key in supervised]
        found[:] = preferred or found
        if len(found) != 1:
            raise InputError(
                f"{builder.info.full_name} has the features {dict(features)}, but needs exactly one image and one "
                "class label: it is not a data set for image classification."
            )
    return keys[tfds.features.Image][0], keys[tfds.features.ClassLabel][0]


def _read(
    builder: Any, parts: dict[str, str], image_key: str, label_key: str, config: DataConfig
) -> tuple[dict[str, Split], Arranged]:
    """Returns the examples of each split, and how their images were arranged.

    All records are read once, and decoded if their size is known and fits into the memory; else only their heads are.
    """
    shape = builder.info.features[image_key].shape
    count = sum(builder.info.splits[split].num_examples for split in parts.values())
    decoded = None not in shape and count * math.prod(shape) <= config.memory * 2**30
    stored: dict[str, tuple[Stored | list[Picture], list[Head]]] = {}
    labels, contents = {}, {}
    for part, split in parts.items():
        source = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
        name = f"{split} of {builder.info.full_name}"
        records = Records(_Source(source), image_key, np.arange(len(source)), name, config)
        heads, pictures = [], []
        labels[part], contents[part] = np.empty(len(source), np.int32), np.empty(len(source), np.uint64)
        for start in range(0, len(source), 1000):
            for i, example in enumerate(source.__getitems__(range(start, min(start + 1000, len(source)))), start):
                labels[part][i] = example[label_key]
                contents[part][i] = number_of(example[image_key])
                if decoded:
                    pictures.append(records.decoded(example, i))
                    heads.append(head_of(pictures[-1]))
                else:
                    heads.append(read_head(example[image_key], records.name(i), config.max_pixels))
        stored[part] = (pictures if decoded else records, heads)
    # the data set knows its channels; its files may have others, such as a palette of grey
    color: ColorName = "grey" if shape[-1] == 1 else "rgb" if shape[-1] in (3, None) else "stored"
    found = arrange(
        stored,
        replace(config, color=color),
        name=builder.info.full_name,
        advice="Prepare the data set again.",
    )
    return {
        part: Split(found.images[part], labels[part], heads=heads, contents=contents[part])
        for part, (_, heads) in stored.items()
    }, found


class _Source:
    """A source of records that is pickled once, and opened once in each process to which it is sent."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getitem__(self, number: int) -> Any:
        return self._source[number]

    @cached_property
    def _pickled(self) -> bytes:
        return pickle.dumps(self._source)

    def __reduce__(self) -> Any:
        return _open_once, (self._pickled,)


@lru_cache(maxsize=2)
def _open_once(pickled: bytes) -> _Source:
    return _Source(pickle.loads(pickled))


class Records:
    """The pictures in the records at `indices` of a split, as `Stored`."""

    def __init__(self, source: Any, image_key: str, indices: np.ndarray, split: str, config: DataConfig) -> None:
        self._source, self._image_key, self._indices, self._split = source, image_key, indices, split
        self._config = config

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Picture:
        try:
            example = self._source[int(self._indices[index])]
        except Exception as error:
            raise InputError(f"{self.name(index)} cannot be read: {error}") from error
        return self.decoded(example, index)

    def decoded(self, example: Any, index: int) -> Picture:
        """Returns the picture of an example that has been read already."""
        data, most = example[self._image_key], self._config.max_pixels
        return name_errors(self.name(index), lambda: check_values(decode(data, most)))

    def head(self, index: int) -> Head:
        """Returns what the header of the picture says."""
        example = self._source[int(self._indices[index])]
        return read_head(example[self._image_key], self.name(index), self._config.max_pixels)

    def name(self, index: int) -> str:
        """Returns the number and the split of a picture."""
        return f"example {self._indices[index]} of the split {self._split}"

    def take(self, indices: np.ndarray) -> "Records":
        """Returns the pictures at `indices`, i64[m]."""
        return Records(self._source, self._image_key, self._indices[indices], self._split, self._config)
