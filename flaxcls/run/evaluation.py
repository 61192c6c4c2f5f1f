"""Evaluation of a split: each example counts exactly once."""

from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from flaxcls.data.batches import pad_batch
from flaxcls.data.dataset import Split
from flaxcls.data.images import none_readable, read_rows
from flaxcls.errors import InputError
from flaxcls.metrics import MetricSums
from flaxcls.sharding import batch_sharding, local_rows, rows_on_devices
from flaxcls.state import TrainState
from flaxcls.types import Batch


def evaluate(
    eval_step: Callable[[TrainState, Batch], MetricSums],
    state: TrainState,
    split: Split,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Returns the mean loss and the accuracy of a split, or None if the evaluation was stopped before its end.

    Args:
      eval_step: (state, batch) -> sums, jitted; all batches have one shape.
      state: the state to evaluate.
      split: its examples; padding and what cannot be read, if it may be left out, are masked.
      batch_size: examples of a step, at most; with a mesh it is rounded up to a multiple of the devices.
      mesh: the devices that share each batch; each process reads only the rows of its own devices. None: one device.
      stopping: called before each batch; the evaluation stops when it returns True.

    Raises InputError if an example cannot be read that may not be left out, or if none can.
    """
    examples = len(split.labels)
    size = fit_batch_size(batch_size, examples, 1 if mesh is None else mesh.size)
    sums = MetricSums.empty()
    rows = slice(0, size) if mesh is None else local_rows(batch_sharding(mesh), size)
    for start in range(0, examples, size):
        if stopping():
            return None
        part = slice(start + rows.start, start + rows.stop)
        images, readable = read_rows(split.images, part)
        batch: Any = pad_batch(images, split.labels[part], rows.stop - rows.start)
        batch["mask"][: len(readable)] &= readable
        if mesh is not None:
            batch = rows_on_devices(batch, batch_sharding(mesh), size, rows.start)
        sums = sums.merge(eval_step(state, batch))
    if len(split.unread) == examples:
        raise InputError(none_readable([unread.reason for _, unread in sorted(split.unread.items())]))
    return sums.compute()


def fit_batch_size(most: int, examples: int, devices: int) -> int:
    """Returns the batch size to evaluate `examples` with: `most`, or fewer, rounded up to a multiple of the devices."""
    return -(-max(min(most, examples), 1) // devices) * devices
