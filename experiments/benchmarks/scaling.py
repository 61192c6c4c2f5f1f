"""What sharing one step's work among devices and processes costs on this machine: the tutorial's network on CIFAR-10.

The command trains the same batches on 1, 2 and 4 virtual devices of one process, and on 1 and 2 devices in each of two
processes, which send each other the gradients over the loopback by gloo. The work is the same each time, and so are
the cores, so a run without any cost would be as fast as one device. One runs at a time, in turn, another one first each
time.

It can say what dispatching several devices, cutting the batch and adding up gradients cost. It cannot say how fast
several hosts are: here they share two cores, their caches and no network.

Command:   python -m experiments.benchmarks.scaling --data-dir DATA_DIR
Hardware:  2 cores of an AMD EPYC, otherwise idle, 26 November 2026, Python 3.13 with jax 0.12.0.1
Result:    1 device 3,947 images/s (n = 3, 3,099 to 4,238); 2 devices 3,717, which takes 1.06 times as long (0.83 to
           1.35); 4 devices 3,070, 1.33 times (1.00 to 1.38); 2 processes 1,467, 2.39 times (2.11 to 3.06); 2 processes
           of 2 devices 1,124, 3.77 times (2.67 to 4.07)
"""

import importlib.metadata
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from experiments.benchmarks.measure import compare, in_turn, report
from experiments.benchmarks.systems import EXPERIMENT
from flaxcls.run.result import versions
from flaxcls.run.runtime import CPU_FLAGS

ONE = "1 device"
# name -> processes, and devices of each
LAYOUTS = {ONE: (1, 1), "2 devices": (1, 2), "4 devices": (1, 4), "2 processes": (2, 1), "2 processes of 2": (2, 2)}


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


def images_per_second(processes: int, devices: int, options: Sequence[str], *, epochs: int, batch_size: int) -> float:
    """Returns the speed of the median epoch after the first, with further options of the command.

    Raises RuntimeError if a process fails.
    """
    jaxlib = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
    flags = f"{CPU_FLAGS.get(jaxlib, '')} --xla_force_host_platform_device_count={devices}"
    with tempfile.TemporaryDirectory() as place, socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
        free.close()
        workdir = Path(place) / "run"
        command = [
            *(sys.executable, "-m", "flaxcls.train", str(EXPERIMENT), "--workdir", str(workdir)),
            *("--loop.epochs", str(epochs), "--loop.batch-size", str(batch_size), *options),
            *("--distributed.coordinator", address, "--distributed.num-processes", str(processes)),
        ]
        running = [
            subprocess.Popen(
                [*command, "--distributed.process-id", str(number)],
                env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.DEVNULL,
            )
            for number in range(processes)
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError(f"{processes} processes of {devices} devices failed.")
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(epoch_rates(lines, batch_size, epochs))


def main(
    data_dir: Path,
    batch_size: int = 64,
    repeats: int = 3,
    examples: int = 10_000,
    epochs: int = 3,
    out: Path = Path("build/scaling.json"),
) -> None:
    """Prints medians over the repeats, their spread, and the ratio of one device to each within a repeat.

    Args:
      data_dir: where tensorflow-datasets has prepared cifar10.
      batch_size: images a step, over all devices.
      repeats: runs of each layout.
      examples: training images.
      epochs: of each run, 2 or more; the first is not counted.
      out: JSON file of the rows.
    """
    if epochs < 2:
        raise SystemExit(f"epochs is {epochs}, but must be 2 or more: the first, which compiles, is not counted.")
    console, rates = Console(), {name: list[float]() for name in LAYOUTS}
    for name in in_turn([*LAYOUTS], repeats):
        options = ["--data.dir", str(data_dir.absolute()), "--data.train-examples", str(examples)]
        rates[name].append(images_per_second(*LAYOUTS[name], options, epochs=epochs, batch_size=batch_size))
        console.print(f"{len(rates[name])}/{repeats} {name}: {rates[name][-1]:,.0f} images/s")
    rows = compare("training", "images/s", rates, versions=dict.fromkeys(LAYOUTS, versions()), ours=ONE)
    settings = {"batch size": batch_size, "images": examples, "epochs": epochs, "repeats": repeats}
    report(rows, out, settings, console)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.scaling")
