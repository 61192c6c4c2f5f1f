"""The accuracy that an export with smaller weights loses, and the time that it saves."""

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
    """Two exports of one model compared: the plain one and one with smaller weights. All pairs are (plain, smaller).

    examples: number of examples of the validation split.
    accuracy: share of correct predictions on these examples.
    accuracy_lost: plain accuracy minus smaller accuracy.
    changed: number of predictions that differ.
    largest_difference: largest difference between two probabilities.
    batch_size: number of images in a timed batch.
    repetitions: number of timed pairs; the exports take turns.
    milliseconds: median time for a batch.
    milliseconds_range: shortest and longest time for a batch, of each export.
    latency_won: share of the plain export's time that the smaller one saves, the median over the pairs; negative if the
      smaller one is slower.
    faster_in: number of pairs in which the smaller export is faster.
    chance: two-sided p-value of a sign test on `faster_in`, of the hypothesis that both are equally fast. Above 0.01
      there is no clear difference.
    bytes: sizes of the files.
    device: kind of device that ran both.
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
    """Returns the comparison of two exports, serialized by `jax.export`, on the examples of a split."""
    batch_size = min(batch_size, len(split.labels))
    programs = [jax.jit(export.deserialize(bytearray(program)).call) for program in (plain, smaller)]
    probabilities = [_predict(program, split.images[:], batch_size) for program in programs]
    accuracy = tuple(float((rows.argmax(axis=1) == split.labels).mean()) for rows in probabilities)
    times = _time_in_turns(programs, jax.device_put(split.images[:batch_size]), repetitions)
    medians = np.median(times, axis=1)
    faster = int((times[1] < times[0]).sum())
    return Comparison(
        examples=len(split.labels),
        accuracy=(accuracy[0], accuracy[1]),
        accuracy_lost=accuracy[0] - accuracy[1],
        changed=int((probabilities[0].argmax(axis=1) != probabilities[1].argmax(axis=1)).sum()),
        largest_difference=float(np.abs(probabilities[0] - probabilities[1]).max()),
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


def _predict(program: Callable[..., Any], images: np.ndarray, batch_size: int) -> np.ndarray:
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        _, probabilities = program(pad_rows(batch, batch_size))  # one shape, so that it compiles once
        parts.append(np.asarray(probabilities)[: len(batch)])
    return np.concatenate(parts)


def _time_in_turns(programs: Sequence[Callable[..., Any]], images: Any, repetitions: int) -> np.ndarray:
    """Returns the milliseconds f64[programs repetitions] of each call; the first call of each does not count."""
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
