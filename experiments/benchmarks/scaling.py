"""The cost of sharing a step among devices and processes on one machine: the tutorial's network on CIFAR-10.

It trains the same batches on 1, 2 and 4 virtual devices of one process, and on 1 and 2 devices in each of two
processes, which send each other the gradients over the loopback by gloo. Work and cores are the same each time, so a
layout without any cost would be as fast as one device. One layout runs at a time, in turn, each repeat starting with
another.

It shows the cost of dispatching to several devices, of cutting the batch, and of adding up gradients. It cannot show
the speed of several hosts: here they share two cores and caches, and have no network.

Command:   python -m experiments.benchmarks.scaling --data-dir DATA_DIR
Hardware:  2 cores of an AMD EPYC, otherwise idle, 26 November 2026, Python 3.13 with jax 0.12.0.1
Result:    README.md
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
from experiments.benchmarks.peers.systems import EXPERIMENT
from flaxcls.run.result import versions
from flaxcls.run.runtime import CPU_FLAGS

ONE = "1 device"
# name -> processes, devices of each process
LAYOUTS = {ONE: (1, 1), "2 devices": (1, 2), "4 devices": (1, 4), "2 processes": (2, 1), "2 processes of 2": (2, 2)}


def epoch_rates(lines: Sequence[Mapping[str, Any]], batch_size: int, epochs: int) -> list[float]:
    """Returns images/s of each epoch after the first, from the lines of metrics.jsonl.

    A line counts for the epoch that it ends in. An epoch with fewer steps than one log interval may have no line.
    """
    images, seconds = np.zeros(epochs), np.zeros(epochs)
    trained = [line for line in lines if line["split"] == "train"]
    for before, line in pairwise([{"step": 0}, *trained]):
        epoch, count = min(line["epoch"], epochs - 1), (line["step"] - before["step"]) * batch_size
        images[epoch] += count
        seconds[epoch] += count / line["images_per_second"]
    return [float(count / time) for count, time in zip(images[1:], seconds[1:], strict=True) if count]


def images_per_second(processes: int, devices: int, options: Sequence[str], *, epochs: int, batch_size: int) -> float:
    """Returns the speed of the median epoch after the first, with further `options` of the command.

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
      data_dir: folder that tensorflow-datasets prepared cifar10 in.
      batch_size: images a step, over all devices.
      repeats: runs of each layout.
      examples: training images.
      epochs: epochs of each run, 2 or more; the first does not count.
      out: JSON file for the rows.
    """
    if epochs < 2:
        raise SystemExit(f"epochs is {epochs}, but must be 2 or more: the first compiles and does not count.")
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
