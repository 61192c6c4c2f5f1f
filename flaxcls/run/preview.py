"""Images as training would show them to a model, before there is a run."""

import jax
import numpy as np

from flaxcls.config import AugmentConfig
from flaxcls.data import Dataset, Split, channel_statistics
from flaxcls.data.images import Images
from flaxcls.run.checks import least_area
from flaxcls.run.setup import transform_of

GROUP = 32  # images at once; mixup and CutMix take partners from groups of 8


def draw_views(
    config: AugmentConfig, dataset: Dataset, split: Split, indices: np.ndarray, *, draws: int
) -> list[np.ndarray]:
    """Returns f32[m h w c] in 0..1 for each draw: the images at `indices`, i64[m], of a split, after augmentation.

    They are normalised and then de-normalised, since what is shown must have values in 0..1. A few images stand for all
    in mean and deviation. Raises InputError if an image cannot be read.
    """
    images = split.images
    small = images.take(indices) if isinstance(images, Images) else images[indices]
    mean, std = channel_statistics(small)
    transform = jax.jit(transform_of(config, dataset, mean, std))
    area = least_area(config, dataset.train.images)
    views = []
    for draw in range(draws):
        drawn = []
        for start in range(0, len(indices), GROUP):
            rows = np.arange(start, start + GROUP) % len(indices)
            if isinstance(small, Images) and area is not None:
                pixels = small.random_crops(rows, rows, seed=draw, least_area=area)
            else:
                pixels = small[rows]
            batch = {"image": pixels, "label": split.labels[indices[rows]]}
            if config.alternating_flip:
                batch["mirrored"] = (rows + draw) % 2 == 0
            key = jax.random.fold_in(jax.random.key(draw), start)
            seen = np.asarray(transform(key, batch)["image"], np.float32)[: len(indices) - start]
            drawn.append(seen * std + mean if config.normalize else seen)
        views.append(np.concatenate(drawn).clip(0, 1).astype(np.float32))
    return views
