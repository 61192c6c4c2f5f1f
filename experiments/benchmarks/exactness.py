"""What it costs that a killed run goes on to the same bits: the same steps with what exactness needs, and without.

Without it is the plain loop of a tutorial: the compiled step over batches of a shuffled array, its order kept nowhere,
no poll for signals, no check of the saves, metrics read at each line of the log alone. With it is what `fit` has: the
order as a function of (seed, step), polls, checks, and the sums that go into the record. The hash of the arrays, which
each save takes, is timed apart. On a GPU, --deterministic compares XLA's deterministic operations with its default.

Command:   python -m experiments.benchmarks.exactness
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.steps import step_seconds
from flaxcls.config import Config
from flaxcls.data import load_dataset
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.checkpoint_files import fingerprint
from flaxcls.run.meter import Meter
from flaxcls.run.multihost.preemption import StopRequest
from flaxcls.run.setup import Setup, make_setup
from flaxcls.sharding import batches_sharding


def plain_seconds(setup: Setup, steps: int) -> float:
    """Returns the seconds a step of a loop without anything that exactness needs."""
    split, size = setup.dataset.train, setup.plan.batch_size
    rng = np.random.default_rng(0)
    order, at = rng.permutation(len(split.labels)), 0

    def batch(number: int) -> Any:
        nonlocal order, at
        if at + size > len(order):
            order, at = rng.permutation(len(split.labels)), 0
        chosen = order[at : at + size]
        at += size
        batch = {"image": split.images[chosen][None], "label": split.labels[chosen][None]}
        return jax.device_put(batch, batches_sharding(setup.mesh))

    def read(step: int, metrics: Any) -> None:
        if setup.plan.logs(step):
            jax.device_get(metrics)

    return step_seconds(setup, batch, steps, read)


def exact_seconds(setup: Setup, checkpoints: Checkpoints, steps: int) -> float:
    """Returns the seconds a step of the loop of `fit`, between two evaluations."""
    key = jax.random.key(0)
    state, _ = setup.train(setup.create(key), setup.loader.load(0, 1), key)
    jax.block_until_ready(state)
    meter = Meter(batch_size=setup.plan.batch_size, logs=setup.plan.logs, write=lambda *line: None, record={})
    began = time.perf_counter()
    with StopRequest() as request:
        for before in range(steps):
            checkpoints.check()
            state, (metrics, extra) = setup.train(state, setup.loader.load(before, before + 1), key)
            if setup.plan.logs(before):
                meter.read(before)
            meter.add(before + 1, metrics, extra)
            request.poll()
    meter.read(steps)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / steps


def timed(call: Callable[[], Any]) -> float:
    """Returns the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main(steps: int = 200, repeats: int = 7, deterministic: bool = False) -> None:
    """Prints medians over the repeats, and the ratio of each pair, measured in turn.

    Args:
      steps: steps of each measurement.
      repeats: measurements of each.
      deterministic: compare with and without XLA's deterministic operations instead; they differ on a GPU alone.
    """
    config = Config()
    dataset = load_dataset(config.data)
    setup = make_setup(config, dataset, None, None)
    free = make_setup(
        dataclasses.replace(config, loop=dataclasses.replace(config.loop, deterministic=False)), dataset, None, None
    )
    console = Console()
    with tempfile.TemporaryDirectory() as place, Checkpoints(Path(place) / "checkpoints") as checkpoints:
        state = setup.create(jax.random.key(0))
        pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
            "a step": (
                lambda: plain_seconds(setup, steps),
                lambda: exact_seconds(setup, checkpoints, steps),
            ),
            "hashing the arrays at a save": (lambda: 0.0, lambda: timed(lambda: fingerprint(state))),
        }
        if deterministic:
            pairs = {"a step": (lambda: plain_seconds(free, steps), lambda: plain_seconds(setup, steps))}
        table = Table(
            title=f"{jax.devices()[0].device_kind}, jax {jax.__version__}, n = {repeats}", title_justify="left"
        )
        for header in ("", "without, ms", "with, ms", "ratio", "least and largest ratio"):
            table.add_column(header, justify="right" if header else "left")
        for name, (without, with_) in pairs.items():
            both = [(without(), with_()) for _ in range(repeats)]
            one, other = (1e3 * statistics.median(column) for column in zip(*both, strict=True))
            ratios = sorted(b / a for a, b in both if a)
            spread = (
                (f"{statistics.median(ratios):.3f}", f"{ratios[0]:.3f} to {ratios[-1]:.3f}") if ratios else ("", "")
            )
            table.add_row(name, f"{one:.3f}", f"{other:.3f}", *spread)
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.benchmarks.exactness")
