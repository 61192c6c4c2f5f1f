"""The outcome of a run without its timings, which must be equal however often the run was killed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event

from flaxcls.run.checkpoint_files import SEAL
from flaxcls.run.utilization import SPEEDS
from flaxcls.run.workdir import CHECKPOINTS, METRICS, RESULT, TENSORBOARD

TIMINGS = (*SPEEDS, "seconds")


def outcome(workdir: Path) -> dict[str, Any]:
    """Returns result, lines of metrics, events, and the records (hash, counters, ...) of the last and the best save."""
    result = json.loads((workdir / RESULT).read_text())
    lines = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    return {
        "result": _without_timings(result),
        "metrics": [_without_timings(line) for line in lines],
        "events": events(workdir / TENSORBOARD),
        "last": _record(workdir / CHECKPOINTS / str(result["steps"])),
        "best": _record(workdir / CHECKPOINTS / str(result["best_step"])),
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns the names of the items that differ between two outcomes."""
    return [name for name in one if one[name] != other[name]]


def events(directory: Path) -> list[tuple[str, int, float]]:
    """Returns (tag, step, value) of all numbers in the event files, except timings."""
    values = [
        (value.tag, event.step, value.simple_value)
        for path in sorted(directory.iterdir())
        for event in read_events(path)
        for value in event.summary.value
    ]
    return [event for event in values if event[0].split("/")[-1] not in TIMINGS]


def read_events(path: Path) -> Iterator[Event]:
    """Yields the events of a TensorBoard file: each has its length and a checksum before it, and one after it."""
    data = path.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def _record(checkpoint: Path) -> Any:
    record = json.loads((checkpoint / "record" / "metadata").read_text())
    del record[SEAL]  # it also covers the timings
    return {**record, "meter": _without_timings(record["meter"])}


def _without_timings(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in TIMINGS}
