"""Peak memory of training the tutorial's network on CIFAR-10, beside Keras on TensorFlow, Keras on JAX and PyTorch.

It is the largest resident set of each program from start to end, as the system counts it, with the whole training
split. flaxcls runs its command. Keras has images in float32 as in the tutorial and, in its leanest form, in bytes that
the network rescales. PyTorch has float32. The programs are those of `throughput`; they run one after another.

Command:   python -m experiments.benchmarks.memory --data-dir DATA_DIR
Hardware:  2 cores of an AMD EPYC (Zen 4, a virtual machine whose speed drifts by a fifth), otherwise idle, 26 November
           2026, Python 3.13 with jax 0.12.0.1; the others with Python 3.11
Result:    README.md
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from experiments.benchmarks.measure import ProgramError, compare, report
from experiments.benchmarks.peers.systems import (
    Options,
    Program,
    System,
    Task,
    Trained,
    all_systems,
    keras_on,
    prepare,
    run_repeats,
)


@dataclass(frozen=True)
class MemoryOptions(Options):
    """Options of this command."""

    out: Path = Path("build/memory.json")
    """JSON file for the rows."""


def train_one_by_one(programs: Mapping[str, Program]) -> Iterator[tuple[str, Trained | ProgramError]]:
    """Yields the result of each program, or its error; runs one after another."""
    for name, program in programs.items():
        try:
            yield name, program(None)
        except ProgramError as error:
            yield name, error


def train_all(
    systems: Mapping[str, System], task: Task, repeats: int, console: Console
) -> tuple[dict[str, list[Trained]], dict[str, str]]:
    """Returns the runs of each system, and the errors; see `run_repeats`."""

    def describe(trained: Trained) -> str:
        return (
            f"{trained.ran.peak_bytes / 2**20:,.0f} MiB, validation accuracy {trained.accuracy:.1%}, "
            f"{trained.ran.seconds:.0f} s in all"
        )

    return run_repeats(systems, task, repeats, train_one_by_one, describe, console)


def main(options: MemoryOptions) -> None:
    """Prints medians over the repeats, their spread, and the ratio of each pair within a repeat."""
    console = Console()
    with prepare(options) as (env, data):
        systems = all_systems(env, data)
        for backend, name in (("tensorflow", "TensorFlow"), ("jax", "JAX")):
            systems[f"Keras on {name}, bytes"] = keras_on(backend, env, data, "--bytes")
        results, errors = train_all(systems, options.task, options.repeats, console)
    peaks = {name: [run.ran.peak_bytes / 2**20 for run in runs] for name, runs in results.items()}
    versions = {name: runs[0].versions for name, runs in results.items() if runs}
    rows = compare("peak memory", "MiB", peaks, versions=versions, notes=errors)
    report(rows, options.out, options.settings, console)


if __name__ == "__main__":
    main(tyro.cli(MemoryOptions, prog="python -m experiments.benchmarks.memory", description=main.__doc__))
