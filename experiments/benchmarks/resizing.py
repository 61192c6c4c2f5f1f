"""The accuracy with images that are cropped, squashed or padded to a square, on real sets of mixed proportions.

Each run trains the same small network, with random mirroring, on one set that is brought to 64x64 in one way, and its
last parameters count. Runs with the same seed share splits, initialisation and order, so differences are formed within
a seed. Validation decides; the test split is only shown if `--test` asks for it.

The sets, none of them part of flaxcls:
tiles:    defects of magnetic tiles, github.com/abin24/Magnetic-tile-defect-datasets. (commit cc4eb53)
flowers:  photos of flowers, the folder flowers of github.com/atiaisaac/flowers_classification (commit 087014c)
grocery:  photos of fruit in shops, each class of github.com/marcusklasson/GroceryStoreDataset in a folder, the
          series before the name: banana/train_Banana_001.jpg

Command:   python -m experiments.benchmarks.resizing --tiles DIR --flowers DIR --grocery DIR --seeds 8 --test
Hardware:  2 cores of an AMD EPYC (Zen 4), beside other work, Python 3.13, jax 0.12.0.1; 28 November 2026
Result:    README.md
"""

import csv
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro

from flaxcls import Batch, create_state, eval_step, train_step
from flaxcls.augment.geometry import random_flip
from flaxcls.config import DataConfig, ResizeName
from flaxcls.data import load_dataset
from flaxcls.data.batches import pad_batch
from flaxcls.data.dataset import Dataset, Split, channel_statistics
from flaxcls.data.stream import batch_indices
from flaxcls.metrics import MetricSums
from flaxcls.models.cnn import CNN
from flaxcls.run.result import versions

WAYS: tuple[ResizeName, ...] = ("crop", "squash", "pad")
SIDE = 64  # pixels
BATCH_SIZE = 32
Rows = Iterator[tuple[Path, str, str, str]]  # path, label, split, group


def write_table(table: Path, rows: Rows) -> Path:
    """Writes a CSV file of paths, labels, splits ("" is held out of train) and groups, and returns its path."""
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "group"), *rows])
    return table


def rows_of_tiles(folder: Path) -> Rows:
    """Yields the images with a defect; a group is the exposures of one tile, whose numbers are close together."""
    numbers = {path: int(path.stem.split("_")[-1]) for path in folder.glob("MT_*/Imgs/*.jpg")}
    group, before = 0, 0
    for path in sorted(numbers, key=numbers.__getitem__):
        group, before = group + (numbers[path] - before > 150), numbers[path]
        if path.parts[-3] != "MT_Free":
            yield path.resolve(), path.parts[-3], "", str(group)


def rows_of_grocery(folder: Path) -> Rows:
    """Yields the photos; the series test is the test split, and ten neighbours of another series are a group."""
    for path in sorted(folder.glob("*/*.jpg")):
        series, name, number = path.stem.split("_")
        yield path.resolve(), path.parts[-2], "test" * (series == "test"), f"{series} {name} {int(number) // 10}"


def mirror(key: jax.Array | None, batch: Batch) -> Batch:
    """Mirrors each training image left to right with probability 1/2."""
    return batch if key is None else {**batch, "image": random_flip(key, batch["image"])}


def normalized(dataset: Dataset) -> dict[str, Split]:
    """Returns the splits with their images in the size of an input, f32[n h w c], normalised by those of train."""
    mean, std = channel_statistics(dataset.train.images)
    return {
        part: split._replace(images=((split.images[:] / 255 - mean) / std).astype(np.float32))
        for part, split in dataset.splits.items()
    }


@cache
def programs(num_classes: int, steps: int) -> tuple[Any, Any, Any]:
    """Returns the jitted functions that all runs share: create a state from a key, train a step, evaluate a batch."""
    model = CNN(num_classes, widths=(8, 16, 32, 32), norm="batch", dense=(64,))
    tx = optax.adamw(optax.cosine_onecycle_schedule(steps, 4e-3), weight_decay=1e-2)
    create = jax.jit(partial(create_state, model=model, tx=tx, image_shape=(SIDE, SIDE, 3)))
    step = jax.jit(partial(train_step, model=model, tx=tx, transform=mirror), donate_argnums=0)
    return create, step, jax.jit(partial(eval_step, model=model))


