"""What `fit` costs beyond the compiled steps, on the digits and on the tutorial's network with images of noise.

The bare steps are the same program in a plain loop, over batches that are on the device already, before and after each
run of `fit`, with progress, log, validation and checkpoints. Compared are

- a step: of `fit` as it logs it, without validation and saving, with the bare one;
- an epoch: of `fit` by the clock, with all that is in it, with its bare steps and a bare evaluation of the validation
  split. Epochs are counted from the end of the first checkpoint on;
- what log lines and checkpoints hold up: from when the results of the steps become ready, how much longer the steps
  after such an event take than others. Of the evaluation before each checkpoint its bare time is taken off.

Command:   python -m experiments.benchmarks.overhead
Hardware:  2 cores of an AMD EPYC (Zen 4, a virtual machine whose speed drifts by a fifth), otherwise idle, 26 November
           2026, Python 3.13 with jax 0.12.0.1; the others with Python 3.11
Result:    the tutorial's network, with 4 steps a dispatch: a step 1.03 times a bare one (n = 3, 0.96 to 1.05), an epoch
           of 703 steps 1.05 times (0.97 to 1.05); with one, 1.05 and 1.10 times (n = 3), where a line of the log holds
           up 7 ms and a checkpoint 110 ms. Digits, with epochs of 20 steps of 7 ms: a step 1.42 times (n = 3, 1.36 to
           1.51), an epoch 1.71 times (1.62 to 1.82), where a checkpoint holds up 66 ms
"""

import dataclasses
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from unittest import mock

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments.benchmarks.measure import Row, compare, in_turn, report
from experiments.benchmarks.steps import step_seconds
from flaxcls.cli import load_experiment
from flaxcls.config import Config
from flaxcls.data import Dataset, from_arrays, load_dataset
from flaxcls.run import fit, loop
from flaxcls.run.compilation import use_cpu_flags
from flaxcls.run.evaluation import padded
from flaxcls.run.memory import tune_malloc
from flaxcls.run.plan import Plan
from flaxcls.run.result import device, versions
from flaxcls.run.setup import Setup, make_setup
from flaxcls.sharding import on_devices

AFTER = 5  # dispatches after an event that are looked at
LINE, SAVE = "a line of the log", "a checkpoint and what is around it"


@dataclass
class Times:
    """When each dispatch of `fit` was called, and when its results were there, in seconds, in their order."""

    called: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)


@contextmanager
def timed_dispatches() -> Iterator[Times]:
    """Gives what `fit` fills with times while this is open; a thread waits for the results."""
    times, queue = Times(), SimpleQueue[Any]()

    def timed(*args: Any, **options: Any) -> Setup:
        setup = make_setup(*args, **options)

        def train(*args: Any, **options: Any) -> Any:
            times.called.append(time.perf_counter())
            state, measured = setup.train(*args, **options)
            queue.put(measured)
            return state, measured

        changed: Any = {"train": train}
        return dataclasses.replace(setup, **changed)

    def wait() -> None:
        while (measured := queue.get()) is not None:
            jax.block_until_ready(measured)
            times.ended.append(time.perf_counter())

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        with mock.patch.object(loop, "make_setup", timed):
            yield times
    finally:
        queue.put(None)
        thread.join()


def events(plan: Plan) -> dict[str, list[int]]:
    """Returns after which dispatches, from 1, there is a line of the log alone, and a checkpoint.

    The last dispatch is not among them, for nothing comes after it.
    """
    ends = [0]
    while ends[-1] < plan.total_steps:
        ends.append(plan.dispatch_end(ends[-1]))
    inner = range(1, len(ends) - 1)
    saves = [number for number in inner if plan.saves(ends[number])]
    return {LINE: [number for number in inner if plan.logs(ends[number]) and number not in saves], SAVE: saves}


def held_up(ended: Sequence[float], found: Mapping[str, Sequence[int]], begin: int) -> dict[str, list[float]]:
    """Returns the seconds by which each event held up the dispatches after it, but for those with another one near.

    Args:
      ended: when each dispatch's results were there.
      found: after which dispatches, from 1, there was each kind of event.
      begin: dispatches and events after this one count.
    """
    takes = {number: ended[number - 1] - ended[number - 2] for number in range(2, len(ended) + 1)}
    after = {event: range(event + 1, event + 1 + AFTER) for numbers in found.values() for event in numbers}
    disturbed = {number for numbers in after.values() for number in numbers}
    calm = [seconds for number, seconds in takes.items() if number > begin and number not in disturbed]
    if not calm:
        return {kind: [] for kind in found}
    usual = statistics.mean(calm)

    def alone(event: int) -> bool:
        return not any(0 < abs(other - event) < AFTER for other in after)

    return {
        kind: [
            sum(takes[number] for number in after[event]) - AFTER * usual
            for event in numbers
            if event > begin and event + AFTER <= len(ended) and alone(event)
        ]
        for kind, numbers in found.items()
    }


def bare_evaluation_seconds(setup: Setup) -> float:
    """Returns the seconds of evaluating the validation split, compiled before and with its batches on the device."""
    split, state = setup.dataset.splits["validation"], setup.create(jax.random.key(0))
    size = setup.eval_batch_size(len(split.labels))
    parts = [slice(start, start + size) for start in range(0, len(split.labels), size)]
    batches = [
        on_devices(padded(np.asarray(split.images[part]), split.labels[part], size), setup.batch_sharding)
        for part in parts
    ]
    jax.block_until_ready([setup.evaluate(state, batches[0]), batches])
    began = time.perf_counter()
    jax.block_until_ready([setup.evaluate(state, batch) for batch in batches])
    return time.perf_counter() - began


