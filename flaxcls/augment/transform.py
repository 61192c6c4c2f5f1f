"""The transform of a run, which prepares a batch for the model."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.augment.draws import along, of_first
from flaxcls.augment.geometry import flip, random_crop, random_flip
from flaxcls.augment.operations import Operation
from flaxcls.augment.scaling import normalize, to_float
from flaxcls.types import Batch, Transform


def make_transform(
    *,
    mean: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
    random_flips: bool = False,
    crop_padding: int = 0,
    crop_fill: Literal["zero", "reflect"] = "zero",
    operations: Sequence[Operation] = (),
    axis_name: str | None = None,
) -> Transform:
    """Returns the transform that crops and flips in training, then scales and, with mean and std, normalises.

    In training, if a batch has `mirrored`, the transform first mirrors its images accordingly and removes `mirrored`.

    Args:
      mean, std: [c], for images in 0..1; without them images are not normalised.
      random_flips: True to mirror each training image with probability 1/2.
      crop_padding: pixels added to each side before a random crop; 0 for no crop.
      crop_fill: values of the added pixels.
      operations: further operations in training, (key, batch) -> batch, between flip and scaling, in this order. The
        images still have their original type. Examples: `on_images(trivial_augment)`, `partial(random_mixup,
        num_classes=10)`, or the operations from `make_operations`.
      axis_name: the mapped axis over which the batch is split under pmap or shard_map. With it, each example gets the
        same random numbers as under jit; without it, each device draws its own numbers.
    """

    def transform(key: jax.Array | None, batch: Batch) -> Batch:
        if key is None or axis_name is None:
            return transformed(key, batch)
        with along(axis_name):
            return transformed(of_first(key, axis_name), batch)

    def transformed(key: jax.Array | None, batch: Batch) -> Batch:
        images = batch["image"]
        if key is not None:
            if "mirrored" in batch:
                images = flip(images, batch["mirrored"])
            crop_key, flip_key = jax.random.split(key)
            if crop_padding:
                images = random_crop(crop_key, images, padding=crop_padding, fill=crop_fill)
            if random_flips:
                images = random_flip(flip_key, images)
            batch = {**batch, "image": images}
            batch.pop("mirrored", None)
            for i, operation in enumerate(operations):  # 0 and 1 are the numbers of crop_key and flip_key
                batch = operation(jax.random.fold_in(key, 2 + i), batch)
            images = batch["image"]
        images = to_float(images)
        if mean is not None and std is not None:
            images = normalize(images, jnp.asarray(mean, images.dtype), jnp.asarray(std, images.dtype))
        return {**batch, "image": images}

    return transform
