"""The cost of `fit` beyond its compiled steps, on the digits and on the tutorial's network with images of noise.

`fit` runs with progress, log, validation and checkpoints. After every dozen of its dispatches it is held, and bare
steps take their turn for as many steps: the same program over batches that are on the device already. The speed of a
drifting machine changes little within such a second. The comparisons:

- a step: `fit` in all turns without validation and save, with bare steps;
- an epoch: all turns from a few dispatches after one checkpoint to as many after the next, with as many bare steps and
  a bare evaluation of the validation split, whose batches are on the device;
- a checkpoint: the time that the turn with it takes longer than bare steps and evaluation. `fit` waits for the whole
  checkpoint at the end of the turn, within its time; otherwise the checkpoint would be written beside later steps.

Command:   python -m experiments.benchmarks.overhead
Hardware:  2 cores of an AMD EPYC (Zen 4, a virtual machine whose speed drifts by a fifth), 26 November 2026, Python
           3.13 with jax 0.12.0.1
Result:    README.md
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments.benchmarks.measure import Row, compare, report
from flaxcls.cli import load_experiment
from flaxcls.config import Config
from flaxcls.data import Dataset, from_arrays, load_dataset
from flaxcls.data.batches import pad_batch
from flaxcls.run import fit, loop
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.evaluation import fit_batch_size
from flaxcls.run.result import device, versions
from flaxcls.run.runtime import tune_malloc, use_cpu_flags
from flaxcls.run.setup import Setup, make_setup
from flaxcls.sharding import batch_sharding, batches_sharding, on_devices
from flaxcls.state import TrainState

TURN = 12  # dispatches
AFTER = 6  # dispatches of a turn after its checkpoint, which is written beside them


@dataclass(frozen=True)
class Turn:
    """Some steps of `fit`, and as many bare steps right after them, in seconds.

    evaluation: seconds of a bare evaluation if `fit` evaluated and saved in this turn, otherwise 0.
    """

    steps: int
    fit: float
    bare: float
    evaluation: float


class TurnTaker:
    """The compiled dispatch of a setup, for `fit` to call; between two turns of `fit` it runs bare steps.

    wait: returns when the latest checkpoint is whole; it counts as time of `fit`.
    turns: the measured turns, from the first checkpoint on, when all is compiled.
    """

    def __init__(self, setup: Setup, wait: Callable[[], None]) -> None:
        self.turns: list[Turn] = []
        self._wait = wait
        steps = setup.plan.dispatch_steps
        self._setup, self._key = setup, jax.random.key(0)
        batches = [setup.loader.load(number * steps, (number + 1) * steps) for number in range(TURN)]
        self._batches = jax.device_put(batches, batches_sharding(setup.mesh))
        self._state = setup.create(self._key)
        self._step = 0
        self._since_save: int | None = None  # dispatches
        self._began: float | None = None
        self._dispatches, self._steps, self._saved = 0, 0, False

    def __call__(self, state: TrainState, batches: Any, key: jax.Array, frozen: tuple[str, ...] = ()) -> Any:
        """Trains like `Setup.train`."""
        if self._turn_is_over():
            jax.block_until_ready(state)
            self._wait()
            if self._began is None:
                self._bare_seconds()  # the first one compiles
            else:
                seconds, bare = time.perf_counter() - self._began, self._bare_seconds()
                evaluation = bare_evaluation_seconds(self._setup) if self._saved else 0.0
                self.turns.append(Turn(self._steps, seconds, bare * self._steps, evaluation))
            self._dispatches, self._steps, self._saved = 0, 0, False
            self._began = time.perf_counter()
        end = self._setup.plan.dispatch_end(self._step)
        self._dispatches, self._steps, self._step = self._dispatches + 1, self._steps + end - self._step, end
        if self._setup.plan.saves(end):
            self._since_save, self._saved = 0, True
        elif self._since_save is not None:
            self._since_save += 1
        return self._setup.train(state, batches, key, frozen=frozen)

    def _turn_is_over(self) -> bool:
        if self._since_save is None or self._since_save < AFTER:
            return False
        return self._since_save == AFTER or self._dispatches >= TURN

    def _bare_seconds(self) -> float:
        """Returns the seconds of a bare step."""
        began = time.perf_counter()
        for batches in self._batches:
            self._state, _ = self._setup.train(self._state, batches, self._key)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - began) / (len(self._batches) * self._setup.plan.dispatch_steps)


def bare_evaluation_seconds(setup: Setup) -> float:
    """Returns the seconds of a compiled evaluation of the validation split, with its batches on the device."""
    split, state = setup.dataset.splits["validation"], setup.create(jax.random.key(0))
    size = fit_batch_size(setup.eval_batch_size, len(split.labels), setup.mesh.size)
    rows = [slice(start, start + size) for start in range(0, len(split.labels), size)]
    batches = [
        on_devices(pad_batch(np.asarray(split.images[one]), split.labels[one], size), batch_sharding(setup.mesh))
        for one in rows
    ]
    jax.block_until_ready([setup.evaluate(state, batches[0]), batches])
    began = time.perf_counter()
    jax.block_until_ready([setup.evaluate(state, batch) for batch in batches])
    return time.perf_counter() - began


def measure(config: Config, dataset: Dataset) -> list[Turn]:
    """Runs `fit` as the command does, and returns its turns."""
    takers: list[TurnTaker] = []
    opened: list[Checkpoints] = []

    class RecordingCheckpoints(Checkpoints):
        def __init__(self, directory: Path) -> None:
            super().__init__(directory)
            opened.append(self)

    def make_setup_with_turns(*args: Any, **options: Any) -> Setup:
        setup = make_setup(*args, **options)
        takers.append(TurnTaker(setup, lambda: opened[0].wait()))
        changes: Any = {"train": takers[0]}
        return dataclasses.replace(setup, **changes)

    with (
        tempfile.TemporaryDirectory() as place,
        Path(os.devnull).open("w") as nowhere,
        mock.patch.object(loop, "make_setup", make_setup_with_turns),
        mock.patch.object(loop, "Checkpoints", RecordingCheckpoints),
    ):
        console = Console(file=nowhere, force_terminal=True)  # with its progress bar
        fit(config, dataset=dataset, workdir=Path(place) / "run", console=console)
    return takers[0].turns


def epochs_of(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Returns the turns of each epoch; an epoch ends with the turn that holds its checkpoint."""
    epochs: list[list[Turn]] = [[]]
    for turn in turns:
        epochs[-1].append(turn)
        if turn.evaluation:
            epochs.append([])
    return epochs[:-1]