@dataclass(frozen=True)
class Measured:
    """Seconds of one repeat: a step and an epoch of `fit` and bare, and what each kind of event held up."""

    step: float
    bare_step: float
    epoch: float
    bare_epoch: float
    held_up: dict[str, list[float]]


def timed_fit(config: Config, dataset: Dataset) -> tuple[float, Times]:
    """Returns the seconds of a step as `fit` logs them, and when its dispatches were called and ended."""
    with tempfile.TemporaryDirectory() as place, Path(os.devnull).open("w") as nowhere, timed_dispatches() as times:
        console = Console(file=nowhere, force_terminal=True)  # with its progress bar
        result = fit(config, dataset=dataset, workdir=Path(place) / "run", console=console)
    return config.loop.batch_size / result.images_per_second, times


def measure(setup: Setup) -> Measured:
    """Measures `fit` once, and what is bare before and after it, of which it takes the mean."""
    plan, found = setup.plan, events(setup.plan)
    first, last, epochs = found[SAVE][0], found[SAVE][-1], len(found[SAVE]) - 1
    steps = plan.dispatch_steps
    resident = [setup.batches(i * steps, (i + 1) * steps) for i in range(min(last - first, -(-64 // steps)))]

    def bare() -> tuple[float, float]:
        dispatch = step_seconds(setup, lambda number: resident[number % len(resident)], last - first)
        return dispatch, bare_evaluation_seconds(setup)

    before, (step, times), after = bare(), timed_fit(setup.config, setup.dataset), bare()
    dispatch, evaluation = (statistics.mean(pair) for pair in zip(before, after, strict=True))
    lost = held_up(times.ended, found, first + AFTER)
    lost[SAVE] = [seconds - evaluation for seconds in lost[SAVE]]
    return Measured(
        step=step,
        bare_step=dispatch / steps,
        epoch=(times.called[last] - times.called[first]) / epochs,
        bare_epoch=(last - first) * dispatch / epochs + evaluation,
        held_up=lost,
    )


def rows_of(task: str, measured: Sequence[Measured]) -> list[Row]:
    """Returns the rows of one task, in ms."""

    def ms(values: Iterable[float]) -> list[float]:
        return [1e3 * value for value in values]

    steps = {"flaxcls": ms(m.step for m in measured), "bare": ms(m.bare_step for m in measured)}
    whole = {"flaxcls": ms(m.epoch for m in measured), "bare": ms(m.bare_epoch for m in measured)}
    lost = {kind: ms(statistics.median(m.held_up[kind]) for m in measured if m.held_up[kind]) for kind in (LINE, SAVE)}
    libraries = versions()
    return [
        *compare(f"{task}: a step", "ms", steps, versions=dict.fromkeys(steps, libraries)),
        *compare(f"{task}: an epoch with validation", "ms", whole, versions=dict.fromkeys(whole, libraries)),
        *(Row(kind, f"{task}: held up by each event", "ms", values, [], libraries) for kind, values in lost.items()),
    ]


def noise(examples: int) -> Dataset:
    """Returns images u8[n 32 32 3] of noise in ten classes, a ninth as many for validation, and some to test."""
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % 10

    return from_arrays(*part(examples), validation=part(max(examples // 9, 10)), test=part(10), name="noise")


def main(
    repeats: int = 5,
    epochs: int = 4,
    examples: int = 45_000,
    digits_epochs: int = 20,
    out: Path = Path("build/overhead.json"),
) -> None:
    """Prints medians over the repeats, their spread, and the ratio of `fit` to what is bare within a repeat.

    Args:
      repeats: runs of `fit` and of the bare steps for each task.
      epochs: of each run on noise, 4 or more: the first and the last are not counted.
      examples: training images of noise.
      digits_epochs: of each run on the digits, likewise.
      out: JSON file of the rows.
    """
    if min(epochs, digits_epochs) < 4:
        raise SystemExit(f"epochs is {epochs} and digits_epochs {digits_epochs}, but both must be 4 or more.")
    tune_malloc()  # as the command does
    use_cpu_flags()
    console = Console()
    digits, tutorial = Config(), load_experiment(Path(__file__).parent.parent / "cifar10_cnn.py")
    tasks = {
        "digits": (dataclasses.replace(digits.loop, epochs=digits_epochs), digits, load_dataset(digits.data)),
        "tutorial's network": (dataclasses.replace(tutorial.loop, epochs=epochs), tutorial, noise(examples)),
    }
    setups = {
        name: make_setup(dataclasses.replace(config, loop=changed), dataset, None, None)
        for name, (changed, config, dataset) in tasks.items()
    }
    measured: dict[str, list[Measured]] = {name: [] for name in tasks}
    for name in in_turn([*tasks], repeats):
        done = measured[name]
        done.append(measure(setups[name]))
        console.print(
            f"{len(done)}/{repeats} {name}: a step {done[-1].step / done[-1].bare_step:.3f} times a bare one, "
            f"an epoch {done[-1].epoch / done[-1].bare_epoch:.3f} times"
        )
    settings = {"repeats": repeats, "images of noise": examples, "device": device()}
    report([row for name in tasks for row in rows_of(name, measured[name])], out, settings, console)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.overhead")
