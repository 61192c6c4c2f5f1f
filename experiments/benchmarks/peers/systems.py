"""The systems that `throughput` and `memory` compare: flaxcls and its peers, on the tutorial's network and CIFAR-10.

Each is a program of its own that trains the same network on the same images as its users do. flaxcls runs its command,
with progress, logs, validation and checkpoints. Keras runs `fit` with its progress bar, `validation_data` and
`ModelCheckpoint`. PyTorch runs the usual loop over tensors in memory, with and without `torch.compile`.
"""

import json
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from experiments.benchmarks.measure import ProgramError, Ran, in_turn, run
from experiments.benchmarks.peers.environment import install, run_peer
from experiments.benchmarks.turns import Started
from flaxcls.config import DataConfig
from flaxcls.data import load_dataset
from flaxcls.data.images import Images

T = TypeVar("T")
EXPERIMENT = Path(__file__).parents[2] / "cifar10_cnn.py"


@dataclass(frozen=True)
class Task:
    """The training that all systems do. examples: training images, None for all."""

    data_dir: Path
    examples: int | None
    epochs: int
    batch_size: int


@dataclass(frozen=True)
class Options:
    """Options of both commands."""

    data_dir: Path
    """Folder that tensorflow-datasets prepared cifar10 in."""
    batch_size: int = 64
    """Images a step."""
    repeats: int = 3
    """Runs of each system."""
    examples: int = 0
    """Training images; 0 means all."""
    epochs: int = 2
    """Epochs of each run."""
    peers: Path = Path("build/peers")
    """Environment of the peers; it is made if it is missing."""
    python: str = sys.executable
    """Python to make that environment with."""

    @property
    def task(self) -> Task:
        """The training that the options describe."""
        return Task(self.data_dir.absolute(), self.examples or None, self.epochs, self.batch_size)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings to report."""
        images = self.examples or "all"
        return {"batch size": self.batch_size, "images": images, "epochs": self.epochs, "repeats": self.repeats}


@dataclass(frozen=True)
class Span:
    """A period, in seconds since 1970, and the number of images trained on in it."""

    began: float
    ended: float
    images: int


@dataclass(frozen=True)
class Trained:
    """The result of one run of one system.

    training: the training steps of each epoch after the first, in steady state.
    epochs: the same epochs with validation and checkpoint; empty for a system without them.
    accuracy: on the validation images, to check that all systems do the same.
    """

    training: list[Span]
    epochs: list[Span]
    accuracy: float
    versions: dict[str, str]
    ran: Ran


# (task, folder for the run's files, receiver of its process group) -> result
System = Callable[[Task, Path, Started | None], Trained]
# a system with its task and its folder
Program = Callable[[Started | None], Trained]


def save_data(task: Task, place: Path) -> Path:
    """Writes images u8[n 32 32 3] and labels of flaxcls's training and validation splits for the peers."""
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
    """Returns (step, time of writing) of each value of `tag` in the TensorBoard files of a folder."""
    values = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record is its length, u64, a checksum of that, the event, and a checksum of that
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            values += [(event.step, event.wall_time) for value in event.summary.value if value.tag == tag]
            at += length + 16
    return values


def spans(
    trained: Sequence[tuple[int, float]], validated: Sequence[tuple[int, float]], batch_size: int
) -> tuple[list[Span], list[Span]]:
    """Returns the training up to the last log line of each epoch, and the whole epochs, without the first and the last.

    The first compiles. So does the last, if the last dispatch has another number of steps. An epoch without a log line
    has no training.

    Args:
      trained: step and time of each training line of the log.
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
    """Trains by flaxcls's command, with the further options `more`."""
    workdir = place / "run"
    options = {
        "--data.dir": task.data_dir,
        "--loop.epochs": task.epochs,
        "--loop.batch-size": task.batch_size,
        "--workdir": workdir,
        **({} if task.examples is None else {"--data.train-examples": task.examples}),
    }
    arguments = [*(str(part) for pair in options.items() for part in pair), *more]
    command = [sys.executable, "-m", "flaxcls.train", str(EXPERIMENT), *arguments]
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


