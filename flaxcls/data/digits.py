"""scikit-learn's embedded digits: 1,797 grey images of 8x8 pixels, ten classes (Alpaydin and Kaynak 1998, UCI)."""

import numpy as np
from sklearn.datasets import load_digits

from flaxcls.config import DataConfig
from flaxcls.data.dataset import Dataset, from_arrays


def load(config: DataConfig) -> Dataset:
    """Returns the digits, split as `config` says."""
    digits = load_digits()
    return from_arrays(
        np.round(digits.images * (255 / 16)).astype(np.uint8),  # pixels are counts of 0..16
        digits.target,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        split_seed=config.split_seed,
        class_names=[str(name) for name in digits.target_names],
        name="digits",
    )
