"""The random operations of a run's transform, except crop and flip, as `AugmentConfig` selects them."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from flaxcls.augment.affine import random_affine
from flaxcls.augment.colour import random_color_jitter
from flaxcls.augment.geometry import random_resized_crop
from flaxcls.augment.mixing import random_cutmix, random_cutout, random_mix, random_mixup
from flaxcls.augment.policies import rand_augment, trivial_augment
from flaxcls.config import AugmentConfig
from flaxcls.types import Batch

Operation = Callable[[jax.Array, Batch], Batch]


def on_images(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Operation:
    """Returns the operation that applies `function`, (key, images) -> images, to a batch."""
    return lambda key, batch: {**batch, "image": function(key, batch["image"])}


def make_operations(
    config: AugmentConfig, *, image_size: tuple[int, int], num_classes: int, blank: float | np.ndarray = 0.0
) -> list[Operation]:
    """Returns the operations of `config` in this order: resized crop, warp, colours, policy, cutout, mixing.

    Args:
      config: its fields for normalising, padded crop, flips and evaluation are not used here.
      image_size: height and width of the images.
      num_classes: number of classes of the soft labels that mixing makes.
      blank: value of the pixels that cutout blanks, f32[] or f32[c], in the units of the images.
    """
    operations: list[Operation] = []
    if config.resized_crop is not None:
        operations.append(on_images(partial(random_resized_crop, size=image_size, scale=(config.resized_crop, 1.0))))
    if config.rotate or config.translate:
        operations.append(on_images(partial(random_affine, degrees=config.rotate, shift=config.translate)))
    colours = {name: getattr(config, name) for name in ("brightness", "contrast", "saturation", "hue")}
    if any(colours.values()):
        operations.append(on_images(partial(random_color_jitter, **colours)))
    if config.policy == "trivial_augment":
        operations.append(on_images(trivial_augment))
    if config.policy == "rand_augment":
        magnitude = 9 if config.magnitude is None else config.magnitude
        operations.append(on_images(partial(rand_augment, layers=config.layers or 2, magnitude=magnitude)))
    if config.cutout:
        operations.append(on_images(partial(random_cutout, size=config.cutout, fill=blank)))
    if config.mixup and config.cutmix:
        mix = partial(random_mix, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)
        operations.append(partial(mix, num_classes=num_classes))
    elif config.mixup:
        operations.append(partial(random_mixup, num_classes=num_classes, alpha=config.mixup))
    elif config.cutmix:
        operations.append(partial(random_cutmix, num_classes=num_classes, alpha=config.cutmix))
    return operations
