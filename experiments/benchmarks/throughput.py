"""Training speed of the tutorial's network on CIFAR-10, beside Keras on TensorFlow, Keras on JAX and PyTorch.

`peers/systems.py` describes the programs. All are started, but one runs at a time: each for 3 s, while the others are
held (`turns.py`). So all meet the same drift of the machine, and all are in memory. Each is timed within its own turns,
in the epochs after its first that ended before the first program ended. If a program is too slow to have any, all its
epochs after the first count. The experiment runs four steps a dispatch. flaxcls also runs with one step a dispatch, and
Keras on TensorFlow with four steps an execution beside its default of one.

images/s is that of the training steps. For flaxcls they last from the end of a validation, including a checkpoint, to
the last log line before the next validation; for the others, from the start of an epoch to the start of its validation.
The seconds of an epoch last from the end of one validation to the end of the next: training, validation and a
checkpoint. flaxcls's times come from its TensorBoard files.

Command:   python -m experiments.benchmarks.throughput --data-dir DATA_DIR
Hardware:  2 cores of an AMD EPYC (Zen 4, a virtual machine whose speed drifts by a fifth), otherwise idle, 26 November
           2026, Python 3.13 with jax 0.12.0.1; the others with Python 3.11
Result:    README.md
"""

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from experiments.benchmarks.measure import ProgramError, Row, compare, report
from experiments.benchmarks.peers.systems import (
    Options,
    Program,
    Span,
    System,
    Task,
    Trained,
    all_systems,
    prepare,
    run_repeats,
)
from experiments.benchmarks.turns import TimeSlice, running_seconds, take_turns


@dataclass(frozen=True)
class ThroughputOptions(Options):
    """Options of this command."""

    repeats: int = 5
    """Runs of each system."""
    epochs: int = 4
    """Epochs of each run, 3 or more; the first, and the last of flaxcls, which compiles, do not count."""
    turn: float = 3.0
    """Seconds that one system runs while the others are held."""
    only: tuple[str, ...] = ()
    """Systems to compare flaxcls with, such as "Keras on TensorFlow"; default: all."""
    out: Path = Path("build/throughput.json")
    """JSON file for the rows."""


def choose_systems(systems: Mapping[str, System], only: Sequence[str]) -> Mapping[str, System]:
    """Returns flaxcls and the systems named in `only`, or all if it is empty. Raises SystemExit for another name."""
    if unknown := set(only) - set(systems):
        raise SystemExit(f"only names {sorted(unknown)}, but the systems are {', '.join(systems)}.")
    return {name: system for name, system in systems.items() if not only or name in ("flaxcls", *only)}


@dataclass(frozen=True)
class Measurement:
    """The speed of one run that took turns with others, timed within its own turns.

    images_per_second: of the training steps.
    epoch_seconds: of an epoch with validation and checkpoint; None for a system without them.
    """

    images_per_second: float
    epoch_seconds: float | None
    trained: Trained


def measure(trained: Trained, slices: Sequence[TimeSlice], until: float) -> Measurement:
    """Returns the speed of a run in its epochs that ended by `until`, or in all epochs if none did.

    Raises ProgramError if it has no epochs.
    """

    def in_time(spans: Sequence[Span]) -> Sequence[Span]:
        return [span for span in spans if span.ended <= until] or spans

    def seconds(spans: Sequence[Span]) -> float:
        return sum(running_seconds(slices, span.began, span.ended) for span in spans)

    training, epochs = in_time(trained.training), in_time(trained.epochs)
    if not training:
        raise ProgramError("no log line between two validations: give more --examples or --epochs")
    rate = sum(span.images for span in training) / seconds(training)
    return Measurement(rate, seconds(epochs) / len(epochs) if epochs else None, trained)


def train_all(
    systems: Mapping[str, System], task: Task, repeats: int, turn: float, console: Console
) -> tuple[dict[str, list[Measurement]], dict[str, str]]:
    """Returns the measurements of each system in turns of `turn` seconds, and the errors; see `run_repeats`."""

    def train_in_turns(programs: Mapping[str, Program]) -> Iterator[tuple[str, Measurement | ProgramError]]:
        jobs, slices = take_turns(programs, turn, needed="flaxcls")
        results: dict[str, Trained] = {}
        for name, job in jobs.items():
            if isinstance(error := job.exception(), ProgramError):
                yield name, error
            else:
                results[name] = job.result()
        until = min(trained.ran.began + trained.ran.seconds for trained in results.values())
        for name, trained in results.items():
            yield name, measure(trained, slices[name], until)

    def describe(measurement: Measurement) -> str:
        speed, accuracy = measurement.images_per_second, measurement.trained.accuracy
        return f"{speed:,.0f} images/s, validation accuracy {accuracy:.1%}"

    return run_repeats(systems, task, repeats, train_in_turns, describe, console)


def rows_of(results: Mapping[str, list[Measurement]], errors: Mapping[str, str]) -> list[Row]:
    """Returns the rows: the training speed of all systems, and the whole epochs of systems that validate and save."""
    versions = {name: runs[0].trained.versions for name, runs in results.items() if runs}
    rates = {name: [run.images_per_second for run in runs] for name, runs in results.items()}
    epochs = {name: [run.epoch_seconds for run in runs if run.epoch_seconds] for name, runs in results.items()}
    validating = {name: values for name, values in epochs.items() if values}
    rows = compare("training", "images/s", rates, versions=versions, notes=errors)
    return [*rows, *compare("an epoch with validation and checkpoint", "s", validating, versions=versions)]


def main(options: ThroughputOptions) -> None:
    """Prints medians over the repeats, their spread, and the ratio of each pair within a repeat."""
    if options.epochs < 3:
        raise SystemExit(
            f"epochs is {options.epochs}, but must be 3 or more: the first and flaxcls's last are not counted."
        )
    if not 0 < options.turn < math.inf:
        raise SystemExit(f"turn is {options.turn}, but must be a number of seconds above 0.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the programs end as well
    console = Console()
    with prepare(options) as (env, data):
        systems = choose_systems(all_systems(env, data), options.only)
        results, errors = train_all(systems, options.task, options.repeats, options.turn, console)
    settings = {**options.settings, "seconds of a turn": options.turn}
    report(rows_of(results, errors), options.out, settings, console)


if __name__ == "__main__":
    main(tyro.cli(ThroughputOptions, prog="python -m experiments.benchmarks.throughput", description=main.__doc__))
