"""Evaluation of a split: each example counts exactly once."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Sharding

from flaxcls.data.batches import pad_batch
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
    """Returns the mean loss and the accuracy of a split, or None if the evaluation was stopped before its end.

    Args:
      eval_step: (state, batch) -> sums, jitted; all batches have one shape.
      state: the state to evaluate.
      split: its examples; the last batch is padded and masked.
      batch_size: examples of a step.
      sharding: layout of the batches over the devices; each process reads only the rows of its own devices.
      stopping: called before each batch; the evaluation stops when it returns True.
    """
    sums = MetricSums.empty()
    rows = slice(0, batch_size) if sharding is None else local_rows(sharding, batch_size)
    for start in range(0, len(split.labels), batch_size):
        if stopping():
            return None
        part = slice(start + rows.start, start + rows.stop)
        batch: Any = pad_batch(split.images[part], split.labels[part], rows.stop - rows.start)
        if sharding is not None:
            batch = rows_on_devices(batch, sharding, batch_size, rows.start)
        sums = sums.merge(eval_step(state, batch))
    return sums.compute()


def fit_batch_size(most: int, examples: int, devices: int) -> int:
    """Returns the batch size to evaluate `examples` with: `most`, or fewer, rounded up to a multiple of the devices."""
    return -(-min(most, examples) // devices) * devices