def rows_of(task: str, turns: Sequence[Turn]) -> list[Row]:
    """Returns the rows of one task, in ms."""

    def ms(values: Iterable[float]) -> list[float]:
        return [1e3 * value for value in values]

    calm, epochs = [turn for turn in turns if not turn.evaluation], epochs_of(turns)
    steps = {
        "flaxcls": ms(turn.fit / turn.steps for turn in calm),
        "bare": ms(turn.bare / turn.steps for turn in calm),
    }
    whole = {
        "flaxcls": ms(sum(turn.fit for turn in epoch) for epoch in epochs),
        "bare": ms(sum(turn.bare + turn.evaluation for turn in epoch) for epoch in epochs),
    }
    held_up = ms(turn.fit - turn.bare - turn.evaluation for turn in turns if turn.evaluation)
    libraries = versions()
    return [
        *_with_quartiles(compare(f"{task}: a step", "ms", steps, versions=dict.fromkeys(steps, libraries))),
        *_with_quartiles(
            compare(f"{task}: an epoch with validation", "ms", whole, versions=dict.fromkeys(whole, libraries))
        ),
        Row("flaxcls", f"{task}: held up by a checkpoint", "ms", held_up, [], libraries),
    ]


def _with_quartiles(rows: Sequence[Row]) -> list[Row]:
    def noted(row: Row) -> Row:
        if len(row.ratios) < 2:
            return row
        low, _, high = statistics.quantiles(row.ratios, n=4)
        return dataclasses.replace(row, note=f"half of them {low:.3f} to {high:.3f}")

    return [noted(row) for row in rows]


def noise(examples: int) -> Dataset:
    """Returns images u8[n 32 32 3] of noise in ten classes, a ninth as many for validation, and ten to test."""
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10

    return from_arrays(*part(examples), validation=part(max(examples // 9, 10)), test=part(10), name="noise")


def main(
    epochs: int = 12,
    examples: int = 45_000,
    digits_epochs: int = 40,
    out: Path = Path("build/overhead.json"),
) -> None:
    """Prints medians over the turns and the epochs, their spread, and the ratio of `fit` to the bare steps within each.

    Args:
      epochs: epochs of the run on noise, 3 or more; the first, and all after the last but one checkpoint, do not count.
      examples: training images of noise.
      digits_epochs: epochs of the run on the digits, 3 or more, counted in the same way.
      out: JSON file for the rows.
    """
    if min(epochs, digits_epochs) < 3:
        raise SystemExit(f"epochs is {epochs} and digits_epochs {digits_epochs}, but both must be 3 or more.")
    tune_malloc()  # as the command does
    use_cpu_flags()
    console = Console()
    digits, tutorial = Config(), load_experiment(Path(__file__).parent.parent / "cifar10_cnn.py")
    tasks = {
        "digits": (digits, digits_epochs, load_dataset(digits.data)),
        "tutorial's network": (tutorial, epochs, noise(examples)),
    }
    rows = []
    for name, (config, count, dataset) in tasks.items():
        console.print(f"{name}: {count} epochs ...")
        turns = measure(dataclasses.replace(config, loop=dataclasses.replace(config.loop, epochs=count)), dataset)
        rows += rows_of(name, turns)
    report(rows, out, {"images of noise": examples, "device": device()}, console)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.overhead")
