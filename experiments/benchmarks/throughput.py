"""Training speed of the tutorial's network on CIFAR-10, beside Keras on TensorFlow, Keras on JAX and PyTorch.

What they are says `systems`. All are started, but one runs at a time: each for 3 s, while the others are held
(`turns`), so that all meet the same drift of the machine, and all are in memory. Timed is what was done in a program's
own turns, in the epochs after its first that ended before the first program did; of one too slow for that, in all
after its first. The experiment runs four steps a dispatch; it is also run with one, and Keras on TensorFlow with four
steps an execution beside its default of one.

images/s is of the training steps: of flaxcls, from the end of a validation, a checkpoint included, to the last line of
the log before the next; of the others, from the begin of an epoch to that of its validation. An epoch's seconds are
those from the end of one validation to the end of the next: training, validation and a checkpoint; for flaxcls by the
clock of its TensorBoard files.

Command:   python -m experiments.benchmarks.throughput --data-dir DATA_DIR
Hardware:  2 cores of an AMD EPYC (Zen 4, a virtual machine whose speed drifts by a fifth), otherwise idle, 26 November
           2026, Python 3.13 with jax 0.12.0.1; the others with Python 3.11
Result:    in turns of 1 s, --turn 1 --only "Keras on TensorFlow" --examples 15000 --epochs 5: 4,219 images/s, 1.28
           times Keras 3.15.1 on TensorFlow 2.21 (n = 8, 1.10 to 1.72), an epoch in 0.79 times its time (0.57 to 0.86);
           PyTorch 2.13 1.84 times (n = 4, 1.45 to 2.04). In turns of 3 s, --epochs 6: 3,854 images/s, 1.31 times Keras
           (n = 5, 1.15 to 1.37). With jax 0.10.2, turns of 1 s: 1.03 times Keras (n = 4, 0.96 to 1.15). All four others
           in turns of 1 s with flaxcls, whose last epoch counted then, with some compiling: 3.8 times Keras on JAX
           0.10.2, 1.55 times PyTorch, 2.4 times PyTorch compiled (n = 2). Batch 512, --examples 30000, turns of 1 s:
           4,122 images/s, 1.36 times Keras (n = 5, 1.15 to 1.49); of 3 s, with the last epoch: 1.12 times (n = 6, 0.87
           to 1.43).
           By whole runs, one after another, which this command no longer makes: batch 64 1.22 times Keras (n = 7, 0.92
           to 1.37), 1.26 (n = 4), 1.06 (n = 5, 0.85 to 1.35), 1.20 times Keras with four steps an execution (n = 4,
           0.95 to 1.30), 1.01 times flaxcls with one step a dispatch (n = 4, 0.75 to 1.13), 1.99 times PyTorch (n = 5,
           1.80 to 2.05); batch 512 0.93 times Keras (n = 5, 0.86 to 1.14)
"""

import math
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import tyro
from rich.console import Console

from experiments.benchmarks.measure import ProgramError, Row, compare, in_turn, report
from experiments.benchmarks.peers import install
from experiments.benchmarks.systems import Span, System, Task, Trained, all_systems, save_data
from experiments.benchmarks.turns import TimeSlice, running_seconds, take_turns


def chosen(systems: Mapping[str, System], only: Sequence[str]) -> Mapping[str, System]:
    """Returns flaxcls and the systems named in `only`, or all if it is empty. Raises SystemExit for another name."""
    if unknown := set(only) - set(systems):
        raise SystemExit(f"only names {sorted(unknown)}, but the systems are {', '.join(systems)}.")
    return {name: system for name, system in systems.items() if not only or name in ("flaxcls", *only)}


@dataclass(frozen=True)
class Measured:
    """What one run came to beside others that it took turns with, timed in its own turns.

    images_per_second: of the training steps.
    epoch_seconds: of an epoch with validation and checkpoint; None where there was none.
    """

    images_per_second: float
    epoch_seconds: float | None
    trained: Trained


