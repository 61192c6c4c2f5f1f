"""The memory of a worker process that makes batches, and the time to the first batch, by the number of files.

The paths look like those of ImageNet: `n01440764/n01440764_10026.JPEG`, in 1,000 folders. Only the files of the batches
that are made exist; each is the same small JPEG. Memory is the private memory (USS) of a worker after some batches, and
the time is that from the start of the workers to the first batch. Most of both is the import of the libraries; what the
list of files adds is the difference to the shortest list.

Command:   python -m experiments.benchmarks.workers
Hardware:  2 cores of an AMD EPYC, beside other work, Python 3.13 with jax 0.12.0.1
Result:    README.md
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import tyro
from PIL import Image

from experiments.benchmarks.measure import Row, in_turn, report
from flaxcls.data.batches import BatchMaker
from flaxcls.data.dataset import Split
from flaxcls.data.images import Images
from flaxcls.data.prefetch import made_ahead
from flaxcls.data.preparation import Preparation
from flaxcls.data.stored import Files
from flaxcls.data.stream import batch_indices

CLASSES = 1000
BATCH = 64
SIDE = 32


def imagenet_like(place: Path, count: int, batches: int) -> BatchMaker:
    """Returns the maker of the batches of `count` files; those of the first batches are written below `place`."""
    labels = np.arange(count, dtype=np.int32) % CLASSES
    folders = [place / f"n{1440764 + label:08d}" for label in range(CLASSES)]
    paths = [folders[label] / f"{folders[label].name}_{number}.JPEG" for number, label in enumerate(labels.tolist())]
    Image.effect_noise((2 * SIDE, 2 * SIDE), 50).convert("RGB").save(place / "one.jpg")
    for step in range(batches):
        for index in batch_indices(0, step, count=count, batch_size=BATCH).tolist():
            paths[index].parent.mkdir(exist_ok=True)
            if not paths[index].exists():
                paths[index].hardlink_to(place / "one.jpg")
    images = Images(Files(paths), Preparation((SIDE, SIDE), 3))
    split = Split(images, labels, [str(path.relative_to(place)) for path in paths])
    return BatchMaker(split, 0, BATCH, slice(0, BATCH), balanced=False, least_area=0.08)


def measure(maker: BatchMaker, workers: int, batches: int) -> tuple[float, float]:
    """Returns the seconds to the first batch, and the MiB of the largest worker after the last one."""
    began = time.perf_counter()
    with made_ahead(maker, 0, batches, workers=workers) as made:
        next(made)
        seconds = time.perf_counter() - began
        for _ in range(batches - 2):  # one is left, so that the workers still run
            next(made)
        private = [child.memory_full_info().uss / 2**20 for child in psutil.Process().children()]
    return seconds, max(private)


def main(
    files: tuple[int, ...] = (1_000, 200_000, 1_281_167),
    workers: int = 2,
    batches: int = 30,
    repeats: int = 3,
    out: Path = Path("build/workers.json"),
) -> None:
    """Prints medians over the repeats.

    Args:
      files: numbers of files; the first is the one that the others are compared with.
      workers: worker processes.
      batches: batches of 64 images, 32x32, in each measurement.
      repeats: measurements of each number of files.
      out: JSON file for the rows.
    """
    names = {f"{count:,} files": count for count in files}
    memory: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        makers = {}
        for name, count in names.items():
            place = Path(folder) / str(count)
            place.mkdir()
            makers[name] = imagenet_like(place, count, batches)
        for name in in_turn([*names], repeats):
            taken, private = measure(makers[name], workers, batches)
            seconds[name].append(taken)
            memory[name].append(private)
    first = next(iter(names))
    more = {name: [value - least for value, least in zip(memory[name], memory[first], strict=True)] for name in names}
    rows = [
        Row(name, quantity, unit, values[name])
        for quantity, unit, values in (
            ("to the first batch", "s", seconds),
            ("private memory of a worker", "MiB", memory),
            (f"the same, beyond that for {first}", "MiB", more),
        )
        for name in names
    ]
    report(rows, out, {"workers": workers, "batches": batches, "batch_size": BATCH})


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.workers")
