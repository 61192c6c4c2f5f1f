"""Where the time of a warm speed run goes: its parts one by one, and the kernels of its last dispatch."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.gpu_speedrun import Speedrun
from experiments.benchmarks.measure import Row
from experiments.benchmarks.trace import read_trace, summarize, trace_file
from flaxcls.run.evaluation import evaluate
from flaxcls.run.setup import Setup

TOP = 12  # kernels that are listed


def profile(speedrun: Speedrun, data_dir: Path, runs: int, until: float, out: Path) -> list[Row]:
    """Returns the rows of the parts of a warm run, one after the other, and of the kernels of its last dispatch.

    The trace of that dispatch is written into the folder `out`.
    """
    setup = speedrun.setup(speedrun.load(data_dir), deterministic=False)
    walk(setup, contextlib.nullcontext())
    took = walk(setup, contextlib.nullcontext())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 1
    with tempfile.TemporaryDirectory() as place:
        walk(setup, jax.profiler.trace(place, profiler_options=options))
        file = trace_file(Path(place))
        kept = out / f"{speedrun.config.data.name}-last-dispatch.trace.json.gz"
        shutil.copy(file, kept)
        kernels = kernel_rows(read_trace(file))
    title = "the parts of a warm run, each waited for"
    return [*(Row(name, title, "ms", [1e3 * seconds]) for name, seconds in took.items()), *kernels]


def kernel_rows(trace: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of a dispatch's kernels: their time, the share of each kind and of none, the longest.

    Where the trace holds none, one row says so.
    """
    try:
        summary = summarize(trace)
    except ValueError as error:
        return [Row("kernels", "kernels of the last dispatch", "ms", [], note=str(error))]
    title, share = "kernels of the last dispatch, share of its time", {"no kernel": summary.idle, **summary.kinds}
    return [
        Row(
            "the last dispatch, from its first kernel to its last",
            "kernels of the last dispatch",
            "ms",
            [1e3 * summary.span],
        ),
        *(Row(name, title, "%", [100 * seconds / summary.span]) for name, seconds in share.items()),
        *(
            Row(
                kernel.name[:60], "longest kernels", "ms", [1e3 * kernel.seconds], note=f"{kernel.count}: {kernel.kind}"
            )
            for kernel in summary.kernels[:TOP]
        ),
    ]


def walk(setup: Setup, last: contextlib.AbstractContextManager[Any]) -> dict[str, float]:
    """Returns the seconds of each part of a run, each waited for; `last` is open while the last dispatch runs."""
    took, key, plan = {}, jax.random.key(setup.loader.maker.seed), setup.plan
    began = time.perf_counter()

    def mark(name: str, value: Any) -> None:
        nonlocal began
        jax.block_until_ready(value)
        took[name] = time.perf_counter() - began
        began = time.perf_counter()

    state = setup.create(key)
    mark("initialisation", state)
    step = 0
    while step < plan.total_steps:
        before, step = step, plan.dispatch_end(step)
        batches = setup.loader.load(before, step)
        mark(f"order of the batches of steps {before + 1} to {step}", batches)
        with last if step == plan.total_steps else contextlib.nullcontext():
            state, _ = setup.train(state, batches, key, frozen=plan.frozen(before))
            mark(f"steps {before + 1} to {step}", state)
    split = setup.dataset.test
    evaluate(setup.evaluate, state, split, batch_size=setup.eval_batch_size, mesh=setup.mesh)
    mark("evaluation", state)
    return took