def measured(trained: Trained, slices: Sequence[TimeSlice], until: float) -> Measured:
    """Returns what a run came to by its epochs that had ended by `until`, or by all if that was too soon for it.

    Raises ProgramError if it has none.
    """

    def in_time(found: Sequence[Span]) -> Sequence[Span]:
        return [span for span in found if span.ended <= until] or found

    def seconds(found: Sequence[Span]) -> float:
        return sum(running_seconds(slices, span.began, span.ended) for span in found)

    training, epochs = in_time(trained.training), in_time(trained.epochs)
    if not training:
        raise ProgramError("has no line of its log between two validations: give more --examples or --epochs")
    rate = sum(span.images for span in training) / seconds(training)
    return Measured(rate, seconds(epochs) / len(epochs) if epochs else None, trained)


def train_all(
    systems: Mapping[str, System], task: Task, repeats: int, turn: float, console: Console
) -> tuple[dict[str, list[Measured]], dict[str, str]]:
    """Returns what the runs of each system came to, and why one has none; a peer that fails is not tried again.

    Args:
      systems: what trains, flaxcls among them.
      task: what they train.
      repeats: runs of each.
      turn: seconds for which one runs while the others are held.
      console: what is told of each run.

    Raises:
      ProgramError: if flaxcls fails.
    """
    done: dict[str, list[Measured]] = {name: [] for name in systems}
    failed: dict[str, str] = {}
    orders = in_turn([*systems], repeats)
    for repeat in range(repeats):
        left = [name for name in islice(orders, len(systems)) if name not in failed]
        with tempfile.TemporaryDirectory() as place:
            folders = {name: Path(place) / str(number) for number, name in enumerate(left)}
            for folder in folders.values():
                folder.mkdir()
            programs = {name: partial(systems[name], task, folders[name]) for name in left}
            jobs, slices = take_turns(programs, turn, needed="flaxcls")
        for name, job in jobs.items():
            if isinstance(error := job.exception(), ProgramError):
                failed[name], done[name] = str(error), []
                console.print(f"{name}: {error}", markup=False)
        whole = {name: job.result() for name, job in jobs.items() if name not in failed}
        until = min(trained.ran.began + trained.ran.seconds for trained in whole.values())
        for name, trained in whole.items():
            done[name].append(found := measured(trained, slices[name], until))
            console.print(
                f"{repeat + 1}/{repeats} {name}: {found.images_per_second:,.0f} images/s, "
                f"validation accuracy {trained.accuracy:.1%}"
            )
    return done, failed


def rows_of(done: Mapping[str, list[Measured]], failed: Mapping[str, str]) -> list[Row]:
    """Returns the rows: training speed of all, and whole epochs of those that validate and save."""
    versions = {name: runs[0].trained.versions for name, runs in done.items() if runs}
    rates = {name: [run.images_per_second for run in runs] for name, runs in done.items()}
    epochs = {name: [run.epoch_seconds for run in runs if run.epoch_seconds] for name, runs in done.items()}
    validating = {name: values for name, values in epochs.items() if values}
    rows = compare("training", "images/s", rates, versions=versions, notes=failed)
    return [*rows, *compare("an epoch with validation and checkpoint", "s", validating, versions=versions)]


def main(
    data_dir: Path,
    batch_size: int = 64,
    repeats: int = 5,
    examples: int = 0,
    epochs: int = 4,
    turn: float = 3.0,
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
      epochs: of each run, 3 or more; the first is not counted, nor the last of flaxcls, as it compiles its last steps.
      turn: seconds for which one system runs while the others are held.
      only: the systems to compare flaxcls with, such as "Keras on TensorFlow"; without any, all.
      peers: environment of the others, made where it is missing.
      python: Python that it is made with.
      out: JSON file of the rows.
    """
    if epochs < 3:
        raise SystemExit(f"epochs is {epochs}, but must be 3 or more: the first and flaxcls's last are not counted.")
    if not 0 < turn < math.inf:
        raise SystemExit(f"turn is {turn}, but must be a number of seconds above 0.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the programs end, too
    console, task = Console(), Task(data_dir.absolute(), examples or None, epochs, batch_size)
    env = install(peers, base=python)
    with tempfile.TemporaryDirectory() as place:
        systems = chosen(all_systems(env, save_data(task, Path(place))), only)
        done, failed = train_all(systems, task, repeats, turn, console)
    settings = {
        "batch size": batch_size,
        "images": examples or "all",
        "epochs": epochs,
        "repeats": repeats,
        "seconds of a turn": turn,
    }
    report(rows_of(done, failed), out, settings, console)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.throughput")
