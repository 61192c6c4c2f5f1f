"""Image-classification sets prepared by tensorflow-datasets as ArrayRecord, read without TensorFlow."""

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.constants import DATA_DIR
from tensorflow_datasets.core.read_only_builder import builder_from_files

from flaxcls.config import DataConfig
from flaxcls.data.dataset import Dataset, from_arrays
from flaxcls.errors import InputError

# TensorFlow, which most builders need to prepare their data, is kept out of the environment that trains. These are the
# packages of the extra `prepare`.
PREPARE = (
    "python3 -m venv .prepare && .prepare/bin/pip install tensorflow apache-beam importlib_resources mlcroissant "
    "tensorflow-datasets && .prepare/bin/tfds"
)


def load(config: DataConfig) -> Dataset:
    """Returns the data set that was prepared as `config.name` below `config.dir`, decoded into memory.

    A test split is taken as it is; where there is none, a validation split stands for it (as in ImageNet), or one is
    carved out of train. A validation split that is not given is carved out of train.

    Raises:
      InputError: if it is not there, is not in ArrayRecord form, or is no set of labelled images of one size.
    """
    name, directory = str(config.name), Path(config.dir or DATA_DIR).expanduser()
    try:
        return _load(config, _open(name, directory))
    except InputError:
        raise
    except Exception as error:  # whatever the files hold
        raise InputError(
            f"data.name {name!r} in {directory} cannot be read: {type(error).__name__}: {error}. Mend the name, "
            "or prepare the data set again."
        ) from error


def _load(config: DataConfig, builder: Any) -> Dataset:
    image_key, label_key = _keys(builder)
    splits = builder.info.splits
    if "train" not in splits:
        raise InputError(f"{builder.info.full_name} has the splits {', '.join(splits)}, but none named train.")
    names = {"test": "test", "validation": "validation"}
    if "test" not in splits:
        names = {"test": "validation"}
    given = {part: _read(builder, name, image_key, label_key) for part, name in names.items() if name in splits}
    images, labels = _read(builder, "train", image_key, label_key)
    return from_arrays(
        images,
        labels,
        validation=given.get("validation"),
        test=given.get("test"),
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        split_seed=config.split_seed,
        class_names=builder.info.features[label_key].names,
        name=builder.info.full_name,
    )


def _open(name: str, directory: Path) -> Any:
    try:
        builder = builder_from_files(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(_not_found(name, directory)) from error
    if tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats():
        return builder
    prepared = Path(builder.data_path).resolve()
    converted = directory.resolve().with_name(f"{directory.resolve().name}-array_record")
    out = converted / prepared.relative_to(directory.resolve())
    raise InputError(
        f"{name} in {prepared} is prepared as {builder.info.file_format.value}, but only array_record is read without "
        f"TensorFlow. Convert it, in an environment of its own, then name {converted} with --data.dir:\n"
        f"  {PREPARE} convert_format --dataset_version_dir {prepared} --out_file_format array_record --out_dir {out} "
        # tfds 4.9.10 counts the wrong shards and would stop without this option; it forgets the names of the labels
        f"--only_log_errors && cp {prepared}/*.txt {out}"
    )


def _not_found(name: str, directory: Path) -> str:
    infos = (path for pattern in ("*/*", "*/*/*") for path in directory.glob(f"{pattern}/dataset_info.json"))
    prepared = sorted({path.relative_to(directory).parts[0] for path in infos})
    near = difflib.get_close_matches(name, prepared, n=1)
    return (
        f"data.name {name!r} was looked for in {directory}, but no prepared data set of that name is there"
        + (f" (prepared are: {', '.join(prepared)}). " if prepared else ". ")
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
                f"{builder.info.full_name} has the features {dict(features)}, but one image and one class label are "
                "needed: it is no set for image classification."
            )
    image = features[keys[tfds.features.Image][0]]
    if np.dtype(image.np_dtype) != np.uint8:
        raise InputError(f"{builder.info.full_name} has images of {image.np_dtype}, but only uint8 is read.")
    return keys[tfds.features.Image][0], keys[tfds.features.ClassLabel][0]


def _read(builder: Any, split: str, image_key: str, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    source = builder.as_data_source(split)
    if len(source) == 0:
        raise InputError(f"the split {split} of {builder.info.full_name} is empty.")
    shape = np.shape(source[0][image_key])
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    for start in range(0, len(source), 1000):
        for i, example in enumerate(source.__getitems__(range(start, min(start + 1000, len(source)))), start):
            if np.shape(example[image_key]) != shape:
                raise InputError(
                    f"{builder.info.full_name} has images of {shape} and of {np.shape(example[image_key])}, but only "
                    "sets of one image size are read so far."
                )
            images[i], labels[i] = example[image_key], example[label_key]
    return images, labels
