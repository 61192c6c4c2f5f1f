"""The digits of scikit-learn: 1,797 grey images of 8x8 pixels in ten classes (Alpaydin and Kaynak 1998, UCI)."""

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flaxcls.config import DataConfig
from flaxcls.data.arrays import from_arrays
from flaxcls.data.dataset import Dataset


def load(config: DataConfig) -> Dataset:
    """Returns the digits, split as `config` says."""
    images, labels = _digits()
    return from_arrays(
        np.round(images * (255 / 16)).astype(np.uint8),  # pixels are counts in 0..16
        labels,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        split_seed=config.split_seed,
        class_names=[str(digit) for digit in range(10)],
        name="digits",
        source="the digits of scikit-learn",
    )


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns the images f64[1797 8 8] and labels of sklearn.datasets.load_digits, whose import takes a second."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.exists():
            rows = np.loadtxt(file, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # for releases that keep the file elsewhere

    digits = load_digits()
    return digits.images, digits.target
