"""Evaluation of a split: every example is counted exactly once."""

from collections.abc import Callable

import numpy as np
from jax.sharding import Sharding

from flaxcls.data.dataset import Split
from flaxcls.metrics import MetricSums
from flaxcls.sharding import on_devices
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
      sharding: layout of the batches over the devices.
      stopping: asked before each batch; the evaluation is given up once it is true.
    """
    sums = MetricSums.empty()
    for start in range(0, len(split.labels), batch_size):
        if stopping():
            return None
        batch = padded(Split(*(part[start : start + batch_size] for part in split)), batch_size)
        sums = sums.merge(eval_step(state, on_devices(batch, sharding)))
    return sums.compute()


def padded(split: Split, size: int) -> dict[str, np.ndarray]:
    """Returns a batch of `size` examples: those of the split, then zeros whose mask is False."""
    missing = size - len(split.labels)

    def pad(part: np.ndarray) -> np.ndarray:
        return np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) if missing else part

    return {"image": pad(split.images), "label": pad(split.labels), "mask": np.arange(size) < len(split.labels)}
