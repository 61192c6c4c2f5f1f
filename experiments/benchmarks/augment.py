"""The speed of each augmentation and of a chain of them, compiled, on 256 random images of 32x32x3 bytes.

Command:   python -m experiments.benchmarks.augment --output augment.json
"""

import json
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from flaxcls import augment
from flaxcls.augment import on_images
from flaxcls.types import Batch

Step = Callable[[jax.Array, Batch], Any]

STEPS: dict[str, Step] = {
    "to_float": on_images(lambda key, images: augment.to_float(images)),
    "random_flip": on_images(augment.random_flip),
    "random_crop": on_images(partial(augment.random_crop, padding=4)),
    "random_resized_crop": on_images(partial(augment.random_resized_crop, size=(32, 32))),
    "random_affine, bilinear": on_images(partial(augment.random_affine, degrees=15, shift=0.1)),
    "random_affine, nearest": on_images(partial(augment.random_affine, degrees=15, shift=0.1, method="nearest")),
    "random_color_jitter": on_images(
        partial(augment.random_color_jitter, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    ),
    "random_cutout": on_images(partial(augment.random_cutout, size=8)),
    "random_mixup": partial(augment.random_mixup, num_classes=10),
    "random_mix": partial(augment.random_mix, num_classes=10, mixup_alpha=0.2, cutmix_alpha=1.0),
    "random_cutmix": partial(augment.random_cutmix, num_classes=10),
    "trivial_augment": on_images(augment.trivial_augment),
    "rand_augment": on_images(augment.rand_augment),
    "make_views, 10": lambda key, batch: augment.make_views(batch["image"], shift=1),
    "crop, flip, normalize": augment.make_transform(mean=[0.5] * 3, std=[0.25] * 3, random_flips=True, crop_padding=4),
    "crop, flip, trivial_augment, cutout, cutmix, normalize": augment.make_transform(
        mean=[0.5] * 3,
        std=[0.25] * 3,
        random_flips=True,
        crop_padding=4,
        operations=[
            on_images(augment.trivial_augment),
            on_images(partial(augment.random_cutout, size=8)),
            partial(augment.random_cutmix, num_classes=10),
        ],
    ),
}


def rates(step: Step, batch: Batch, repeats: int) -> np.ndarray:
    """Returns images/s f64[repeats], of one call of the compiled step each, with a key of its own."""
    compiled = jax.jit(step)
    keys = list(jax.random.split(jax.random.key(0), repeats + 3))
    seconds = []
    for key in keys:
        start = time.perf_counter()
        jax.block_until_ready(compiled(key, batch))
        seconds.append(time.perf_counter() - start)
    return batch["image"].shape[0] / np.array(seconds[3:])  # the first three calls compile and warm up


def main(output: Path | None = None, batch_size: int = 256, side: int = 32, repeats: int = 30) -> None:
    """Prints a table of the transforms' speed.

    Args:
      output: JSON file for the rows; it is replaced.
      batch_size: images in a batch, a multiple of 8.
      side: height and width of the images.
      repeats: measured calls of each transform.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)
    batch: Batch = {"image": jnp.array(images), "label": jnp.array(rng.integers(0, 10, batch_size), jnp.int32)}
    device = jax.devices()[0]
    where = {
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "batch": list(images.shape),
    }
    title = f"{where['device']}, jax {where['jax']}, Python {where['python']}, batch {'x'.join(map(str, images.shape))}"
    table = Table("transform", title=title)
    for heading in ("n", "images/s, median", "quarter to three quarters"):
        table.add_column(heading, justify="right")
    rows = []
    for name, step in STEPS.items():
        low, middle, high = np.percentile(rates(step, batch, repeats), (25, 50, 75))
        table.add_row(name, str(repeats), f"{middle:,.0f}", f"{low:,.0f} to {high:,.0f}")
        rows.append({**where, "transform": name, "n": repeats, "median": middle, "quartiles": [low, high]})
    Console().print(table)
    if output is not None:
        output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.augment")
