"""The training speed of `fit` on a GPU with a network for ImageNet: from images on the device, and from JPEGs."""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from experiments.benchmarks.gpu.speedrun import utilization_row, with_mean
from experiments.benchmarks.measure import Row, cores
from flaxcls.config import AugmentConfig, Config, DataConfig, LoopConfig, ModelConfig, ModelName, OptimConfig
from flaxcls.data import Dataset, from_arrays, load_dataset
from flaxcls.models import build_model
from flaxcls.run import fit
from flaxcls.run.utilization import training_flops

WIDE = (500, 375)  # of ImageNet's images, the usual size
QUALITY = 95
IMAGES = "images/s in training, of each interval of the log except the first and the last"


@dataclass(frozen=True)
class Training:
    """A network at a batch size, on images of `side` pixels in so many classes.

    images: size of the training split.
    dispatch: steps of one program, if the images are on the device, and steps between two lines of the log. The steps
      of both runs should be a multiple of it, because another number of steps is another program.
    resident_epochs, streamed_epochs: epochs of the two runs.
    """

    model: ModelName = "resnet50"
    side: int = 224
    classes: int = 1000
    batch_size: int = 256
    images: int = 2560
    dispatch: int = 10
    resident_epochs: int = 16
    streamed_epochs: int = 10

    def config(self, data: DataConfig, epochs: int, dispatch: int, log_every: int) -> Config:
        """Returns the configuration of a run that only trains, and saves once, at its end."""
        return Config(
            data=data,
            augment=AugmentConfig(flip=True, crop_padding=0),
            model=ModelConfig(name=self.model, dtype="bfloat16"),
            optim=OptimConfig(name="sgd", learning_rate=0.1, ema_decay=None),
            loop=LoopConfig(
                epochs=epochs,
                batch_size=self.batch_size,
                eval_every=epochs,
                steps_per_dispatch=dispatch,
                log_every=log_every,
                deterministic=False,
            ),
        )


def noise(training: Training) -> Dataset:
    """Returns images u8[n side side 3] of noise."""
    rng, shape = np.random.default_rng(0), (training.side, training.side, 3)
    images = rng.integers(0, 256, (training.images, *shape), dtype=np.uint8)
    labels = np.arange(training.images) % training.classes
    return from_arrays(
        images,
        labels,
        test=(images[:1], labels[:1]),  # the evaluation is not measured
        validation_fraction=0,
        class_names=[str(number) for number in range(training.classes)],
        name="noise",
    )


def jpeg(seed: int) -> bytes:
    """Returns a JPEG of the size `WIDE`: coarse patches of colour under fine noise, about 100 kB, like a photograph."""
    rng, (width, height) = np.random.default_rng(seed), WIDE
    coarse = cv2.resize(rng.integers(0, 256, (height // 25, width // 25, 3), dtype=np.uint8), WIDE)
    fine = cv2.resize(rng.integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8), WIDE)
    mixed = cv2.addWeighted(coarse, 0.7, fine, 0.3, 0)
    written, data = cv2.imencode(".jpg", mixed, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert written
    return data.tobytes()


def save_jpegs(place: Path, training: Training) -> float:
    """Writes the training images in a folder for each class, and one test image; returns their mean size in bytes."""
    width = len(str(training.classes - 1))
    paths = [
        place / "train" / f"{number % training.classes:0{width}d}" / f"{number:06d}.jpg"
        for number in range(training.images)
    ]
    paths.append(place / "test" / paths[0].parent.name / "test.jpg")
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True)
    with ThreadPoolExecutor(cores()) as pool:
        sizes = pool.map(lambda path, seed: path.write_bytes(jpeg(seed)), paths, range(len(paths)))
        return float(np.mean(list(sizes)))


def rates(config: Config, dataset: Dataset) -> list[float]:
    """Returns images/s of the log intervals of a run of `fit`, except the first and the last.

    The first contains the compilation. `fit` reads the metrics of a dispatch while the next one runs, and on a GPU the
    reading ends some way into the next one. Between two readings this makes no difference, but the last interval is
    too short.
    """
    with tempfile.TemporaryDirectory() as place:
        workdir = Path(place) / "run"
        fit(config, dataset=dataset, workdir=workdir, console=Console(quiet=True))
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["images_per_second"] for line in lines if line["split"] == "train"][1:-1]


def resident(training: Training) -> list[Row]:
    """Returns the rows of training on images on the device."""
    data = DataConfig(validation_fraction=0, on_device=True)
    config = training.config(data, training.resident_epochs, training.dispatch, training.dispatch)
    return _rows(training, f"{training.model}, images on the device", rates(config, noise(training)), "")


def streaming(training: Training) -> list[Row]:
    """Returns the rows of training on JPEGs from the page cache, read by one worker process for each core."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "noise"
        size = save_jpegs(place, training)
        data = DataConfig(
            source="folder",
            dir=str(place),
            image_size=training.side,
            resize="crop",
            memory=0.0,
            validation_fraction=0,
            workers=cores(),
        )
        config = training.config(data, training.streamed_epochs, 1, training.dispatch)
        speeds = rates(config, load_dataset(data))
    note = f"{cores()} workers, files of {WIDE[0]}x{WIDE[1]} and {size / 1000:.0f} kB"
    return _rows(training, f"{training.model}, JPEGs read by workers", speeds, note)


def _rows(training: Training, system: str, speeds: list[float], note: str) -> list[Row]:
    model = build_model(ModelConfig(name=training.model, dtype="bfloat16"), training.classes)
    flops = training_flops(model, (training.side, training.side, 3))
    row = Row(system, IMAGES, "images/s", speeds, note=note)
    return [with_mean(row), utilization_row(system, [flops * rate for rate in speeds])]
