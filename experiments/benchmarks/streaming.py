"""Images a second of the path for large JPEGs, against tf.data on the same files and cores: batches at 224x224.

Both read 500x375 JPEGs from the page cache, cut a random part out of each, scale it and make batches of 64, shuffled;
there is no network. flaxcls decodes whole images (libjpeg's accurate transform) and averages over areas where it makes
them smaller. tf.data decodes the part alone (`decode_and_crop_jpeg`), in two ways: "same" has the same transform and
averages over areas; "usual" has TensorFlow's defaults, the fast transform, which costs some precision, and bilinear
interpolation without antialiasing. What both make of one part is compared first. While one is measured the others are
idle. TensorFlow is installed into an environment of its own, at --peers, the first time.

Command:   python -m experiments.benchmarks.streaming
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from flaxcls.config import DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.dataset import Split
from flaxcls.data.images import random_box, read_image
from flaxcls.data.resize import resize
from flaxcls.data.workers import BatchMaker, made_ahead

TENSORFLOW = "tensorflow-cpu==2.21.0"
WIDE = (500, 375)
SIZE = (224, 224)
BATCH = 64
WARM_UP = 4  # batches


def save_photos(place: Path, count: int, seed: int = 0) -> None:
    """Saves JPEGs of the usual size of ImageNet's, in a folder for each of two classes.

    They are parts of the two photographs that come with scikit-learn, three of ten upright.
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


def flaxcls_seconds(split: Split, least_area: float, workers: int, batches: int) -> float:
    """Returns the seconds that so many batches take after the first ones, made as `feed` has them made."""
    options: dict[str, Any] = {"seed": 0, "batch_size": BATCH, "rows": slice(0, BATCH), "balanced": False}
    maker = BatchMaker(split, least_area=least_area, **options)
    with made_ahead(maker, 0, 10**9, workers=workers) as made:
        for _ in range(WARM_UP):
            next(made)
        began = time.perf_counter()
        for _ in range(batches):
            next(made)
        return time.perf_counter() - began


@contextmanager
def tensorflow(peers: Path, least_area: float) -> Any:
    """Gives what sends one request to streaming_tfdata.py and returns its answer; with nothing to do, its versions."""
    python = peers / "bin" / "python"
    if not python.exists():
        venv.create(peers, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", TENSORFLOW], check=True)
    command = [python, Path(__file__).with_name("streaming_tfdata.py"), *map(str, (*SIZE, BATCH, least_area))]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=quiet, **pipes) as process:  # type: ignore[call-overload]
        versions = json.loads(process.stdout.readline())

        def ask(do: str = "", **request: Any) -> Any:
            if not do:
                return versions
            print(json.dumps({"do": do, **request}), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield ask


def differences(ask: Callable[..., Any], paths: Sequence[Path], kind: str, least_area: float) -> tuple[float, float]:
    """Returns mean and largest difference of a pixel between what both make of the same part of each file."""
    found = []
    for number, path in enumerate(paths):
        image = read_image(path)
        box = random_box(1, number, image.shape[:2], least_area)
        top, left, height, width = box
        ours = resize(image[top : top + height, left : left + width], SIZE).astype(int)
        found.append(np.abs(ours - ask("cut", path=str(path), box=box, kind=kind)))
    return float(np.mean(found)), float(np.max(found))


def processor() -> str:
    """Returns its name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main(
    peers: Path = Path("build/peers"),
    out: Path = Path("build/streaming.json"),
    images: int = 400,
    batches: int = 60,
    repeats: int = 7,
    least_area: float = 0.08,
) -> None:
    """Prints medians over the repeats, and the ratio of each pair, measured in turn.

    Args:
      peers: environment that TensorFlow is installed into.
      out: JSON file of every measurement.
      images: files.
      batches: of each measurement.
      repeats: measurements of each.
      least_area: smallest share of an image that is cut out.
    """
    cores, console = len(os.sched_getaffinity(0)), Console()
    with tempfile.TemporaryDirectory() as folder, tensorflow(peers.absolute(), least_area) as ask:
        place = Path(folder) / "photos"
        save_photos(place, images)
        split = load_dataset(DataConfig(source="folder", dir=str(place), memory=0.0, image_size=SIZE[0])).train
        assert split.ids is not None
        paths = [place / name for name in split.ids]
        size = statistics.mean(path.stat().st_size for path in paths)

        def peer(kind: str) -> float:
            request = {"paths": [str(path) for path in paths], "labels": split.labels.tolist()}
            return ask("seconds", kind=kind, warm_up=WARM_UP, batches=batches, **request)

        sides: dict[str, Callable[[], float]] = {
            "flaxcls": lambda: flaxcls_seconds(split, least_area, cores, batches),
            "tf.data, same": lambda: peer("same"),
            "tf.data, usual": lambda: peer("usual"),
        }
        away = {f"tf.data, {kind}": differences(ask, paths[:20], kind, least_area) for kind in ("same", "usual")}
        pixels = WIDE[0] * WIDE[1]
        shares = {
            "tf.data": statistics.mean(ask("areas", path=str(paths[0]), count=1000)) / pixels,
            "flaxcls": np.mean([np.prod(random_box(0, i, WIDE[::-1], least_area)[2:]) for i in range(1000)]) / pixels,
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(repeats):
            for name in [*sides][repeat % 3 :] + [*sides][: repeat % 3]:
                rates[name].append(batches * BATCH / sides[name]())
                console.print(f"{repeat + 1}/{repeats} {name}: {rates[name][-1]:.0f} images/s")
        versions = {name: version(name) for name in ("grain", "numpy", "opencv-python-headless", "pillow")}
        versions |= {"python": platform.python_version(), "tensorflow": ask()["tensorflow"]}
    table = Table(
        title=f"{cores} cores of {processor()}, {len(paths)} files of {size / 1000:.0f} kB, n = {repeats}",
        title_justify="left",
    )
    for header in ("", "images/s", "least and largest", "flaxcls to it", "least and largest", "a pixel differs by"):
        table.add_column(header, justify="right" if header else "left")
    for name, values in rates.items():
        row = [name, f"{statistics.median(values):.0f}", f"{min(values):.0f} to {max(values):.0f}"]
        if name in away:
            ratios = [ours / theirs for ours, theirs in zip(rates["flaxcls"], values, strict=True)]
            row += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
            row += ["{:.2f}, at most {:.0f}".format(*away[name])]
        table.add_row(*row)
    console.print(table)
    console.print(", ".join(f"{name} {value:.3f}" for name, value in shares.items()), "of the area is kept on average")
    console.print(", ".join(f"{name} {number}" for name, number in versions.items()))
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"processor": processor(), "cores": cores, "files": len(paths), "mean_bytes": size, "versions": versions}
    settings = {"batch_size": BATCH, "batches": batches, "repeats": repeats, "least_area": least_area}
    record = {**about, **settings, "images_per_second": rates, "pixel_difference": away, "area": shares}
    out.write_text(json.dumps(record, indent=2, default=float) + "\n")


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m experiments.benchmarks.streaming"))
