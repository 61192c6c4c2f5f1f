"""Data sets. `DATASETS` maps the names of sources to functions that load them."""

import dataclasses
from collections.abc import Callable

import numpy as np

from flaxcls.config import DataConfig
from flaxcls.data.arrays import from_arrays
from flaxcls.data.dataset import Dataset, Split, channel_statistics, stratified_order
from flaxcls.data.stream import batch_indices
from flaxcls.errors import InputError


def _load_digits(config: DataConfig, listing: bytes | None, problems: list[str] | None) -> Dataset:
    from flaxcls.data import digits

    return digits.load(config)


def _load_tfds(config: DataConfig, listing: bytes | None, problems: list[str] | None) -> Dataset:
    from flaxcls.data import tfds

    return tfds.load(config)


def _load_folder(config: DataConfig, listing: bytes | None, problems: list[str] | None) -> Dataset:
    from flaxcls.data import again, folder

    listed = None if listing is None else again.load_listed(config, listing)
    return listed or folder.load(config, problems)


# The libraries of a source are imported only when it is chosen.
DATASETS: dict[str, Callable[[DataConfig, bytes | None, list[str] | None], Dataset]] = {
    "digits": _load_digits,
    "tfds": _load_tfds,
    "folder": _load_folder,
}


def load_dataset(config: DataConfig, listing: bytes | None = None, *, problems: list[str] | None = None) -> Dataset:
    """Returns the data set that `config` describes.

    Args:
      config: describes the data set.
      listing: of the data set when it was loaded before, see `Dataset`; images in files are then those of before.
      problems: for a look at the data, not for training on it: gets what training refuses in the user's own images, if
        the rest can be read.

    Raises InputError if the data set is missing or invalid.
    """
    dataset = DATASETS[config.source](config, listing, problems)
    if config.train_examples is None:
        return dataset
    count = len(dataset.train.labels)
    if config.train_examples > count:
        raise InputError(
            f"data.train_examples is {config.train_examples}, but the train split of {dataset.name!r} has {count} "
            "examples: ask for no more, or leave it out to use all."
        )
    chosen = stratified_order(dataset.train.labels, config.split_seed)[: config.train_examples]
    origins = {**dataset.origins, "train": f"{config.train_examples:,} of {count:,} (data.train_examples)"}
    return dataclasses.replace(dataset, train=dataset.train.take(np.sort(chosen)), origins=origins)


__all__ = ["DATASETS", "Dataset", "Split", "batch_indices", "channel_statistics", "from_arrays", "load_dataset"]
