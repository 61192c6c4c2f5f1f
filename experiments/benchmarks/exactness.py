"""The cost of an exact resume: the same steps with the work that exactness needs, and without.

Without it, it is the plain loop of a tutorial: the compiled step over batches of a shuffled array, whose order is not
stored, no poll for signals, no check of the saves, metrics read only at log lines. With it, it is the loop of `fit`:
the order as a function of (seed, step), polls, checks, and the sums for the record. The hash of the arrays, which each
save takes, is timed separately. With --deterministic, it compares XLA's deterministic operations with its default
operations; they differ only on a GPU.

Command:   python -m experiments.benchmarks.exactness
Result:    README.md
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

from flaxcls.config import Config
from flaxcls.data import load_dataset
from flaxcls.run.checkpoint import Checkpoints
from flaxcls.run.checkpoint_files import fingerprint
from flaxcls.run.meter import Meter
from flaxcls.run.multihost.preemption import StopRequest
from flaxcls.run.setup import Setup, make_setup
from flaxcls.sharding import batches_sharding


def step_seconds(
    setup: Setup, batches: Callable[[int], Any], dispatches: int, after: Callable[[int, Any], None] = lambda *_: None
) -> float:
    """Returns the seconds of a dispatch of the compiled steps of `fit`, called one after another.

    Args:
      setup: the set-up; its steps are compiled first if they are not yet.
      batches: number of a dispatch, from 0 -> its batches; dispatch 0 is not measured.
      dispatches: number of measured dispatches.
      after: called after each dispatch with the number of steps so far and the metrics.
    """
    key = jax.random.key(0)
    state, _ = setup.train(setup.create(key), batches(0), key)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for number in range(1, dispatches + 1):
        state, (metrics, _) = setup.train(state, batches(number), key)
        after(number * setup.plan.dispatch_steps, metrics)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / dispatches


def plain_seconds(setup: Setup, steps: int) -> float:
    """Returns the seconds of a step in a loop without the work that exactness needs."""
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
    """Returns the seconds of a step in the loop of `fit`, between two evaluations."""
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
      repeats: measurements of each variant.
      deterministic: compare XLA's deterministic operations with its default ones instead; they differ only on a GPU.
    """
    config = Config()
    dataset = load_dataset(config.data)
    setup = make_setup(config, dataset, None, None)
    nondeterministic = make_setup(
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
            pairs = {"a step": (lambda: plain_seconds(nondeterministic, steps), lambda: plain_seconds(setup, steps))}
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
