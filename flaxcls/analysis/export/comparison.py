"""What an export with smaller weights costs in accuracy and brings in time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import export
from scipy.stats import binomtest

from flaxcls.data import Split
from flaxcls.data.batches import pad_rows


@dataclass(frozen=True)
class Comparison:
    """Of an export with the plain one. All pairs are (plain, smaller).

    accuracy: on `examples` of the validation split. accuracy_lost: the first minus the second.
    changed: predictions that differ.
    largest_difference: of any probability.
    batch_size: of the images that were timed; milliseconds: of such a batch, the median of `repetitions` that took
      turns; milliseconds_range: the shortest and the longest of each.
    latency_won: the share of the plain export's time that is saved, the median over the pairs; negative where it takes
      longer. faster_in: pairs in which it took less time. chance: that as many or more pairs would agree on the sign
      if both took equally long (a sign test); above 0.01 say that there is no clear difference.
    bytes: of the files.
    device: that it was measured on.
    """

    examples: int
    accuracy: tuple[float, float]
    accuracy_lost: float
    changed: int
    largest_difference: float
    batch_size: int
    repetitions: int
    milliseconds: tuple[float, float]
    milliseconds_range: tuple[tuple[float, float], tuple[float, float]]
    latency_won: float
    faster_in: int
    chance: float
    bytes: tuple[int, int]
    device: str


def compare(plain: bytes, smaller: bytes, split: Split, *, batch_size: int = 64, repetitions: int = 31) -> Comparison:
    """Returns what two exports of a classifier, as `jax.export` writes them, do on the examples of a split."""
    batch_size = min(batch_size, len(split.labels))
    programs = [jax.jit(export.deserialize(bytearray(program)).call) for program in (plain, smaller)]
    found = [_probabilities(program, split.images[:], batch_size) for program in programs]
    accuracy = tuple(float((each.argmax(axis=1) == split.labels).mean()) for each in found)
    times = _take_turns(programs, jax.device_put(split.images[:batch_size]), repetitions)
    medians = np.median(times, axis=1)
    faster = int((times[1] < times[0]).sum())
    return Comparison(
        examples=len(split.labels),
        accuracy=(accuracy[0], accuracy[1]),
        accuracy_lost=accuracy[0] - accuracy[1],
        changed=int((found[0].argmax(axis=1) != found[1].argmax(axis=1)).sum()),
        largest_difference=float(np.abs(found[0] - found[1]).max()),
        batch_size=batch_size,
        repetitions=repetitions,
        milliseconds=(float(medians[0]), float(medians[1])),
        milliseconds_range=(_range(times[0]), _range(times[1])),
        latency_won=float(np.median(1 - times[1] / times[0])),
        faster_in=faster,
        chance=float(binomtest(faster, repetitions).pvalue),
        bytes=(len(plain), len(smaller)),
        device=jax.devices()[0].device_kind,
    )


def _probabilities(program: Callable[..., Any], images: np.ndarray, batch_size: int) -> np.ndarray:
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        _, probabilities = program(pad_rows(batch, batch_size))  # one shape, which is compiled once
        parts.append(np.asarray(probabilities)[: len(batch)])
    return np.concatenate(parts)


def _take_turns(programs: Sequence[Callable[..., Any]], images: Any, repetitions: int) -> np.ndarray:
    """Returns the milliseconds f64[programs repetitions] of each call, after one that does not count."""
    times = np.zeros((len(programs), repetitions))
    for turn in range(-1, repetitions):
        order = list(enumerate(programs))
        for number, program in order if turn % 2 else reversed(order):
            start = time.perf_counter()
            jax.block_until_ready(program(images))
            times[number, turn] = 1000 * (time.perf_counter() - start)
    return times


def _range(times: np.ndarray) -> tuple[float, float]:
    return float(times.min()), float(times.max())
