"""The time of `python -m flaxcls.train` on the digits, beside the same task in Keras on TensorFlow.

It is measured from the start of the process to the end of the first training step, and to the end of the process. Cold
means an empty folder of compiled programs; warm means the folder that a whole run left. Keras keeps no compiled
programs, so its times stand beside both. The files of both have been read once before.

flaxcls's first step ends when its log line is written, because the line waits for the result. This is a run of its own,
with --stop-after 1 --loop.log-every 1; the time is that of metrics.jsonl. Keras's first step ends with its callback for
the first batch.

The task: 1,294 images of 8x8, the default network with batch normalisation and dropout, shifts by up to a pixel, AdamW
with a cosine schedule, an average of the parameters, validation in each epoch; the best checkpoint is kept and tested.

Command:   python -m experiments.benchmarks.startup
Hardware:  2 cores of an AMD EPYC (Zen 4, a virtual machine whose speed drifts by a fifth), otherwise idle, 26 November
           2026, Python 3.13 with jax 0.12.0.1; the others with Python 3.11
Result:    README.md
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from experiments.benchmarks.measure import Ran, Row, compare, in_turn, report, run
from experiments.benchmarks.peers.environment import install, run_peer
from flaxcls.config import Config
from flaxcls.data import load_dataset

KERAS = "Keras on TensorFlow"
FIRST, WHOLE = "from the start to the end of the first step", "the whole command"


def save_data(place: Path) -> Path:
    """Writes images u8[n 8 8 1] and labels of flaxcls's splits of the digits for Keras."""
    dataset = load_dataset(Config().data)
    arrays: dict[str, Any] = {}
    for name in ("train", "validation", "test"):
        split = getattr(dataset, name)
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
    np.savez(place / "digits.npz", **arrays)
    return place / "digits.npz"


def first_step_seconds(cache: Path) -> float:
    """Returns the seconds from the start of flaxcls's command to the end of its first step."""
    with tempfile.TemporaryDirectory() as place:
        workdir = Path(place) / "run"
        ran = _train(cache, workdir, "--stop-after", "1", "--loop.log-every", "1")
        return (workdir / "metrics.jsonl").stat().st_mtime - ran.began


def whole_run(cache: Path, epochs: int) -> tuple[float, dict[str, Any]]:
    """Returns the seconds of flaxcls's command, and its result.json."""
    with tempfile.TemporaryDirectory() as place:
        workdir = Path(place) / "run"
        ran = _train(cache, workdir, "--loop.epochs", str(epochs))
        return ran.seconds, json.loads((workdir / "result.json").read_text())


def _train(cache: Path, workdir: Path, *options: str) -> Ran:
    command = [sys.executable, "-m", "flaxcls.train", "--workdir", str(workdir), *options]
    return run(command, {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"})


def keras_run(env: Mapping[str, str], data: Path, epochs: int) -> tuple[float, float, dict[str, Any]]:
    """Returns Keras's seconds to the end of the first step and to the end of the process, and its JSON."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "result.json"
        result, ran = run_peer(env, "train_keras.py", out, "digits", str(data), "--epochs", str(epochs))
    return result["first_step"] - ran.began, ran.seconds, result


def rows_of(
    seconds: Mapping[str, Mapping[str, list[float]]],
    keras_seconds: Mapping[str, list[float]],
    versions: Mapping[str, dict[str, str]],
) -> list[Row]:
    """Returns the rows: flaxcls cold and warm, each beside Keras."""
    return [
        row
        for quantity in (FIRST, WHOLE)
        for state, found in seconds.items()
        for row in compare(
            f"{quantity}, {state}", "s", {"flaxcls": found[quantity], KERAS: keras_seconds[quantity]}, versions=versions
        )
    ]


def main(
    repeats: int = 5,
    epochs: int = Config().loop.epochs,
    peers: Path = Path("build/peers"),
    python: str = sys.executable,
    out: Path = Path("build/startup.json"),
) -> None:
    """Prints medians over the repeats, their spread, and the ratio of each pair within a repeat.

    Args:
      repeats: runs of each system.
      epochs: epochs of a whole run.
      peers: environment of Keras; it is made if it is missing.
      python: Python to make that environment with.
      out: JSON file for the rows.
    """
    console, env = Console(), {**install(peers, base=python), "KERAS_BACKEND": "tensorflow"}
    seconds: dict[str, dict[str, list[float]]] = {state: {FIRST: [], WHOLE: []} for state in ("cold", "warm")}
    keras_seconds: dict[str, list[float]] = {FIRST: [], WHOLE: []}
    versions: dict[str, dict[str, str]] = {}
    accuracy: dict[str, float] = {}

    def measure_flaxcls() -> None:
        with tempfile.TemporaryDirectory() as unused, tempfile.TemporaryDirectory() as cache:
            seconds["cold"][FIRST].append(first_step_seconds(Path(unused)))
            for state in ("cold", "warm"):
                whole, result = whole_run(Path(cache), epochs)
                seconds[state][WHOLE].append(whole)
            seconds["warm"][FIRST].append(first_step_seconds(Path(cache)))
        versions["flaxcls"], accuracy["flaxcls"] = result["versions"], result["test"]["accuracy"]

    with tempfile.TemporaryDirectory() as place:
        data = save_data(Path(place))

        def measure_keras() -> None:
            first, whole, result = keras_run(env, data, epochs)
            keras_seconds[FIRST].append(first)
            keras_seconds[WHOLE].append(whole)
            versions[KERAS], accuracy[KERAS] = result["versions"], result["accuracy"]

        first_step_seconds(Path(place) / "unused")
        keras_run(env, data, 2)
        measures = {"flaxcls": measure_flaxcls, KERAS: measure_keras}
        for name in in_turn([*measures], repeats):
            measures[name]()
            console.print(f"{name}: test accuracy {accuracy[name]:.1%}")
    report(rows_of(seconds, keras_seconds, versions), out, {"epochs": epochs, "repeats": repeats}, console)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.startup")
