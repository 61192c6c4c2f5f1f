"""Where the time of a GPU goes: the kernels of a trace of `jax.profiler` by their kind, and the gaps between them."""

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# kind -> what the names of the kernel and of its operation hold; the first that fits counts. XLA tells the direction of
# a convolution in the operation, cuDNN in the kernel.
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
    """All runs of the kernel of one name: its kind, seconds together, and how many there were."""

    name: str
    kind: str
    seconds: float
    count: int


@dataclass(frozen=True)
class Summary:
    """What a GPU did between the begin of its first kernel and the end of its last.

    span: seconds in between; idle: those in which no kernel ran.
    kinds: seconds of each kind, from the longest on; they may overlap.
    kernels: from the longest on.
    """

    span: float
    idle: float
    kinds: dict[str, float]
    kernels: list[Kernel]


def kind_of(name: str, operation: str = "") -> str:
    """Returns the kind of a kernel by its name and that of the operation that it is a part of, if that is known."""
    text = f"{operation} {name}".lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, text)), OTHER)


def summarize(trace: Mapping[str, Any]) -> Summary:
    """Returns the summary of a trace in Chrome's format, as `*.trace.json.gz` holds it: of its first GPU.

    Raises ValueError where no kernel of a GPU is in it.
    """
    events = [event for event in trace["traceEvents"] if "ph" in event]  # it ends with an empty one
    names: dict[tuple[str, Any, Any], str] = {
        (event["name"], event["pid"], event.get("tid")): event["args"]["name"]
        for event in events
        if event["ph"] == "M" and event["name"] in ("process_name", "thread_name")
    }
    devices = {pid: name for (what, pid, _), name in names.items() if what == "process_name" and "GPU" in name}
    # beside the streams there are lines for whole programs, modules and scopes, which hold the same time once more
    streams = {
        (pid, tid)
        for (what, pid, tid), name in names.items()
        if what == "thread_name" and pid in devices and name.startswith("Stream")
    }
    runs = [event for event in events if event["ph"] == "X" and (event["pid"], event["tid"]) in streams]
    if not runs:
        held = ", ".join(sorted(set(names.values()))) or "nothing"
        raise ValueError(
            f"the trace holds no kernel of a GPU: profile on a machine that has one. It is of {held[:300]}."
        )
    first = min(event["pid"] for event in runs)
    return _summary([event for event in runs if event["pid"] == first])


def _summary(runs: Sequence[Mapping[str, Any]]) -> Summary:
    """Returns the summary of the kernels of one GPU, whose times are in microseconds."""
    kernels: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        kind = kind_of(run["name"], str(run.get("args", {}).get("hlo_op", "")))
        kernels.setdefault((run["name"], kind), []).append(run["dur"] / 1e6)
    kinds: dict[str, float] = {}
    for (_, kind), seconds in kernels.items():
        kinds[kind] = kinds.get(kind, 0.0) + sum(seconds)
    begin, end = min(run["ts"] for run in runs), max(run["ts"] + run["dur"] for run in runs)
    idle, upto = 0.0, begin
    for run in sorted(runs, key=lambda run: run["ts"]):
        idle += max(run["ts"] - upto, 0.0)
        upto = max(upto, run["ts"] + run["dur"])
    found = [Kernel(name, kind, sum(seconds), len(seconds)) for (name, kind), seconds in kernels.items()]
    return Summary(
        span=(end - begin) / 1e6,
        idle=idle / 1e6,
        kinds=dict(sorted(kinds.items(), key=lambda item: -item[1])),
        kernels=sorted(found, key=lambda kernel: -kernel.seconds),
    )


def trace_file(folder: Path) -> Path:
    """Returns the trace below the folder that was given to `jax.profiler.start_trace`. Raises FileNotFoundError."""
    found = sorted(folder.rglob("*.trace.json.gz"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no *.trace.json.gz: was the trace stopped?")
    return found[-1]


def read_trace(file: Path) -> dict[str, Any]:
    """Returns the trace in a file."""
    with gzip.open(file, "rt") as opened:
        trace: dict[str, Any] = json.load(opened)
    return trace
