"""The CIFAR-10 speed run on a GPU: warm runs of `fit` in one process, and the cost of deterministic operations."""

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from rich.console import Console

from experiments.benchmarks.exactness import plain_seconds
from experiments.benchmarks.measure import Row, compare
from experiments.cifar10_speedrun import MUON, parts
from flaxcls.config import Config
from flaxcls.data import Dataset, load_dataset
from flaxcls.run import fit, loop
from flaxcls.run.evaluation import evaluate
from flaxcls.run.setup import Setup, make_setup
from flaxcls.run.utilization import peak_flops, training_flops

STEPS = 200  # steps in a measurement of the default run
WITH, WITHOUT = "with deterministic operations", "without"


@dataclass(frozen=True)
class Speedrun:
    """The speed run: a configuration, options of the network, and how many test images are used (None: all)."""

    config: Config = MUON
    network: Mapping[str, Any] = field(default_factory=dict)
    tested: int | None = None

    def load(self, data_dir: Path) -> Dataset:
        """Returns the data set."""
        dataset = load_dataset(dataclasses.replace(self.config.data, dir=str(data_dir)))
        chosen = np.arange(len(dataset.test.labels))[: self.tested]
        return dataclasses.replace(dataset, test=dataset.test.take(chosen))

    def setup(self, dataset: Dataset, *, deterministic: bool) -> Setup:
        """Returns the set-up of the run; its programs are compiled at their first call."""
        config = with_determinism(self.config, deterministic)
        return make_setup(config, **parts(config, dataset=dataset, **self.network))


@dataclass
class Marks:
    """The times of events in a run of `fit`, by `time.perf_counter`.

    began: `create` was called; nothing of the state was computed yet.
    trained: the state after the last step was computed, and the metrics of all steps were read.
    evaluating: the evaluation of the test split began, with its images in the host's memory.
    ended: its result was computed.
    """

    began: float = 0.0
    trained: float = 0.0
    evaluating: float = 0.0
    ended: float = 0.0


@contextlib.contextmanager
def marked(setup: Setup) -> Iterator[Marks]:
    """Yields marks that the next `fit` fills in; that `fit` reuses the compiled programs of `setup`.

    Its configuration may differ from that of `setup` in the seed only.
    """
    marks = Marks()

    def create(key: jax.Array) -> Any:
        marks.began = time.perf_counter()
        return setup.create(key)

    def finite(state: Any) -> jax.Array:  # `fit` calls it after the last step, when it has read all metrics
        jax.block_until_ready(state)
        marks.trained = time.perf_counter()
        return setup.finite(state)

    def reuse(config: Config, *_: Any) -> Setup:
        loader = dataclasses.replace(setup.loader, maker=dataclasses.replace(setup.loader.maker, seed=config.seed))
        vars(loader)["resident"] = setup.loader.resident  # the images stay on the device; placing them is not timed
        return dataclasses.replace(setup, loader=loader, create=create, finite=finite)

    def timed_evaluate(*args: Any, **options: Any) -> Any:
        marks.evaluating = time.perf_counter()
        values = evaluate(*args, **options)  # Python numbers, so it waits for the device
        marks.ended = time.perf_counter()
        return values

    with mock.patch.object(loop, "make_setup", reuse), mock.patch.object(loop, "evaluate", timed_evaluate):
        yield marks


@dataclass(frozen=True)
class Run:
    """Seconds and results of one run.

    training: initialisation, including the whitening, and all steps. evaluation: of the test split.
    through: from the start of training to the end of the evaluation, with the checkpoint between them.
    whole: all of `fit`. compiled: number of programs compiled during training and evaluation.
    """

    training: float
    evaluation: float
    through: float
    whole: float
    accuracy: float
    compiled: int
    fingerprint: str

    @property
    def timed(self) -> float:
        """The seconds to compare with other speed runs."""
        return self.training + self.evaluation


def watch_compilations() -> list[float]:
    """Returns a list; the end time of each later compilation in this process is appended to it."""
    ended: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            ended.append(time.perf_counter())

    jax.monitoring.register_event_duration_secs_listener(listen)
    return ended


def timed_run(config: Config, setup: Setup, seed: int, compilations: list[float]) -> Run:
    """Runs `fit` with that seed on the programs of `setup`, which `config` made; the first run compiles them."""
    config = dataclasses.replace(config, seed=seed)
    with tempfile.TemporaryDirectory() as place, marked(setup) as marks:
        began = time.perf_counter()
        result = fit(config, dataset=setup.dataset, workdir=Path(place) / "run", console=Console(quiet=True))
        whole = time.perf_counter() - began
    timed = ((marks.began, marks.trained), (marks.evaluating, marks.ended))
    return Run(
        training=marks.trained - marks.began,
        evaluation=marks.ended - marks.evaluating,
        through=marks.ended - marks.began,
        whole=whole,
        accuracy=result.test["accuracy"],
        compiled=sum(begin < at < end for at in compilations for begin, end in timed),
        fingerprint=result.fingerprint,
    )


