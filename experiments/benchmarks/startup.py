"""How long `python -m flaxcls.train` takes on the digits, beside the same task in Keras on TensorFlow.

Measured is the time from the start of the process to the end of the first training step, and to its end. Cold means an
empty folder of compiled programs, warm the one that a whole run has left; Keras keeps none, so that its times stand
beside both. The files of both have been read once before.

The first step of flaxcls ends when its line of the log is written, which waits for its result. So that there is such a
line, this is a run of its own, with --stop-after 1 --loop.log-every 1, and the line's time is that of metrics.jsonl.
Keras says by a callback when its first batch has ended.

The task: 1,294 images of 8x8, the default network with batch normalisation and dropout, shifts by up to a pixel, AdamW
with a cosine schedule, an average of the parameters, validation in each epoch, the best checkpoint kept and tested.

Command:   python -m experiments.benchmarks.startup
Hardware:  2 cores of an AMD EPYC (Zen 4, a virtual machine whose speed drifts by a fifth), otherwise idle, 26 November
           2026, Python 3.13 with jax 0.12.0.1; the others with Python 3.11
Result:    to the end of the first step 3.3 s warm (n = 3, 3.3 to 3.6) and 4.6 s cold (4.2 to 4.9), where Keras 3.15.1
           on TensorFlow 2.21 takes 5.0 s (4.4 to 5.8); the whole command 17.0 s warm (0.79 times Keras, 0.77 to 0.86)
           and 19.9 s cold (0.90 times, 0.85 to 0.93)
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
from experiments.benchmarks.peers import install, run_peer
from flaxcls.config import Config
from flaxcls.data import load_dataset

KERAS = "Keras on TensorFlow"
FIRST, WHOLE = "from the start to the end of the first step", "the whole command"


def save_data(place: Path) -> Path:
    """Writes the digits, as flaxcls splits them, for Keras: images u8[n 8 8 1] and labels of each split."""
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
    """Returns the seconds of flaxcls's command, and what its result.json holds."""
    with tempfile.TemporaryDirectory() as place:
        workdir = Path(place) / "run"
        ran = _train(cache, workdir, "--loop.epochs", str(epochs))
        return ran.seconds, json.loads((workdir / "result.json").read_text())


def _train(cache: Path, workdir: Path, *options: str) -> Ran:
    command = [sys.executable, "-m", "flaxcls.train", "--workdir", str(workdir), *options]
    return run(command, {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"})


def keras_run(env: Mapping[str, str], data: Path, epochs: int) -> tuple[float, float, dict[str, Any]]:
    """Returns Keras's seconds to the end of the first step and of the whole, and what it has written."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "result.json"
        result, ran = run_peer(env, "startup_keras.py", out, str(data), "--epochs", str(epochs))
    return result["first_step"] - ran.began, ran.seconds, result


def rows_of(
    seconds: Mapping[str, Mapping[str, list[float]]],
    keras_seconds: Mapping[str, list[float]],
    versions: Mapping[str, dict[str, str]],
) -> list[Row]:
    """Returns the rows: flaxcls, cold and warm, each beside Keras."""
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
      repeats: runs of each.
      epochs: of a whole run.
      peers: environment of Keras, made where it is missing.
      python: Python that it is made with.
      out: JSON file of the rows.
    """
    console, env = Console(), {**install(peers, base=python), "KERAS_BACKEND": "tensorflow"}
    seconds: dict[str, dict[str, list[float]]] = {state: {FIRST: [], WHOLE: []} for state in ("cold", "warm")}
    keras_seconds: dict[str, list[float]] = {FIRST: [], WHOLE: []}
    versions: dict[str, dict[str, str]] = {}
    accuracy: dict[str, float] = {}

    def measure_flaxcls() -> None:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            seconds["cold"][FIRST].append(first_step_seconds(Path(one)))
            for state in ("cold", "warm"):
                took, result = whole_run(Path(other), epochs)
                seconds[state][WHOLE].append(took)
            seconds["warm"][FIRST].append(first_step_seconds(Path(other)))
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
