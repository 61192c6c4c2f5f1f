"""The parts of `experiments.benchmarks.gpu`, which starts each of them as a process of its own.

Usage: python -m experiments.benchmarks.gpu_parts PART --data-dir DATA_DIR --out FOLDER --runs N --seconds S [--tiny]

The rows of the part, and the device and versions that they are of, are written to FOLDER/PART.json.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from experiments.benchmarks import gpu_resnet
from experiments.benchmarks.gpu_profile import profile
from experiments.benchmarks.gpu_resnet import Training
from experiments.benchmarks.gpu_speedrun import Speedrun, determinism, warm
from experiments.benchmarks.measure import Row, run
from experiments.cifar10_speedrun import MUON
from flaxcls.run.result import device, versions
from flaxcls.run.runtime import use_compilation_cache

COMMAND = (sys.executable, "-m", "experiments.cifar10_speedrun", "--loop.no-deterministic")

# of the seconds of a part, after which no measurement is begun: its process has started before, and ends after
SHARE = 0.8


@dataclass(frozen=True)
class Sizes:
    """What is measured: the speed run, in processes and in this one, and the network for ImageNet's images."""

    command: Sequence[str] = COMMAND
    speedrun: Speedrun = field(default_factory=Speedrun)
    training: Training = field(default_factory=Training)


# to see on any machine that everything runs, in a few minutes; its numbers say nothing
TINY = Sizes(
    command=(
        *COMMAND,
        "--augment.no-eval-flip",
        *chain.from_iterable(
            {
                "--augment.eval-shift": "0",
                "--augment.eval-pattern": "cross",
                "--data.train-examples": "100",
                "--loop.batch-size": "50",
                "--loop.epochs": "4",
                "--loop.eval-every": "4",
                "--loop.steps-per-dispatch": "1",
                "--model.dtype": "float32",
                "--model.init-images": "100",
            }.items()
        ),
    ),
    speedrun=Speedrun(
        config=dataclasses.replace(
            MUON,
            data=dataclasses.replace(MUON.data, train_examples=60),
            model=dataclasses.replace(MUON.model, dtype="float32", init_images=50),
            optim=dataclasses.replace(MUON.optim, freeze={"whitening/*": 1}),
            loop=dataclasses.replace(MUON.loop, epochs=2, eval_every=2, batch_size=30, steps_per_dispatch=1),
        ),
        network={"widths": (8, 8, 8), "logit_scale": 1 / 16},
        tested=60,
    ),
    training=Training("cnn", 16, 4, 8, 24, dispatch=2, resident_epochs=2, streamed_epochs=2),
)


@dataclass(frozen=True)
class Task:
    """A part by its name, where the data are and files go, runs of a measurement, and when they should be over."""

    name: str
    sizes: Sizes
    data_dir: Path
    out: Path
    runs: int
    until: float


def process(task: Task) -> tuple[list[Row], dict[str, str]]:
    """Returns the rows of the command as a process of its own, and what it ran on.

    It finds in the user's cache the programs that are there, and leaves its own.
    """
    with tempfile.TemporaryDirectory() as place:
        workdir = Path(place) / "run"
        ran = run([*task.sizes.command, "--data.dir", task.data_dir, "--workdir", workdir])
        result = json.loads((workdir / "result.json").read_text())
    title = "a process that runs the command to its end"
    rows = [
        Row(f"{task.name}, from its start to its end", title, "s", [ran.seconds]),
        Row(f"{task.name}, of it fit", title, "s", [result["seconds"]]),
        Row(f"{task.name}, test accuracy", title, "%", [100 * result["test"]["accuracy"]]),
    ]
    return rows, {"device": result["device"], **result["versions"]}


def here(measure: Callable[[Task], list[Row]]) -> Callable[[Task], tuple[list[Row], dict[str, str]]]:
    """Returns a part that is measured in this process."""
    return lambda task: (measure(task), {"device": device(), **versions()})


def of_speedrun(measure: Callable[[Speedrun, Path, int, float, Path], list[Row]]) -> Callable[[Task], list[Row]]:
    """Returns a part of the speed run."""
    return lambda task: measure(task.sizes.speedrun, task.data_dir, task.runs, task.until, task.out)


def in_torch(task: Task) -> tuple[list[Row], dict[str, str]]:
    """Returns the rows of the same recipe in PyTorch, which has the device to itself, and nothing of what it ran on."""
    from experiments.benchmarks import gpu_torch

    return gpu_torch.measure(task.sizes.speedrun, task.data_dir, task.runs, task.until), {}


PARTS: dict[str, Callable[[Task], tuple[list[Row], dict[str, str]]]] = {
    "cold": process,
    "cached": process,
    "warm": here(of_speedrun(warm)),
    "profile": here(of_speedrun(profile)),
    "resident": here(lambda task: gpu_resnet.resident(task.sizes.training)),
    "streaming": here(lambda task: gpu_resnet.streaming(task.sizes.training)),
    "torch": in_torch,
    "determinism": here(of_speedrun(determinism)),
}


def main(args: Sequence[str] | None = None) -> None:
    """Measures one part, and writes its rows."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.gpu_parts")
    parser.add_argument("part", choices=[*PARTS])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(args)
    use_compilation_cache()
    task = Task(
        name=given.part,
        sizes=TINY if given.tiny else Sizes(),
        data_dir=given.data_dir.absolute(),
        out=given.out,
        runs=given.runs,
        until=began + SHARE * given.seconds,
    )
    rows, where = PARTS[given.part](task)
    found = {"rows": [dataclasses.asdict(row) for row in rows], "where": where}
    (given.out / f"{given.part}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
