"""Peak memory of training the tutorial's network on CIFAR-10, beside Keras on TensorFlow, Keras on JAX and PyTorch.

It is the largest resident set of each program from its start to its end, as the system counted it, with the whole
training split: flaxcls by its command, Keras with images of float32 as the tutorial has them and, at its leanest, of
bytes that the network rescales, and PyTorch with float32. What runs is that of `throughput`, one after another.

Command:   python -m experiments.benchmarks.memory --data-dir DATA_DIR
Hardware:  2 cores of an AMD EPYC (Zen 4, a virtual machine whose speed drifts by a fifth), otherwise idle, 26 November
           2026, Python 3.13 with jax 0.12.0.1; the others with Python 3.11
Result:    1,091 MiB with nothing in the compilation cache, and 1,085 with one step a dispatch; Keras 3.15.1 on
           TensorFlow 2.21 2,338 MiB, with images of bytes 1,080; on JAX 0.10.2 1,650 and 1,216; PyTorch 2.13 1,118,
           compiled 1,121 (n = 1)
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import tyro
from rich.console import Console

from experiments.benchmarks.measure import ProgramError, compare, in_turn, report
from experiments.benchmarks.peers import install
from experiments.benchmarks.systems import KERAS, System, Task, Trained, all_systems, peer, save_data


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
                trained = systems[name](task, Path(place), None)
            except ProgramError as error:
                if name == "flaxcls":
                    raise
                failed[name], done[name] = str(error), []
                console.print(f"{name}: {error}", markup=False)
                continue
        done[name].append(trained)
        console.print(
            f"{len(done[name])}/{repeats} {name}: {trained.ran.peak_bytes / 2**20:,.0f} MiB, validation accuracy "
            f"{trained.accuracy:.1%}, {trained.ran.seconds:.0f} s in all"
        )
    return done, failed


def main(
    data_dir: Path,
    batch_size: int = 64,
    repeats: int = 3,
    examples: int = 0,
    epochs: int = 2,
    peers: Path = Path("build/peers"),
    python: str = sys.executable,
    out: Path = Path("build/memory.json"),
) -> None:
    """Prints medians over the repeats, their spread, and the ratio of each pair within a repeat.

    Args:
      data_dir: where tensorflow-datasets has prepared cifar10.
      batch_size: images a step.
      repeats: runs of each system.
      examples: training images; 0 means all.
      epochs: of each run.
      peers: environment of the others, made where it is missing.
      python: Python that it is made with.
      out: JSON file of the rows.
    """
    console, task = Console(), Task(data_dir.absolute(), examples or None, epochs, batch_size)
    env = install(peers, base=python)
    with tempfile.TemporaryDirectory() as place:
        data = save_data(task, Path(place))
        systems = all_systems(env, data)
        for backend, name in (("tensorflow", "TensorFlow"), ("jax", "JAX")):
            systems[f"Keras on {name}, bytes"] = peer({**env, "KERAS_BACKEND": backend}, data, KERAS, "--bytes")
        done, failed = train_in_turn(systems, task, repeats, console)
    peaks = {name: [run.ran.peak_bytes / 2**20 for run in runs] for name, runs in done.items()}
    versions = {name: runs[0].versions for name, runs in done.items() if runs}
    settings = {"batch size": batch_size, "images": examples or "all", "epochs": epochs, "repeats": repeats}
    report(compare("peak memory", "MiB", peaks, versions=versions, notes=failed), out, settings, console)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.memory")