def repeated(measure: Callable[[int], None], count: int, until: float) -> None:
    """Calls `measure` with 1, 2, ... up to `count`; stops when the next call would probably end after `until`."""
    longest = 0.0
    for number in range(1, count + 1):
        began = time.perf_counter()
        if number > 1 and began + longest > until:
            return
        measure(number)
        longest = max(longest, time.perf_counter() - began)


def with_mean(row: Row) -> Row:
    """Returns the row with the mean and the standard deviation of its values added to its note."""
    if len(row.values) < 2:
        return row
    note = f"mean {statistics.mean(row.values):.4g}, sd {statistics.stdev(row.values):.2g}"
    return dataclasses.replace(row, note="; ".join(filter(None, (note, row.note))))


def utilization_row(system: str, flops_per_second: Iterable[float]) -> Row:
    """Returns the row of model FLOPs utilisation in percent, without values if the card's peak is not known."""
    peak = peak_flops()
    values = [100 * speed / peak for speed in flops_per_second] if peak else []
    note = "" if peak else f"the peak of {jax.devices()[0].device_kind} is not known"
    return Row(system, "model FLOPs utilisation, of the dense bfloat16 peak", "%", values, note=note)


def warm(speedrun: Speedrun, data_dir: Path, runs: int, until: float, out: Path) -> list[Row]:
    """Returns the rows of `runs` runs after a warm-up run, each with another seed, without deterministic operations."""
    setup = speedrun.setup(speedrun.load(data_dir), deterministic=False)
    compilations = watch_compilations()
    config = with_determinism(speedrun.config, False)
    timed_run(config, setup, 0, compilations)
    done: list[Run] = []
    repeated(lambda seed: done.append(timed_run(config, setup, seed, compilations)), runs, until)
    steps = setup.plan.total_steps
    title = f"speed run of {steps} steps, warm, without deterministic operations"
    note = f"{sum(run.compiled for run in done)} programs compiled in it"
    rows = [
        Row("initialisation and training, and evaluation", title, "s", [run.timed for run in done], note=note),
        Row("initialisation and training", title, "s", [run.training for run in done]),
        Row("evaluation, with test-time augmentation", title, "s", [run.evaluation for run in done]),
        Row("both, and the checkpoint between them", title, "s", [run.through for run in done]),
        Row("fit, with logs and checkpoint", title, "s", [run.whole for run in done]),
        Row("test accuracy, with test-time augmentation", title, "%", [100 * run.accuracy for run in done]),
    ]
    flops = training_flops(setup.model, setup.dataset.image_shape) * steps * setup.plan.batch_size
    return [
        *map(with_mean, rows),
        utilization_row("speed run, in initialisation and training", [flops / r.training for r in done]),
    ]


def determinism(speedrun: Speedrun, data_dir: Path, runs: int, until: float, out: Path) -> list[Row]:
    """Returns the rows of alternating runs with and without deterministic operations, and of steps of the default run.

    Notes say if two runs of one seed ended with the same bits.
    """
    digits, config = load_dataset(Config().data), Config()
    small = {name: make_setup(with_determinism(config, name == WITH), digits, None, None) for name in (WITH, WITHOUT)}
    steps: dict[str, list[float]] = {name: [] for name in small}

    def step(_: int) -> None:
        for name, setup in small.items():
            steps[name].append(1e3 * plain_seconds(setup, STEPS))

    repeated(step, min(runs, 7), until)
    dataset, compilations = speedrun.load(data_dir), watch_compilations()
    setups = {name: speedrun.setup(dataset, deterministic=name == WITH) for name in small}
    seconds: dict[str, list[float]] = {name: [] for name in setups}

    def timed(name: str, seed: int) -> Run:
        return timed_run(with_determinism(speedrun.config, name == WITH), setups[name], seed, compilations)

    def run(seed: int) -> None:
        for name in setups:
            seconds[name].append(timed(name, seed).timed)

    bits = {name: len({timed(name, 0).fingerprint for _ in range(2)}) == 1 for name in setups}
    notes = {name: f"seed 0 twice: {'the same' if same else 'different'} bits" for name, same in bits.items()}
    repeated(run, runs, until)
    return [
        *compare("speed run, warm; the ratio is with to without", "s", seconds, ours=WITH, notes=notes),
        *compare("a step of the default run; the ratio is with to without", "ms", steps, ours=WITH),
    ]


def with_determinism(config: Config, deterministic: bool) -> Config:
    """Returns the configuration with loop.deterministic set."""
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, deterministic=deterministic))
