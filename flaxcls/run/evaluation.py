"""Evaluation of a split: every example is counted exactly once."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Sharding

from flaxcls.data.dataset import Split
from flaxcls.metrics import MetricSums
from flaxcls.sharding import local_rows, rows_on_devices
from flaxcls.state import TrainState
from flaxcls.types import Batch


def evaluate(
    eval_step: Callable[[TrainState, Batch], MetricSums],
    state: TrainState,
    split: Split,
    *,
    batch_size: int,
    sharding: Sharding | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Returns mean loss and accuracy over a split, or None where it was not finished.

    Args:
      eval_step: (state, batch) -> sums, jitted; it sees batches of one shape.
      state: what is evaluated.
      split: its examples; the last batch is padded and masked.
      batch_size: examples a step.
      sharding: layout of the batches over the devices; a process reads the rows of its own devices alone.
      stopping: asked before each batch; the evaluation is given up once it is true.
    """
    sums = MetricSums.empty()
    rows = slice(0, batch_size) if sharding is None else local_rows(sharding, batch_size)
    for start in range(0, len(split.labels), batch_size):
        if stopping():
            return None
        part = slice(start + rows.start, start + rows.stop)
        batch: Any = padded(split.images[part], split.labels[part], rows.stop - rows.start)
        if sharding is not None:
            batch = rows_on_devices(batch, sharding, batch_size, rows.start)
        sums = sums.merge(eval_step(state, batch))
    return sums.compute()


def padded(images: np.ndarray, labels: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Returns a batch of `size` examples: those that are given, then zeros whose mask is False."""
    missing = size - len(labels)

    def pad(part: np.ndarray) -> np.ndarray:
        return np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) if missing else part

    return {"image": pad(images), "label": pad(labels), "mask": np.arange(size) < len(labels)}