def peer(env: Mapping[str, str], script: str, *arguments: str) -> System:
    """Returns a system that trains by a script of this folder."""

    def train(task: Task, place: Path, started: Started | None) -> Trained:
        size = ["--epochs", str(task.epochs), "--batch-size", str(task.batch_size)]
        with_own_cache = {**env, "TORCHINDUCTOR_CACHE_DIR": str(place / "compiled")}
        result, ran = run_peer(with_own_cache, script, place / "result.json", *arguments, *size, started=started)
        images = result["images"]
        return Trained(
            training=[Span(began, ended, images) for began, ended in result["training"][1:]],
            epochs=[Span(began, ended, images) for began, ended in pairwise(result.get("epochs_ended", []))],
            accuracy=result["validation_accuracy"],
            versions=result["versions"],
            ran=ran,
        )

    return train


def keras_on(backend: str, env: Mapping[str, str], data: Path, *options: str) -> System:
    """Returns Keras on a backend, "tensorflow" or "jax"."""
    return peer({**env, "KERAS_BACKEND": backend}, "train_keras.py", "cifar10", str(data), *options)


def all_systems(env: Mapping[str, str], data: Path) -> dict[str, System]:
    """Returns the systems that both commands compare."""
    return {
        "flaxcls": flaxcls,
        "flaxcls, one step a dispatch": lambda *given: flaxcls(*given, "--loop.steps-per-dispatch", "1"),
        "Keras on TensorFlow": keras_on("tensorflow", env, data),
        "Keras on TensorFlow, 4 steps": keras_on("tensorflow", env, data, "--steps-per-execution", "4"),
        "Keras on JAX": keras_on("jax", env, data),
        "PyTorch": peer(env, "train_torch.py", str(data)),
        "PyTorch, compiled": peer(env, "train_torch.py", str(data), "--compile"),
    }


@contextmanager
def prepare(options: Options) -> Iterator[tuple[dict[str, str], Path]]:
    """Yields the environment variables of the peers and the file with their data, which exists within."""
    env = install(options.peers, base=options.python)
    with tempfile.TemporaryDirectory() as place:
        yield env, save_data(options.task, Path(place))


def run_repeats(
    systems: Mapping[str, System],
    task: Task,
    repeats: int,
    run_programs: Callable[[Mapping[str, Program]], Iterable[tuple[str, T | ProgramError]]],
    describe: Callable[[T], str],
    console: Console,
) -> tuple[dict[str, list[T]], dict[str, str]]:
    """Returns the results of the runs of each system, and the error of each that failed.

    A peer that fails has no results, and does not run again.

    Args:
      systems: the systems, flaxcls among them.
      task: the training.
      repeats: runs of each system.
      run_programs: runs the programs of one repeat, and yields the name and the result of each.
      describe: the text to print of a result.
      console: prints each result.

    Raises:
      ProgramError: if flaxcls fails.
    """
    results: dict[str, list[T]] = {name: [] for name in systems}
    errors: dict[str, str] = {}
    order = in_turn([*systems], repeats)
    for repeat in range(repeats):
        names = [name for name in islice(order, len(systems)) if name not in errors]
        with tempfile.TemporaryDirectory() as place:
            folders = {name: Path(place) / str(number) for number, name in enumerate(names)}
            for folder in folders.values():
                folder.mkdir()
            for name, result in run_programs({name: partial(systems[name], task, folders[name]) for name in names}):
                if isinstance(result, ProgramError):
                    if name == "flaxcls":
                        raise result
                    errors[name], results[name] = str(result), []
                    console.print(f"{name}: {result}", markup=False)
                else:
                    results[name].append(result)
                    console.print(f"{repeat + 1}/{repeats} {name}: {describe(result)}")
    return results, errors