def accuracies(dataset: Dataset, seed: int, steps: int) -> dict[str, float]:
    """Trains a network, and returns the accuracy (0..1) of its last parameters on validation and test."""
    splits = normalized(dataset)
    create, step, evaluate = programs(len(dataset.class_names), steps)
    key, train = jax.random.key(seed), splits.pop("train")
    state = create(key)
    for number in range(steps):
        index = batch_indices(seed, number, count=len(train.labels), batch_size=BATCH_SIZE)
        state, _ = step(state, {"image": train.images[index], "label": train.labels[index]}, key)
    found = {}
    for part, split in splits.items():
        sums = MetricSums.empty()
        for start in range(0, len(split.labels), BATCH_SIZE):
            rows = slice(start, start + BATCH_SIZE)
            sums = sums.merge(evaluate(state, pad_batch(split.images[rows], split.labels[rows], BATCH_SIZE)))
        found[part] = sums.compute()["accuracy"]
    return found


def sets_of(folders: dict[str, Path | None], tables: Path) -> dict[str, DataConfig]:
    """Returns the sets whose folder is given, by name. tables: a folder for the tables that some of them need."""
    rows = {"tiles": rows_of_tiles, "grocery": rows_of_grocery}
    places = {
        name: write_table(tables / f"{name}.csv", rows[name](folder)) if name in rows else folder
        for name, folder in folders.items()
        if folder is not None
    }
    plain = DataConfig(source="folder", image_size=SIDE, validation_fraction=0.3, unreadable="skip")
    return {name: replace(plain, dir=str(place)) for name, place in places.items()}


def summary(values: Sequence[float]) -> str:
    """Returns the mean of values, and in brackets their standard deviation, in percent or points."""
    return f"{100 * statistics.mean(values):.1f} ({100 * statistics.stdev(values):.1f})"


def report(results: dict[str, dict[str, list[float]]], part: str) -> None:
    """Prints a Markdown table: mean and spread of each way, and of its difference to squash within a seed."""
    print(f"| {part} accuracy, % (sd) | " + " | ".join(WAYS) + " | crop - squash | pad - squash |")
    print("| --- |" + " --- |" * (len(WAYS) + 2))
    for name, found in results.items():
        differences = [
            [one - other for one, other in zip(found[way], found["squash"], strict=True)] for way in ("crop", "pad")
        ]
        print(f"| {name} | " + " | ".join(map(summary, [*(found[way] for way in WAYS), *differences])) + " |")


def main(
    tiles: Path | None = None,
    flowers: Path | None = None,
    grocery: Path | None = None,
    seeds: int = 5,
    steps: int = 150,
    test: bool = False,
    out: Path = Path("build/resizing.json"),
) -> None:
    """Prints the accuracies of crop, squash and pad on each set, means and standard deviations over the seeds.

    Args:
      tiles, flowers, grocery: folder of each set; those that are not given are left out.
      seeds: runs of each set and way, with the seeds 0, 1, 2, ...
      steps: training steps of a run, of 32 images.
      test: print the accuracies on the test splits too.
      out: JSON file of all accuracies.
    """
    if seeds < 2:
        raise SystemExit(f"seeds is {seeds}, but must be 2 or more: a spread needs two runs.")
    folders = {"tiles": tiles, "flowers": flowers, "grocery": grocery}
    found: dict[str, dict[str, dict[str, list[float]]]] = {part: {} for part in ("validation", "test")}
    with tempfile.TemporaryDirectory() as tables:
        sets = sets_of(folders, Path(tables))
        for seed in range(seeds):
            for name, data in sets.items():
                for way in WAYS:
                    dataset = load_dataset(replace(data, resize=way, split_seed=seed))
                    reached = accuracies(dataset, seed, steps)
                    for part, accuracy in reached.items():
                        found[part].setdefault(name, {}).setdefault(way, []).append(accuracy)
                    print(f"{name}, seed {seed}, {way}: validation {reached['validation']:.1%}", flush=True)
    for part in ("validation", "test") if test else ("validation",):
        report(found[part], part)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"steps": steps, "versions": versions(), "accuracies": found}, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.resizing")
