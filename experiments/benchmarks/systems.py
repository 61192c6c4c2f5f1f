"""What trains the tutorial's network on CIFAR-10 in `throughput` and `memory`: flaxcls and what it is compared with.

Each is a program of its own that trains the same network on the same images as its users do: flaxcls by its command,
with progress, logs, validation and checkpoints; Keras by `fit` with its progress bar, `validation_data` and
`ModelCheckpoint`; PyTorch by the usual loop over tensors in memory, with and without `torch.compile`.
"""

import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.proto.event_pb2 import Event

from experiments.benchmarks.measure import Ran, run
from experiments.benchmarks.peers import run_peer
from experiments.benchmarks.turns import Started
from flaxcls.config import DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.images import Images

EXPERIMENT = Path(__file__).parent.parent / "cifar10_cnn.py"
KERAS, TORCH = "throughput_keras.py", "throughput_torch.py"


@dataclass(frozen=True)
class Task:
    """What all train: data as tensorflow-datasets prepared them, and how much of them, None being all."""

    data_dir: Path
    examples: int | None
    epochs: int
    batch_size: int


@dataclass(frozen=True)
class Span:
    """A time, in seconds since 1970, and the images that were trained on in it."""

    began: float
    ended: float
    images: int


@dataclass(frozen=True)
class Trained:
    """What one run of one system came to.

    training: the training steps of each epoch after the first, in steady state.
    epochs: those epochs with validation and a checkpoint, if there are any.
    accuracy: on the validation images, to see that all do the same.
    """

    training: list[Span]
    epochs: list[Span]
    accuracy: float
    versions: dict[str, str]
    ran: Ran


# (task, folder for the run's files, what is told of its process group) -> what it came to
System = Callable[[Task, Path, Started | None], Trained]


def save_data(task: Task, place: Path) -> Path:
    """Writes the images u8[n 32 32 3] and labels of training and validation, as flaxcls splits them, for the peers."""
    config = DataConfig(source="tfds", name="cifar10", dir=str(task.data_dir), train_examples=task.examples)
    dataset = load_dataset(config)
    arrays: dict[str, Any] = {}
    for name in ("train", "validation"):
        split = dataset.splits[name]
        images = split.images
        arrays[f"{name}_images"] = images.take(np.arange(len(images))) if isinstance(images, Images) else images
        arrays[f"{name}_labels"] = split.labels
    np.savez(place / "cifar10.npz", **arrays)
    return place / "cifar10.npz"


def events(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Returns the step of each value of `tag` in the TensorBoard files of a folder, and when it was written."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record is its length, u64, a checksum of that, the event, and a checksum of that
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, event.wall_time) for value in event.summary.value if value.tag == tag]
            at += length + 16
    return found


def spans(
    trained: Sequence[tuple[int, float]], validated: Sequence[tuple[int, float]], batch_size: int
) -> tuple[list[Span], list[Span]]:
    """Returns of each epoch but the first and the last the training up to the last line of its log, and the whole.

    The first compiles, and so does the last where the last dispatch has another number of steps. An epoch without a
    line has no training.

    Args:
      trained: step and time of each line of training.
      validated: step and time of each validation.
      batch_size: images a step.
    """
    training, epochs = [], []
    for (first, began), (last, ended) in pairwise(validated[:-1]):
        epochs.append(Span(began, ended, (last - first) * batch_size))
        lines = [(step, at) for step, at in trained if first < step <= last and at <= ended]
        if lines:
            step, at = lines[-1]
            training.append(Span(began, at, (step - first) * batch_size))
    return training, epochs


def flaxcls(task: Task, place: Path, started: Started | None, *more: str) -> Trained:
    """Trains by flaxcls's command, with these options more."""
    workdir = place / "run"
    options = {
        "--data.dir": task.data_dir,
        "--loop.epochs": task.epochs,
        "--loop.batch-size": task.batch_size,
        "--workdir": workdir,
        **({} if task.examples is None else {"--data.train-examples": task.examples}),
    }
    given = [*(str(part) for pair in options.items() for part in pair), *more]
    command = [sys.executable, "-m", "flaxcls.train", str(EXPERIMENT), *given]
    ran = run(command, {"JAX_PLATFORMS": "cpu"}, started)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained, validated = (events(workdir / "tensorboard", f"{split}/loss") for split in ("train", "validation"))
    training, epochs = spans(trained, validated, task.batch_size)
    return Trained(
        training=training,
        epochs=epochs,
        accuracy=[line["accuracy"] for line in lines if line["split"] == "validation"][-1],
        versions=json.loads((workdir / "result.json").read_text())["versions"],
        ran=ran,
    )


def peer(env: Mapping[str, str], data: Path, script: str, *options: str) -> System:
    """Returns what trains by a script of this folder."""

    def train(task: Task, place: Path, started: Started | None) -> Trained:
        size = ["--epochs", str(task.epochs), "--batch-size", str(task.batch_size)]
        fresh = {**env, "TORCHINDUCTOR_CACHE_DIR": str(place / "compiled")}
        result, ran = run_peer(fresh, script, place / "result.json", str(data), *size, *options, started=started)
        images = result["images"]
        return Trained(
            training=[Span(began, ended, images) for began, ended in result["training"][1:]],
            epochs=[Span(began, ended, images) for began, ended in pairwise(result.get("epochs_ended", []))],
            accuracy=result["validation_accuracy"],
            versions=result["versions"],
            ran=ran,
        )

    return train


def all_systems(env: Mapping[str, str], data: Path) -> dict[str, System]:
    """Returns what is compared."""
    on = {backend: {**env, "KERAS_BACKEND": backend} for backend in ("tensorflow", "jax")}
    return {
        "flaxcls": flaxcls,
        "flaxcls, one step a dispatch": lambda *given: flaxcls(*given, "--loop.steps-per-dispatch", "1"),
        "Keras on TensorFlow": peer(on["tensorflow"], data, KERAS),
        "Keras on TensorFlow, 4 steps": peer(on["tensorflow"], data, KERAS, "--steps-per-execution", "4"),
        "Keras on JAX": peer(on["jax"], data, KERAS),
        "PyTorch": peer(env, data, TORCH),
        "PyTorch, compiled": peer(env, data, TORCH, "--compile"),
    }
