"""The time of a warm speed run on a GPU: its stages one by one, and the kernels of its last dispatch from a trace.

Kernels are sorted by kind; the gaps between them are idle time.
"""

import contextlib
import gzip
import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.gpu.speedrun import Speedrun
from experiments.benchmarks.measure import Row
from flaxcls.run.evaluation import evaluate
from flaxcls.run.setup import Setup

TOP = 12  # kernels in the table

# kind -> pattern of the names of the kernel and of its operation; the first match counts. XLA names the direction of a
# convolution in the operation, cuDNN in the kernel.
KINDS = {
    "convolutions, gradient of the kernel": r"conv-bw-filter|wgrad",
    "convolutions, gradient of the input": r"conv-bw-input|dgrad",
    "changes of layout": r"nchwtonhwc|nhwctonchw|transpose",
    "convolutions, forward": r"conv-forward|cudnn-conv|fprop|implicit_gemm|convolve",
    "products of matrices": r"gemm|nvjet|cublas|cutlass|dot",
    "copies": r"memcpy|memset|copy",
    "fusions with a sum, such as batch norm": r"reduc",
    "fusions, element by element": r"fusion|wrapped|loop",
}
OTHER = "other"


@dataclass(frozen=True)
class Kernel:
    """All calls of the kernels of one name: their kind, total seconds and number."""

    name: str
    kind: str
    seconds: float
    count: int


@dataclass(frozen=True)
class Summary:
    """The work of a GPU between the start of its first kernel and the end of its last.

    span: seconds from start to end. idle: seconds without a running kernel.
    kinds: seconds of each kind, longest first; kinds may overlap.
    kernels: longest first.
    """

    span: float
    idle: float
    kinds: dict[str, float]
    kernels: list[Kernel]


def profile(speedrun: Speedrun, data_dir: Path, runs: int, until: float, out: Path) -> list[Row]:
    """Returns the rows of the stages of a warm run, in their order, and of the kernels of its last dispatch.

    Writes the trace of that dispatch into the folder `out`.
    """
    setup = speedrun.setup(speedrun.load(data_dir), deterministic=False)
    time_stages(setup, contextlib.nullcontext())
    seconds = time_stages(setup, contextlib.nullcontext())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 1
    with tempfile.TemporaryDirectory() as place:
        time_stages(setup, jax.profiler.trace(place, profiler_options=options))
        file = trace_file(Path(place))
        shutil.copy(file, out / f"{speedrun.config.data.name}-last-dispatch.trace.json.gz")
        kernels = kernel_rows(read_trace(file))
    title = "the stages of a warm run, each waited for"
    return [*(Row(name, title, "ms", [1e3 * value]) for name, value in seconds.items()), *kernels]


def time_stages(setup: Setup, last: contextlib.AbstractContextManager[Any]) -> dict[str, float]:
    """Returns the seconds of each stage of a run, each waited for; `last` is open while the last dispatch runs."""
    seconds, key, plan = {}, jax.random.key(setup.loader.maker.seed), setup.plan
    began = time.perf_counter()

    def mark(name: str, value: Any) -> None:
        nonlocal began
        jax.block_until_ready(value)
        seconds[name] = time.perf_counter() - began
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
    return seconds


def kernel_rows(trace: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of a dispatch's kernels: total time, share of each kind and of idle time, longest kernels.

    If the trace holds no kernel, one row says so.
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


def kind_of(name: str, operation: str = "") -> str:
    """Returns the kind of a kernel, by its name and, if known, the name of its operation."""
    text = f"{operation} {name}".lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, text)), OTHER)


def summarize(trace: Mapping[str, Any]) -> Summary:
    """Returns the summary of the first GPU in a trace in Chrome's format, as in `*.trace.json.gz`.

    Raises ValueError if the trace holds no kernel of a GPU.
    """
    events = [event for event in trace["traceEvents"] if "ph" in event]  # the last one is empty
    names: dict[tuple[str, Any, Any], str] = {
        (event["name"], event["pid"], event.get("tid")): event["args"]["name"]
        for event in events
        if event["ph"] == "M" and event["name"] in ("process_name", "thread_name")
    }
    devices = {pid: name for (what, pid, _), name in names.items() if what == "process_name" and "GPU" in name}
    # the lines of whole programs, modules and scopes hold the same time again
    streams = {
        (pid, tid)
        for (what, pid, tid), name in names.items()
        if what == "thread_name" and pid in devices and name.startswith("Stream")
    }
    calls = [event for event in events if event["ph"] == "X" and (event["pid"], event["tid"]) in streams]
    if not calls:
        held = ", ".join(sorted(set(names.values()))) or "nothing"
        raise ValueError(
            f"the trace holds no kernel of a GPU: profile on a machine that has one. The trace is of {held[:300]}."
        )
    first = min(event["pid"] for event in calls)
    return _summary([event for event in calls if event["pid"] == first])


def _summary(calls: Sequence[Mapping[str, Any]]) -> Summary:
    """Returns the summary of the kernel calls of one GPU, whose times are in microseconds."""
    kernels: dict[tuple[str, str], list[float]] = {}
    for call in calls:
        kind = kind_of(call["name"], str(call.get("args", {}).get("hlo_op", "")))
        kernels.setdefault((call["name"], kind), []).append(call["dur"] / 1e6)
    kinds: dict[str, float] = {}
    for (_, kind), seconds in kernels.items():
        kinds[kind] = kinds.get(kind, 0.0) + sum(seconds)
    begin, end = min(call["ts"] for call in calls), max(call["ts"] + call["dur"] for call in calls)
    idle, upto = 0.0, begin
    for call in sorted(calls, key=lambda call: call["ts"]):
        idle += max(call["ts"] - upto, 0.0)
        upto = max(upto, call["ts"] + call["dur"])
    summed = [Kernel(name, kind, sum(seconds), len(seconds)) for (name, kind), seconds in kernels.items()]
    return Summary(
        span=(end - begin) / 1e6,
        idle=idle / 1e6,
        kinds=dict(sorted(kinds.items(), key=lambda item: -item[1])),
        kernels=sorted(summed, key=lambda kernel: -kernel.seconds),
    )


def trace_file(folder: Path) -> Path:
    """Returns the trace file below a folder that `jax.profiler.start_trace` wrote to.

    Raises FileNotFoundError if there is none.
    """
    files = sorted(folder.rglob("*.trace.json.gz"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.trace.json.gz: was the trace stopped?")
    return files[-1]


def read_trace(file: Path) -> dict[str, Any]:
    """Returns the trace in a file."""
    with gzip.open(file, "rt") as opened:
        trace: dict[str, Any] = json.load(opened)
    return trace
