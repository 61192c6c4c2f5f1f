"""Images a second of flaxcls's reader for large JPEGs, beside tf.data on the same files and cores, at 224x224.

Both read 500x375 JPEGs from the page cache, cut a random part out of each, scale it, and put 64 into a batch. Files,
order and parts are the same: flaxcls draws them, and tf.data is given them. Neither runs a network. flaxcls decodes
whole images by libjpeg's accurate transform. It interpolates between pixels, or averages over areas if a side becomes
less than half as long. tf.data does the same; or it decodes only the part (`decode_and_crop_jpeg`); or it decodes only
the part with the fast transform, which is its default. First, the pixels that both make of a part are compared. While
one is measured, the others are idle. The first call installs TensorFlow into an environment of its own, at --peers.

Command:   python -m experiments.benchmarks.streaming --batches 60
Hardware:  2 cores of an Intel Xeon, otherwise idle, Python 3.13
Result:    README.md
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.measure import cores, in_turn, processor, ratios
from experiments.benchmarks.peers.environment import TENSORFLOW, answering, install
from flaxcls.config import DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.batches import BatchMaker
from flaxcls.data.dataset import Split
from flaxcls.data.decode import read_head, read_picture
from flaxcls.data.images import random_box
from flaxcls.data.prefetch import made_ahead
from flaxcls.data.resize import resize
from flaxcls.data.stream import batch_indices

WIDE = (500, 375)
SIZE = (224, 224)
BATCH = 64
WARM_UP = 4  # batches
KINDS = {"whole": "tf.data, the same", "part": "tf.data, only the part", "usual": "tf.data, its defaults"}


def save_photos(place: Path, count: int, seed: int = 0) -> None:
    """Saves JPEGs of ImageNet's usual size, in a folder for each of two classes.

    They are parts of the two photographs that come with scikit-learn; three of ten are upright.
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    samples = load_sample_images()
    for name, photo in zip(("china", "flower"), samples.images, strict=True):
        (place / name).mkdir(parents=True)
        for number in range(count // 2):
            column, row = rng.integers(photo.shape[1] - WIDE[0]), rng.integers(photo.shape[0] - WIDE[1])
            part = photo[row : row + WIDE[1], column : column + WIDE[0]][:, :: rng.choice([-1, 1])]
            upright = np.rot90(part) if rng.random() < 0.3 else part
            Image.fromarray(np.ascontiguousarray(upright)).save(place / name / f"{number:04d}.jpg", quality=95)


def batch_maker(split: Split, least_area: float) -> BatchMaker:
    """Returns the maker of the batches of a run."""
    return BatchMaker(split, 0, BATCH, slice(0, BATCH), balanced=False, least_area=least_area)


def flaxcls_seconds(split: Split, least_area: float, workers: int, batches: int) -> float:
    """Returns the seconds of `batches` batches after the warm-up, made by worker processes as in a run."""
    with made_ahead(batch_maker(split, least_area), 0, 10**9, workers=workers) as made:
        for _ in range(WARM_UP):
            next(made)
        began = time.perf_counter()
        for _ in range(batches):
            next(made)
        return time.perf_counter() - began


def draw_stream(split: Split, paths: Sequence[Path], least_area: float, count: int) -> dict[str, list[Any]]:
    """Returns path, part and label of the first `count` images that flaxcls draws, for tf.data."""
    order = batch_indices(0, 0, count=len(paths), batch_size=count).tolist()
    sizes = [read_head(path, str(path)).size for path in paths]
    boxes = [random_box(0, position, sizes[index], least_area) for position, index in enumerate(order)]
    return {"paths": [str(paths[index]) for index in order], "boxes": boxes, "labels": split.labels[order].tolist()}


def differences(ask: Callable[..., Any], stream: dict[str, list[Any]], kind: str) -> tuple[float, float]:
    """Returns the mean and the largest difference of a pixel between flaxcls and tf.data in the first parts."""
    distances = []
    for path, box in zip(stream["paths"][:20], stream["boxes"], strict=False):
        top, left, height, width = box
        scaled = resize(read_picture(Path(path)).pixels[top : top + height, left : left + width], SIZE).astype(int)
        distances.append(np.abs(scaled - ask("cut", path=path, box=box, kind=kind)))
    return float(np.mean(distances)), float(np.max(distances))


def main(
    peers: Path = Path("build/peers"),
    out: Path = Path("build/streaming.json"),
    images: int = 400,
    batches: int = 60,
    repeats: int = 7,
    least_area: float = 0.08,
) -> None:
    """Prints medians over the repeats, and the ratio of each pair within a repeat.

    Args:
      peers: environment that TensorFlow is installed into.
      out: JSON file for all measurements.
      images: number of files.
      batches: batches of each measurement.
      repeats: measurements of each system.
      least_area: smallest share of an image to cut out.
    """
    console, env = Console(), install(peers, [TENSORFLOW])
    peer = answering(env, "stream_tfdata.py", *map(str, (*SIZE, BATCH)))
    with tempfile.TemporaryDirectory() as folder, peer as (peer_versions, ask):
        place = Path(folder) / "photos"
        save_photos(place, images)
        split = load_dataset(
            DataConfig(source="folder", dir=str(place), memory=0.0, image_size=SIZE[0], resize="crop")
        ).train
        assert split.ids is not None
        paths = [place / name for name in split.ids]
        size = statistics.mean(path.stat().st_size for path in paths)
        stream = draw_stream(split, paths, least_area, (WARM_UP + batches) * BATCH)
        area = float(np.mean([height * width for _, _, height, width in stream["boxes"]])) / (WIDE[0] * WIDE[1])
        pixel_differences = {kind: differences(ask, stream, kind) for kind in KINDS}
        rates: dict[str, list[float]] = {"flaxcls": [], **{kind: [] for kind in KINDS}}
        for name in in_turn([*rates], repeats):
            if name == "flaxcls":
                seconds = flaxcls_seconds(split, least_area, cores(), batches)
            else:
                seconds = ask("seconds", kind=name, warm_up=WARM_UP, **stream)
            rates[name].append(batches * BATCH / seconds)
            console.print(f"{len(rates[name])}/{repeats} {name}: {rates[name][-1]:.0f} images/s")
    versions = {name: version(name) for name in ("numpy", "opencv-python-headless", "simplejpeg")}
    versions |= {"python": platform.python_version(), "tensorflow": peer_versions["tensorflow"]}
    console.print(f"{cores()} cores of {processor()}, {len(paths)} files of {size / 1000:.0f} kB, n = {repeats};")
    console.print(f"{area:.2f} of an image is cut out on average")
    console.print(", ".join(f"{name} {number}" for name, number in versions.items()))
    table = Table()
    for header in ("", "images/s", "range", "flaxcls to it", "pixels differ by"):
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    for name, values in rates.items():
        row = [KINDS.get(name, name), f"{statistics.median(values):.0f}", f"{min(values):.0f} to {max(values):.0f}"]
        if name in KINDS:
            shares = ratios(rates["flaxcls"], values)
            row += [f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"]
            row += ["{:.2f}, at most {:.0f}".format(*pixel_differences[name])]
        table.add_row(*row)
    console.print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"processor": processor(), "cores": cores(), "files": len(paths), "mean_bytes": size, "versions": versions}
    settings = {"batch_size": BATCH, "batches": batches, "repeats": repeats, "least_area": least_area, "area": area}
    record = {**about, **settings, "images_per_second": rates, "pixel_difference": pixel_differences}
    out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.streaming")
