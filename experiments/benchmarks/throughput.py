"""Training speed of the tutorial's network on CIFAR-10, beside Keras on TensorFlow, Keras on JAX and PyTorch.

Each is a program of its own that trains the same network on the same images as its users do: flaxcls by its command,
with progress, logs, validation and checkpoints; Keras by `fit` with its progress bar, `validation_data` and
`ModelCheckpoint`; PyTorch by the usual loop over tensors in memory, with and without `torch.compile`. One runs at a
time, in turn, another one first each time. The experiment runs four steps a dispatch; it is also run with one, and
Keras on TensorFlow with four steps an execution beside its default of one.

images/s is of the training steps, of the median epoch after the first: for flaxcls as its log says, for the others the
time from the begin of the epoch to that of the validation. An epoch's seconds are the wall time from the end of one
validation to the end of the next: training, validation and a checkpoint; for flaxcls by the clock of its TensorBoard
files.

Command:   python -m experiments.benchmarks.throughput --data-dir DATA_DIR
Hardware:  2 cores of an AMD EPYC (Zen 4, a virtual machine whose speed drifts by a fifth), otherwise idle, 26 November
           2026, Python 3.13 with jax 0.12.0.1; the others with Python 3.11
Result:    batch 64, --repeats 7 --examples 15000 --epochs 3: 4,817 images/s, 1.22 times Keras 3.15.1 on TensorFlow
           2.21 (n = 7, 0.92 to 1.37), an epoch in 0.83 times its time (0.75 to 1.07); 1.99 times PyTorch 2.13 (n = 5,
           1.80 to 2.05). An hour later, n = 4: 1.26 times Keras (0.79 to 1.37), 1.20 times Keras with four steps an
           execution (0.95 to 1.30), 1.01 times flaxcls with one step a dispatch (0.75 to 1.13). Earlier that day, with
           one: 1.13 times Keras (n = 7) and 1.18 times (n = 5), with jax 0.10.2 1.00 times (n = 4, 0.85 to 1.50). Batch
           512, --examples 0: 4,648 images/s, 0.93 times Keras (n = 5, 0.86 to 1.14), an epoch in 1.05 times its
           time (0.88 to 1.19). In an hour in which the speed jumped between 2,800 and 5,000 images/s within runs, batch
           64: 3,703 images/s, 1.06 times Keras (n = 5, 0.85 to 1.35), 3.0 times Keras on JAX 0.10.2 (n = 2), 1.32 times
           PyTorch and 2.0 times PyTorch compiled (n = 2)
"""

import json
import statistics
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from experiments.benchmarks.measure import ProgramError, Ran, Row, compare, in_turn, report, run
from experiments.benchmarks.peers import install, run_peer
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
class Trained:
    """What one run of one system came to.

    rates: images/s of the training steps of each epoch after the first; epoch_seconds: of those epochs as a whole.
    accuracy: on the validation images, to see that all do the same.
    """

    rates: list[float]
    epoch_seconds: list[float]
    accuracy: float
    versions: dict[str, str]
    ran: Ran


# (task, folder for the run's files) -> what it came to
System = Callable[[Task, Path], Trained]


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


def epoch_rates(lines: Sequence[Mapping[str, Any]], batch_size: int, epochs: int) -> list[float]:
    """Returns images/s of each epoch after the first, from the lines of metrics.jsonl.

    A line counts to the epoch that it ends in; an epoch of fewer steps than there are between two lines may have none.
    """
    images, seconds = np.zeros(epochs), np.zeros(epochs)
    trained = [line for line in lines if line["split"] == "train"]
    for before, line in pairwise([{"step": 0}, *trained]):
        epoch, count = min(line["epoch"], epochs - 1), (line["step"] - before["step"]) * batch_size
        images[epoch] += count
        seconds[epoch] += count / line["images_per_second"]
    return [float(count / time) for count, time in zip(images[1:], seconds[1:], strict=True) if count]


def event_times(folder: Path, tag: str) -> list[float]:
    """Returns when each value of `tag` was written to the TensorBoard files of a folder, in seconds since 1970."""
    times = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record is its length, u64, a checksum of that, the event, and a checksum of that
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            times += [event.wall_time for value in event.summary.value if value.tag == tag]
            at += length + 16
    return times


def flaxcls(task: Task, place: Path, *more: str) -> Trained:
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
    ran = run([sys.executable, "-m", "flaxcls.train", str(EXPERIMENT), *given], {"JAX_PLATFORMS": "cpu"})
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return Trained(
        rates=epoch_rates(lines, task.batch_size, task.epochs),
        epoch_seconds=np.diff(event_times(workdir / "tensorboard", "validation/loss")).tolist(),
        accuracy=[line["accuracy"] for line in lines if line["split"] == "validation"][-1],
        versions=json.loads((workdir / "result.json").read_text())["versions"],
        ran=ran,
    )


