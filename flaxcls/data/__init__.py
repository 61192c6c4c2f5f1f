"""Data sets. `DATASETS` maps the names of the sources to what loads them."""

from collections.abc import Callable

from flaxcls.config import DataConfig
from flaxcls.data.dataset import Dataset, Split, channel_statistics, from_arrays
from flaxcls.data.stream import batch_indices


def _load_digits(config: DataConfig) -> Dataset:
    from flaxcls.data import digits

    return digits.load(config)


def _load_tfds(config: DataConfig) -> Dataset:
    from flaxcls.data import tfds

    return tfds.load(config)


# A source's libraries are imported when it is chosen, not before.
DATASETS: dict[str, Callable[[DataConfig], Dataset]] = {"digits": _load_digits, "tfds": _load_tfds}


def load_dataset(config: DataConfig) -> Dataset:
    """Returns the data set that `config` describes. Raises InputError where it is not there or does not fit."""
    return DATASETS[config.source](config)


__all__ = ["DATASETS", "Dataset", "Split", "batch_indices", "channel_statistics", "from_arrays", "load_dataset"]
