"""The parts of `experiments.benchmarks.gpu`, which starts each part as a process of its own.

Usage: python -m experiments.benchmarks.gpu.parts PART --data-dir DATA_DIR --out FOLDER --runs N --seconds S [--tiny]

Each writes its rows, its device and its versions to FOLDER/PART.json.
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

from experiments.benchmarks.gpu import resnet
from experiments.benchmarks.gpu.profile import profile
from experiments.benchmarks.gpu.resnet import Training
from experiments.benchmarks.gpu.speedrun import Speedrun, determinism, warm
from experiments.benchmarks.measure import Row, run
from experiments.cifar10_speedrun import MUON
from flaxcls.run.result import device, versions
from flaxcls.run.runtime import use_compilation_cache

COMMAND = (sys.executable, "-m", "experiments.cifar10_speedrun", "--loop.no-deterministic")

# share of a part's seconds after which no measurement starts; the process needs the rest to start and to end
SHARE = 0.8


@dataclass(frozen=True)
class Sizes:
    """The measured sizes: the speed run, in processes and in this one, and the network for ImageNet's images."""

    command: Sequence[str] = COMMAND
    speedrun: Speedrun = field(default_factory=Speedrun)
    training: Training = field(default_factory=Training)


# tests on any machine that everything runs, in a few minutes; its numbers say nothing
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
    """One part to measure.

    name: of the part. out: folder for its files. runs: most runs of a measurement.
    until: the `time.perf_counter` after which no run starts.
    """

    name: str
    sizes: Sizes
    data_dir: Path
    out: Path
    runs: int
    until: float


def process(task: Task) -> tuple[list[Row], dict[str, str]]:
    """Returns the rows of the command as a process of its own, and its device and versions.

    The process uses the compiled programs in the user's cache, and adds its own.
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


def in_process(measure: Callable[[Task], list[Row]]) -> Callable[[Task], tuple[list[Row], dict[str, str]]]:
    """Returns `measure` as a part that runs in this process."""
    return lambda task: (measure(task), {"device": device(), **versions()})


def on_speedrun(measure: Callable[[Speedrun, Path, int, float, Path], list[Row]]) -> Callable[[Task], list[Row]]:
    """Returns `measure` as a part on the speed run."""
    return lambda task: measure(task.sizes.speedrun, task.data_dir, task.runs, task.until, task.out)


def in_torch(task: Task) -> tuple[list[Row], dict[str, str]]:
    """Returns the rows of the same recipe in PyTorch, without device and versions: JAX must leave the device to it."""
    from experiments.benchmarks.gpu import pytorch

    return pytorch.measure(task.sizes.speedrun, task.data_dir, task.runs, task.until), {}


PARTS: dict[str, Callable[[Task], tuple[list[Row], dict[str, str]]]] = {
    "cold": process,
    "cached": process,
    "warm": in_process(on_speedrun(warm)),
    "profile": in_process(on_speedrun(profile)),
    "resident": in_process(lambda task: resnet.resident(task.sizes.training)),
    "streaming": in_process(lambda task: resnet.streaming(task.sizes.training)),
    "torch": in_torch,
    "determinism": in_process(on_speedrun(determinism)),
}


def main(args: Sequence[str] | None = None) -> None:
    """Measures one part, and writes its rows to a file."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.gpu.parts")
    parser.add_argument("part", choices=[*PARTS])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(args)
    use_compilation_cache()
    task = Task(
        name=options.part,
        sizes=TINY if options.tiny else Sizes(),
        data_dir=options.data_dir.absolute(),
        out=options.out,
        runs=options.runs,
        until=began + SHARE * options.seconds,
    )
    rows, where = PARTS[options.part](task)
    result = {"rows": [dataclasses.asdict(row) for row in rows], "where": where}
    (options.out / f"{options.part}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