def peer(env: Mapping[str, str], data: Path, script: str, *options: str) -> System:
    """Returns what trains by a script of this folder."""

    def train(task: Task, place: Path) -> Trained:
        size = ["--epochs", str(task.epochs), "--batch-size", str(task.batch_size)]
        fresh = {**env, "TORCHINDUCTOR_CACHE_DIR": str(place / "compiled")}
        result, ran = run_peer(fresh, script, place / "result.json", str(data), *size, *options)
        return Trained(
            rates=[result["images"] / seconds for seconds in result["train_seconds"][1:]],
            epoch_seconds=result.get("epoch_seconds", []),
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
        "flaxcls, one step a dispatch": lambda task, place: flaxcls(task, place, "--loop.steps-per-dispatch", "1"),
        "Keras on TensorFlow": peer(on["tensorflow"], data, KERAS),
        "Keras on TensorFlow, 4 steps": peer(on["tensorflow"], data, KERAS, "--steps-per-execution", "4"),
        "Keras on JAX": peer(on["jax"], data, KERAS),
        "PyTorch": peer(env, data, TORCH),
        "PyTorch, compiled": peer(env, data, TORCH, "--compile"),
    }


def chosen(systems: Mapping[str, System], only: Sequence[str]) -> Mapping[str, System]:
    """Returns flaxcls and the systems named in `only`, or all if it is empty. Raises SystemExit for another name."""
    if unknown := set(only) - set(systems):
        raise SystemExit(f"only names {sorted(unknown)}, but the systems are {', '.join(systems)}.")
    return {name: system for name, system in systems.items() if not only or name in ("flaxcls", *only)}


def train_in_turn(
    systems: Mapping[str, System], task: Task, repeats: int, console: Console
) -> tuple[dict[str, list[Trained]], dict[str, str]]:
    """Returns what the runs of each system came to, and why one has none; a peer that fails is not tried again.

    Raises ProgramError if flaxcls fails.
    """
    done: dict[str, list[Trained]] = {name: [] for name in systems}
    failed: dict[str, str] = {}
    for name in in_turn([*systems], repeats):
        if name in failed:
            continue
        with tempfile.TemporaryDirectory() as place:
            try:
                trained = systems[name](task, Path(place))
            except ProgramError as error:
                if name == "flaxcls":
                    raise
                failed[name], done[name] = str(error), []
                console.print(f"{name}: {error}", markup=False)
                continue
        done[name].append(trained)
        steady = statistics.median(trained.rates)
        console.print(
            f"{len(done[name])}/{repeats} {name}: {steady:,.0f} images/s, validation accuracy {trained.accuracy:.1%}, "
            f"{trained.ran.peak_bytes / 2**20:,.0f} MiB, {trained.ran.seconds:.0f} s in all"
        )
    return done, failed


def rows_of(done: Mapping[str, list[Trained]], failed: Mapping[str, str]) -> list[Row]:
    """Returns the rows: training speed of all, and whole epochs of those that validate and save."""
    versions = {name: runs[0].versions for name, runs in done.items() if runs}
    rates = {name: [statistics.median(run.rates) for run in runs] for name, runs in done.items()}
    whole = {
        name: [statistics.median(run.epoch_seconds) for run in runs]
        for name, runs in done.items()
        if runs and runs[0].epoch_seconds
    }
    rows = compare("training", "images/s", rates, versions=versions, notes=failed)
    return [*rows, *compare("an epoch with validation and checkpoint", "s", whole, versions=versions)]


def main(
    data_dir: Path,
    batch_size: int = 64,
    repeats: int = 5,
    examples: int = 10_000,
    epochs: int = 3,
    only: tuple[str, ...] = (),
    peers: Path = Path("build/peers"),
    python: str = sys.executable,
    out: Path = Path("build/throughput.json"),
) -> None:
    """Prints medians over the repeats, their spread, and the ratio of each pair within a repeat.

    Args:
      data_dir: where tensorflow-datasets has prepared cifar10.
      batch_size: images a step.
      repeats: runs of each system.
      examples: training images; 0 means all.
      epochs: of each run; the first is not counted.
      only: the systems to compare flaxcls with, such as "Keras on TensorFlow"; without any, all.
      peers: environment of the others, made where it is missing.
      python: Python that it is made with.
      out: JSON file of the rows.
    """
    if epochs < 2:
        raise SystemExit(f"epochs is {epochs}, but must be 2 or more: the first, which compiles, is not counted.")
    console, task = Console(), Task(data_dir.absolute(), examples or None, epochs, batch_size)
    env = install(peers, base=python)
    with tempfile.TemporaryDirectory() as place:
        systems = chosen(all_systems(env, save_data(task, Path(place))), only)
        done, failed = train_in_turn(systems, task, repeats, console)
    settings = {
        "batch size": batch_size,
        "images": examples or "all",
        "epochs": epochs,
        "repeats": repeats,
    }
    report(rows_of(done, failed), out, settings, console)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.throughput")
